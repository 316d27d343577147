// Losses of small batches on the CPU, one operation of autograd each: the gradient is computed with the value,
// in one pass. libtorch runs ten operations for a cross-entropy with label smoothing, and as many for its
// gradient.

#include <ATen/ATen.h>
#include <ATen/EmptyTensor.h>
#include <ATen/autocast_mode.h>
#include <torch/csrc/autograd/function.h>
#include <torch/csrc/autograd/functions/utils.h>

#include <cmath>

#include "guarded.h"

namespace {

// Above this size libtorch's kernels, with vectors and threads, are as fast.
constexpr int64_t MAX_VALUES = 4096;
// The class of samples that do not count, as PyTorch's default.
constexpr int64_t IGNORE_INDEX = -100;

// Returns the gradient that the forward pass computed.
struct KnownGradient : torch::autograd::Node {
  at::Tensor gradient;

  torch::autograd::variable_list apply(torch::autograd::variable_list&& gradients) override {
    const std::lock_guard<std::mutex> lock(mutex_);
    TORCH_CHECK(!at::GradMode::is_enabled(), "a loss has no second derivative here");
    TORCH_CHECK(gradient.defined(), "this loss has been differentiated already");
    if (!gradients[0].defined()) return {at::Tensor()};
    const float factor = gradients[0].item<float>();
    return {factor == 1 ? gradient : gradient.mul(factor)};
  }

  void release_variables() override {
    const std::lock_guard<std::mutex> lock(mutex_);
    gradient.reset();
  }

  std::string name() const override { return "FusedLossBackward"; }
};

bool fits(const at::Tensor& tensor, at::ScalarType kind) {
  return tensor.device().is_cpu() && tensor.layout() == at::kStrided && tensor.scalar_type() == kind && tensor.is_contiguous();
}

at::Tensor empty(at::IntArrayRef size) { return at::Tensor(at::detail::empty_cpu(size, at::kFloat)); }

// *out = the value that f(gradient) returns; f also fills `gradient` unless that is null.
template <typename F>
void with_gradient(const at::Tensor& inputs, at::Tensor** out, F&& f) {
  at::Tensor loss = empty({});
  const bool needed = torch::autograd::compute_requires_grad(inputs);
  const at::Tensor gradient = needed ? empty(inputs.sizes()) : at::Tensor();
  *loss.mutable_data_ptr<float>() = static_cast<float>(f(needed ? gradient.mutable_data_ptr<float>() : nullptr));
  if (needed) {
    const auto node = std::shared_ptr<KnownGradient>(new KnownGradient(), torch::autograd::deleteNode);
    node->set_next_edges(torch::autograd::collect_next_edges(inputs));
    node->gradient = gradient;
    torch::autograd::set_history(loss, node);
  }
  *out = new at::Tensor(std::move(loss));
}

}  // namespace

extern "C" {

// *out = the mean cross-entropy of logits [N, K] with classes int64 [N]; null for an input that this does not
// support. Classes out of range are left to libtorch, which reports them.
char* tikhonov_cross_entropy(const at::Tensor* logits, const at::Tensor* ys, double smoothing, at::Tensor** out) {
  return guarded([&] {
    *out = nullptr;
    if (!fits(*logits, at::kFloat) || !fits(*ys, at::kLong) || logits->dim() != 2 || ys->dim() != 1) return;
    const int64_t rows = logits->size(0), classes = logits->size(1);
    if (ys->size(0) != rows || logits->numel() > MAX_VALUES || logits->numel() == 0) return;
    const int64_t* y = ys->const_data_ptr<int64_t>();
    int64_t counted = 0;
    for (int64_t row = 0; row < rows; ++row) {
      if (y[row] == IGNORE_INDEX) continue;
      if (y[row] < 0 || y[row] >= classes) return;
      ++counted;
    }
    const float* all = logits->const_data_ptr<float>();
    with_gradient(*logits, out, [&](float* gradient) {
      double total = 0;
      for (int64_t row = 0; row < rows; ++row) {
        const float* z = all + row * classes;
        float* dz = gradient ? gradient + row * classes : nullptr;
        if (y[row] == IGNORE_INDEX) {
          if (dz) std::fill_n(dz, classes, 0.f);
          continue;
        }
        const float most = *std::max_element(z, z + classes);
        double sum = 0, away = 0;
        for (int64_t k = 0; k < classes; ++k) {
          const float share = std::exp(z[k] - most);
          if (dz) dz[k] = share;
          sum += share;
          away += z[k] - most;
        }
        const double log = std::log(sum);
        total += (1 - smoothing) * (log - (z[y[row]] - most)) + smoothing * (log - away / classes);
        if (!dz) continue;
        for (int64_t k = 0; k < classes; ++k)
          dz[k] = static_cast<float>((dz[k] / sum - smoothing / classes - (k == y[row] ? 1 - smoothing : 0)) / counted);
      }
      return total / counted;
    });
  });
}

// *out = factor x the mean of (outputs - ys)^2, of equal shapes; null for an input that this does not support.
char* tikhonov_squared_error(const at::Tensor* outputs, const at::Tensor* ys, double factor, at::Tensor** out) {
  return guarded([&] {
    *out = nullptr;
    if (!fits(*outputs, at::kFloat) || !fits(*ys, at::kFloat) || outputs->sizes() != ys->sizes()) return;
    const int64_t values = outputs->numel();
    if (values > MAX_VALUES || values == 0 || ys->requires_grad()) return;
    const float *given = outputs->const_data_ptr<float>(), *wanted = ys->const_data_ptr<float>();
    with_gradient(*outputs, out, [&](float* gradient) {
      double total = 0;
      for (int64_t i = 0; i < values; ++i) {
        const float away = given[i] - wanted[i];
        total += static_cast<double>(away) * away;
        if (gradient) gradient[i] = static_cast<float>(2 * factor / values * away);
      }
      return factor * total / values;
    });
  });
}

}  // extern "C"
