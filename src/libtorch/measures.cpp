// What lists of tensors amount to: norms, and how many values are zero.

#include <ATen/EmptyTensor.h>
#include <ATen/Parallel.h>
#include <ATen/ops/_foreach_norm.h>
#include <ATen/ops/eq.h>
#include <ATen/ops/linalg_vector_norm.h>
#include <ATen/ops/stack.h>

#include <cmath>
#include <numeric>

#include "lists.h"
#include "simd.h"
#include "team.h"

namespace {

#if defined(__GNUC__)

template <int lanes>
struct Squares {
  static TIKHONOV_INLINE void run(const float* xs, int64_t count, double* sum) {
    using V = typename Vector<lanes>::type;
    // 64 sums, whatever the vectors: the result is the same.
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

constexpr int64_t PIECE = 4096;

// The 2-norm of a few values, added up in libtorch's order, to the same bits: a step that is clipped by it is
// PyTorch's.
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

// Of many, by pieces: sums of float32 stay short, and the result the same for any number of threads.
float long_norm(const float* xs, int64_t count) {
  const int64_t sums_count = (count + PIECE - 1) / PIECE;
  std::vector<double> sums(sums_count);
  const auto add = [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) by_lanes<Squares>(xs + i * PIECE, std::min(PIECE, count - i * PIECE), &sums[i]);
  };
  if (count > FEW) {
    at::parallel_for(0, sums_count, FEW / PIECE, add);
  } else {
    const int64_t pieces = tikhonov::pieces_of(count / PIECE_OF_STEP);
    tikhonov::together(pieces, [&](int64_t piece) { add(piece * sums_count / pieces, (piece + 1) * sums_count / pieces); });
  }
  return static_cast<float>(std::sqrt(std::accumulate(sums.begin(), sums.end(), 0.0)));
}

// The 2-norm of all tensors together, if these are float32 without gaps on the CPU.
std::optional<float> norm_of(Borrowed tensors) {
  std::vector<float> norms;
  for (size_t i = 0; i < tensors.count; ++i) {
    const at::Tensor& tensor = *tensors.tensors[i];
    if (!tensor.device().is_cpu() || tensor.scalar_type() != at::kFloat || !tensor.is_non_overlapping_and_dense()) return {};
    const float* xs = tensor.const_data_ptr<float>();
    norms.push_back(tensor.numel() <= PIECE ? short_norm(xs, tensor.numel()) : long_norm(xs, tensor.numel()));
  }
  return short_norm(norms.data(), norms.size());
}

#else

std::optional<float> norm_of(Borrowed) { return {}; }

#endif

}  // namespace

extern "C" {

// norms = the norm of order `ord` of each tensor, [count].
char* tikhonov_norms(Borrowed tensors, double ord, bool in_double, at::Tensor** norms) {
  return in_place([&] {
    *norms = nullptr;
    const Serial serial(tensors);
    const auto kind = in_double ? std::optional(at::kDouble) : std::nullopt;
    List each = at::_foreach_norm(list(tensors), ord, kind);
    for (at::Tensor& norm : each) norm = norm.to(each[0].options());
    *norms = new at::Tensor(at::stack(each));
  });
}

// zeros = how many values of all tensors together are 0, 0-dim int64 on their device.
char* tikhonov_zeros(Borrowed tensors, at::Tensor** zeros) {
  return in_place([&] {
    *zeros = nullptr;
    const Serial serial(tensors);
    at::Tensor sum;
    for (size_t i = 0; i < tensors.count; ++i) {
      const at::Tensor own = at::eq(*tensors.tensors[i], 0).sum();
      sum = sum.defined() ? sum.add(own) : own;
    }
    *zeros = new at::Tensor(std::move(sum));
  });
}

// norm = the 2-norm of all tensors together, 0-dim on their device, in float32 or in their own kind.
char* tikhonov_total_norm(Borrowed tensors, at::Tensor** norm) {
  return in_place([&] {
    *norm = nullptr;
    if (const auto all = norm_of(tensors)) {
      at::Tensor own(at::detail::empty_cpu({}, at::kFloat));
      *own.mutable_data_ptr<float>() = *all;
      *norm = new at::Tensor(std::move(own));
    } else {
      List each = at::_foreach_norm(list(tensors), 2);
      for (at::Tensor& one : each) one = one.to(each[0].options());
      *norm = new at::Tensor(at::linalg_vector_norm(at::stack(each), 2));
    }
  });
}

}  // extern "C"
