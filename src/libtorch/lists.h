// Lists of tensors as Rust passes them, and how many threads a small operation on them takes.

#pragma once

#include <ATen/core/Tensor.h>
#include <c10/core/GradMode.h>
#ifdef _OPENMP
#include <omp.h>
#endif

#include "guarded.h"
#ifdef TIKHONOV_KERNELS
#include "kernels/thread_pool.h"
#endif

namespace {

// A borrowed array of tensors, as Rust passes it.
struct Borrowed {
  at::Tensor* const* tensors;
  size_t count;
};

using List = std::vector<at::Tensor>;

List list(Borrowed borrowed) {
  List out;
  out.reserve(borrowed.count);
  for (size_t i = 0; i < borrowed.count; ++i) out.push_back(*borrowed.tensors[i]);
  return out;
}

// guarded, without autograd.
template <typename F>
char* in_place(F&& f) {
  return guarded([&] {
    const c10::AutoGradMode off(false);
    f();
  });
}

// Up to this many values, one thread is done (in about 50 us) before libgomp has woken the others.
constexpr int64_t SMALL_STEP = 1 << 19;
// Values of one chunk of a step on the thread pool: a few microseconds of work.
constexpr int64_t VALUES_PER_CHUNK = 1 << 15;

bool thread_pool_enabled() {
#ifdef TIKHONOV_KERNELS
  return tikhonov::thread_pool_enabled();
#else
  return false;
#endif
}

// While it lives, libtorch works on small lists with the calling thread alone: its fused kernels wake all
// threads for any number of values. Without effect where the thread pool is off: then libtorch decides.
class OneThread {
 public:
  explicit OneThread(Borrowed params) {
#ifdef _OPENMP
    if (!thread_pool_enabled()) return;
    int64_t values = 0;
    for (size_t i = 0; i < params.count; ++i) values += params.tensors[i]->numel();
    if (values > SMALL_STEP || omp_in_parallel()) return;
    threads = omp_get_max_threads();
    omp_set_num_threads(1);
#endif
  }
  OneThread(const OneThread&) = delete;
  ~OneThread() {
#ifdef _OPENMP
    if (threads > 0) omp_set_num_threads(threads);
#endif
  }

 private:
  int threads = 0;
};

}  // namespace
