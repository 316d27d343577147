// The 2-norm of a list of tensors on the CPU, for clipping and logging.

#include <ATen/EmptyTensor.h>
#include <ATen/Parallel.h>

#include <cmath>
#include <numeric>

#include "guarded.h"
#include "kernels/simd.h"
#include "kernels/thread_pool.h"
#include "lists.h"

namespace {

#if defined(__GNUC__)

template <int lanes>
struct SumOfSquares {
  static TIKHONOV_INLINE void run(const float* xs, int64_t count, double* sum) {
    using V = typename Vector<lanes>::type;
    // 64 partial sums whatever the width of a vector: the result is the same on every instruction set.
    constexpr int vectors = 64 / lanes;
    V sums[vectors] = {};
    int64_t i = 0;
    for (; i + 64 <= count; i += 64) {
      for (int v = 0; v < vectors; ++v) {
        const V x = load<V>(xs + i + v * lanes);
        sums[v] += x * x;
      }
    }
    float all[64];
    for (int v = 0; v < vectors; ++v) store(all + v * lanes, sums[v]);
    for (int lane = 0; lane < 16; ++lane) *sum += (all[lane] + all[lane + 16]) + (all[lane + 32] + all[lane + 48]);
    for (; i < count; ++i) *sum += xs[i] * xs[i];
  }
};

// Values of one partial sum.
constexpr int64_t BLOCK = 4096;

// The 2-norm of up to BLOCK values, added up in the order of libtorch's kernel, so that the bits are equal and
// a step that is clipped by it is PyTorch's.
float short_norm(const float* xs, int64_t count) {
  float sums[8] = {};
  int64_t i = 0;
  for (; i + 8 <= count; i += 8)
    for (int lane = 0; lane < 8; ++lane) sums[lane] += xs[i + lane] * xs[i + lane];
  float sum = sums[0];
  for (int lane = 1; lane < 8; ++lane) sum += sums[lane];
  for (; i < count; ++i) sum += xs[i] * xs[i];
  return std::sqrt(sum);
}

// The 2-norm of more values, by blocks whose sums are added in float64: short sums in float32 round little,
// and the result does not depend on the number of threads.
float long_norm(const float* xs, int64_t count) {
  const int64_t blocks = (count + BLOCK - 1) / BLOCK;
  std::vector<double> sums(blocks);
  const auto add = [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) by_lanes<SumOfSquares>(xs + i * BLOCK, std::min(BLOCK, count - i * BLOCK), &sums[i]);
  };
  if (count > SMALL_STEP) {
    at::parallel_for(0, blocks, SMALL_STEP / BLOCK, add);
  } else {
    const int64_t chunks = tikhonov::num_chunks(count / VALUES_PER_CHUNK);
    tikhonov::parallel_for(chunks, [&](int64_t chunk) { add(chunk * blocks / chunks, (chunk + 1) * blocks / chunks); });
  }
  return static_cast<float>(std::sqrt(std::accumulate(sums.begin(), sums.end(), 0.0)));
}

#endif

}  // namespace

extern "C" {

// *norm = the 2-norm of all tensors together, 0-dim float32; null, and nothing done, unless all are float32
// on the CPU without gaps in their memory.
char* tikhonov_two_norm(Borrowed tensors, at::Tensor** norm) {
  return in_place([&] {
    *norm = nullptr;
#if defined(__GNUC__)
    std::vector<float> norms;
    for (size_t i = 0; i < tensors.count; ++i) {
      const at::Tensor& tensor = *tensors.tensors[i];
      if (!tensor.device().is_cpu() || tensor.scalar_type() != at::kFloat || !tensor.is_non_overlapping_and_dense()) return;
      const float* xs = tensor.const_data_ptr<float>();
      norms.push_back(tensor.numel() <= BLOCK ? short_norm(xs, tensor.numel()) : long_norm(xs, tensor.numel()));
    }
    at::Tensor own(at::detail::empty_cpu({}, at::kFloat));
    *own.mutable_data_ptr<float>() = short_norm(norms.data(), norms.size());
    *norm = new at::Tensor(std::move(own));
#endif
  });
}

}  // extern "C"
