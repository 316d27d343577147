// Lists of tensors as Rust passes them, and how many threads work on them is worth.

#pragma once

#include <ATen/core/Tensor.h>
#include <c10/core/GradMode.h>
#ifdef _OPENMP
#include <omp.h>
#endif

#include "guarded.h"

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

// Values that one thread is done with sooner than it has woken others: a step of theirs takes it about 50 us.
constexpr int64_t FEW = 1 << 19;

// libtorch's fused kernels wake all threads for any number of values.
class Serial {
 public:
  explicit Serial(Borrowed params) {
#ifdef _OPENMP
    int64_t values = 0;
    for (size_t i = 0; i < params.count; ++i) values += params.tensors[i]->numel();
    if (values > FEW || omp_in_parallel()) return;
    threads = omp_get_max_threads();
    omp_set_num_threads(1);
#endif
  }
  Serial(const Serial&) = delete;
  ~Serial() {
#ifdef _OPENMP
    if (threads > 0) omp_set_num_threads(threads);
#endif
  }

 private:
  int threads = 0;
};

// Values of a piece of a step: some microseconds' worth.
constexpr int64_t PIECE_OF_STEP = 1 << 15;

}  // namespace
