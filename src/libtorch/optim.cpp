// Optimiser kernels that tch does not bind: at::_fused_* and at::_foreach_* over lists of tensors.
// Every function returns nullptr, or the text of the exception (free it with tikhonov_free).

#include <ATen/core/LegacyTypeDispatch.h>
#include <ATen/ops/_amp_foreach_non_finite_check_and_unscale.h>
#include <ATen/ops/_foreach_abs.h>
#include <ATen/ops/_foreach_add.h>
#include <ATen/ops/_foreach_addcdiv.h>
#include <ATen/ops/_foreach_addcmul.h>
#include <ATen/ops/_foreach_clamp_max.h>
#include <ATen/ops/_foreach_clamp_min.h>
#include <ATen/ops/_foreach_copy.h>
#include <ATen/ops/_foreach_div.h>
#include <ATen/ops/_foreach_lerp.h>
#include <ATen/ops/_foreach_mul.h>
#include <ATen/ops/_foreach_sign.h>
#include <ATen/ops/_foreach_sqrt.h>
#include <ATen/ops/_foreach_sub.h>
#include <ATen/ops/_fused_adagrad.h>
#include <ATen/ops/_fused_adam.h>
#include <ATen/ops/_fused_adamw.h>
#include <ATen/ops/_fused_sgd.h>
#include <ATen/ops/_foreach_norm.h>
#include <ATen/ops/addmm.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/eq.h>
#include <ATen/ops/linalg_vector_norm.h>
#include <ATen/ops/stack.h>

#include "lists.h"

namespace {

// The learning rate, on the host or (where lr_tensor is not null) on the device; where found_inf is not null and
// holds 1, the step changes nothing.
struct Control {
  double lr;
  const at::Tensor* lr_tensor;
  const at::Tensor* found_inf;
};

std::optional<at::Tensor> optional(const at::Tensor* tensor) { return tensor ? std::optional(*tensor) : std::nullopt; }

template <typename F>
void with_lr(const Control& control, F&& f) {
  if (control.lr_tensor) {
    f(*control.lr_tensor);
  } else {
    f(control.lr);
  }
}

// ws -= lr * steps
void move(const Control& control, const List& ws, const List& steps) {
  if (control.lr_tensor) {
    at::_foreach_add_(ws, at::_foreach_mul(steps, control.lr_tensor->to(ws[0].scalar_type())), -1);
  } else {
    at::_foreach_add_(ws, steps, -control.lr);
  }
}

// Whether the values of both, of one size, follow each other in memory in the same order: the stride of a dimension of
// size 1 says nothing.
bool is_laid_out_alike(const at::Tensor& tensor, const at::Tensor& other) {
  for (int64_t dim = 0; dim < tensor.dim(); ++dim)
    if (tensor.size(dim) != 1 && tensor.stride(dim) != other.stride(dim)) return false;
  return true;
}

// A skipped step is not counted.
void uncount(const Control& control, const List& counts) {
  if (control.found_inf) at::_foreach_add_(counts, *control.found_inf, -1);
}

// The values [begin, end) of a tensor's memory, as a tensor of one dimension.
at::Tensor slice(const at::Tensor& tensor, int64_t begin, int64_t end) {
  return tensor.as_strided({end - begin}, {1}, tensor.storage_offset() + begin);
}

// step(lists) over all parameters and the tensors that belong to them. On the CPU, lists of up to SMALL_STEP
// values are cut into chunks, each with a part of every large tensor, for the thread pool. The kernels are
// elementwise, so that the result does not depend on the cuts.
template <typename F>
void in_chunks(Borrowed params, std::initializer_list<Borrowed> others, F&& step) {
  std::vector<List> whole = {list(params)};
  for (const Borrowed& other : others) whole.push_back(list(other));
#ifdef TIKHONOV_KERNELS
  int64_t values = 0;
  bool on_cpu = true;
  for (const at::Tensor& param : whole[0]) {
    values += param.numel();
    on_cpu = on_cpu && param.device().is_cpu();
  }
  if (!on_cpu || values > SMALL_STEP || !thread_pool_enabled()) return step(whole);
  const int64_t chunks = tikhonov::num_chunks(values / VALUES_PER_CHUNK);
  if (chunks == 1) {
    const OneThread alone(params);
    return step(whole);
  }
  tikhonov::parallel_for(chunks, [&](int64_t chunk) {
    const c10::AutoGradMode off(false);
    const at::AutoDispatchBelowADInplaceOrView no_views;
    std::vector<List> own(whole.size());
    for (size_t i = 0; i < whole[0].size(); ++i) {
      const int64_t count = whole[0][i].numel();
      // Multiples of 64 values, whole vectors: the scalar loop for the rest of a vector may round differently.
      const auto bound = [&](int64_t chunk) {
        return chunk == chunks ? count : count < VALUES_PER_CHUNK / 4 ? 0 : chunk * count / chunks / 64 * 64;
      };
      const int64_t begin = bound(chunk), end = bound(chunk + 1);
      if (begin == end) continue;
      for (size_t kind = 0; kind < whole.size(); ++kind) {
        if (whole[kind].empty()) continue;
        const at::Tensor& tensor = whole[kind][i];
        const bool is_count = tensor.dim() == 0;
        own[kind].push_back(is_count || end - begin == count ? tensor : slice(tensor, begin, end));
      }
    }
    const OneThread alone(params);
    if (!own[0].empty()) step(own);
  });
#else
  step(whole);
#endif
}

}  // namespace

extern "C" {

// grads /= the scale; found_inf = 1 where one of them holds NaN or infinity.
char* tikhonov_unscale(Borrowed grads, const at::Tensor* found_inf, const at::Tensor* inverse_scale) {
  return in_place([&] {
    at::Tensor found = *found_inf;
    at::_amp_foreach_non_finite_check_and_unscale_(list(grads), found, *inverse_scale);
  });
}

// grads[i] = the gradient of params[i], or nullptr where it has none. The CPU kernels walk raw memory and
// expect the same order in memory for all tensors of a parameter, so a gradient in another is copied.
char* tikhonov_gradients(Borrowed params, at::Tensor** grads) {
  return in_place([&] {
    for (size_t i = 0; i < params.count; ++i) grads[i] = nullptr;
    for (size_t i = 0; i < params.count; ++i) {
      const at::Tensor& param = *params.tensors[i];
      at::Tensor grad = param.grad();
      if (!grad.defined()) continue;
      TORCH_CHECK(param.is_non_overlapping_and_dense(), "a parameter's memory has gaps: make it contiguous");
      if (!is_laid_out_alike(grad, param) || grad.scalar_type() != param.scalar_type()) {
        at::Tensor aligned = at::empty_like(param);
        aligned.copy_(grad);
        grad = aligned;
      }
      grads[i] = new at::Tensor(std::move(grad));
    }
  });
}

// Makes the gradients undefined (`set_to_none`), which saves the next backward pass an addition.
char* tikhonov_forget_gradients(Borrowed params) {
  return in_place([&] {
    for (size_t i = 0; i < params.count; ++i) params.tensors[i]->mutable_grad().reset();
  });
}

char* tikhonov_clamp(Borrowed tensors, double low, double high) {
  return in_place([&] {
    const List ts = list(tensors);
    at::_foreach_clamp_min_(ts, low);
    at::_foreach_clamp_max_(ts, high);
  });
}

char* tikhonov_scale(Borrowed tensors, double factor) {
  return in_place([&] { at::_foreach_mul_(list(tensors), factor); });
}

// The factor is a 0-dim tensor on the same device: no synchronisation.
char* tikhonov_scale_by(Borrowed tensors, const at::Tensor* factor) {
  return in_place([&] { at::_foreach_mul_(list(tensors), *factor); });
}

// tensors += alpha * others, or alpha * sign(others), by a 0-dim tensor on the device.
char* tikhonov_add_by(Borrowed tensors, Borrowed others, bool signs, const at::Tensor* alpha) {
  return in_place([&] {
    const List from = list(others);
    List scaled = signs ? at::_foreach_sign(from) : from;
    scaled = at::_foreach_mul(scaled, alpha->to(from[0].scalar_type()));
    at::_foreach_add_(list(tensors), scaled);
  });
}

// tensors += alpha * sign(others)
char* tikhonov_add_sign(Borrowed tensors, Borrowed others, double alpha) {
  return in_place([&] { at::_foreach_add_(list(tensors), at::_foreach_sign(list(others)), alpha); });
}

// tensors += alpha * others, rounded once.
char* tikhonov_add_scaled(Borrowed tensors, Borrowed others, double alpha) {
  return in_place([&] { at::_foreach_add_(list(tensors), list(others), alpha); });
}

// out = beta * t + alpha * left @ right, for one of each.
char* tikhonov_addmm(Borrowed t, Borrowed left, Borrowed right, double beta, double alpha, at::Tensor** out) {
  return in_place([&] {
    *out = nullptr;
    *out = new at::Tensor(at::addmm(*t.tensors[0], *left.tensors[0], *right.tensors[0], beta, alpha));
  });
}

// w = sign(w) * max(|w| - threshold, 0), as w - clamp(w): an exact +0 below the threshold, NaN stays NaN.
char* tikhonov_soft_threshold(Borrowed tensors, double threshold) {
  return in_place([&] {
    const List ts = list(tensors);
    List inner = at::_foreach_clamp_min(ts, -threshold);
    at::_foreach_clamp_max_(inner, threshold);
    at::_foreach_sub_(ts, inner);
  });
}

// The same by a 0-dim tensor on the device.
char* tikhonov_soft_threshold_by(Borrowed tensors, const at::Tensor* threshold) {
  return in_place([&] {
    const List ts = list(tensors);
    // sign(w) * max(|w| - threshold, 0) + 0, for the sign of zeros: a foreach takes a number on the device as a summand
    // or a factor, not as a bound, and addcmul takes none.
    List kept = at::_foreach_abs(ts);
    at::_foreach_add_(kept, threshold->to(ts[0].scalar_type()), -1);
    at::_foreach_clamp_min_(kept, 0);
    at::_foreach_mul_(kept, at::_foreach_sign(ts));
    at::_foreach_add_(kept, 0);
    at::_foreach_copy_(ts, kept);
  });
}

// tensors += weight * (others - tensors) by a 0-dim tensor on the device.
char* tikhonov_lerp_by(Borrowed tensors, Borrowed others, const at::Tensor* weight) {
  return in_place([&] {
    const List ts = list(tensors);
    List apart = at::_foreach_sub(list(others), ts);
    at::_foreach_mul_(apart, weight->to(ts[0].scalar_type()));
    at::_foreach_add_(ts, apart);
  });
}

// tensors += weight * (others - tensors)
char* tikhonov_lerp(Borrowed tensors, Borrowed others, double weight) {
  return in_place([&] { at::_foreach_lerp_(list(tensors), list(others), weight); });
}

// norms = the norm of order `ord` of each tensor, [count].
char* tikhonov_norms(Borrowed tensors, double ord, bool in_double, at::Tensor** norms) {
  return in_place([&] {
    *norms = nullptr;
    const OneThread alone(tensors);
    const auto kind = in_double ? std::optional(at::kDouble) : std::nullopt;
    List each = at::_foreach_norm(list(tensors), ord, kind);
    for (at::Tensor& norm : each) norm = norm.to(each[0].options());
    *norms = new at::Tensor(at::stack(each));
  });
}

// norm = the 2-norm of all tensors together, 0-dim on their device, in the kind of the first: the norm of
// their norms, as torch.nn.utils.clip_grad_norm_ computes it.
char* tikhonov_total_norm(Borrowed tensors, at::Tensor** norm) {
  return in_place([&] {
    *norm = nullptr;
    List each = at::_foreach_norm(list(tensors), 2);
    for (at::Tensor& one : each) one = one.to(each[0].options());
    *norm = new at::Tensor(at::linalg_vector_norm(at::stack(each), 2));
  });
}

// zeros = how many values of all tensors together are 0, 0-dim int64 on their device.
char* tikhonov_zeros(Borrowed tensors, at::Tensor** zeros) {
  return in_place([&] {
    *zeros = nullptr;
    const OneThread alone(tensors);
    at::Tensor sum;
    for (size_t i = 0; i < tensors.count; ++i) {
      const at::Tensor own = at::eq(*tensors.tensors[i], 0).sum();
      sum = sum.defined() ? sum.add(own) : own;
    }
    *zeros = new at::Tensor(std::move(sum));
  });
}

// momentum_buffers is empty where momentum is 0.
char* tikhonov_fused_sgd(Borrowed params, Borrowed grads, Borrowed momentum_buffers, Control control,
                         double weight_decay, double momentum, double dampening, bool nesterov, bool is_first_step) {
  return in_place([&] {
    in_chunks(params, {grads, momentum_buffers}, [&](const std::vector<List>& all) {
      with_lr(control, [&](const auto& lr) {
        at::_fused_sgd_(all[0], all[1], all[2], weight_decay, momentum, lr, dampening, nesterov, /*maximize=*/false, is_first_step,
                        /*grad_scale=*/{}, optional(control.found_inf));
      });
    });
  });
}

// max_exp_avg_sqs is empty without amsgrad. decoupled: weight_decay is AdamW's, else Adam's.
char* tikhonov_fused_adam(Borrowed params, Borrowed grads, Borrowed exp_avgs, Borrowed exp_avg_sqs,
                          Borrowed max_exp_avg_sqs, Borrowed steps, Control control, double beta1, double beta2,
                          double weight_decay, double eps, bool amsgrad, bool decoupled) {
  return in_place([&] {
    const List counts = list(steps);
    at::_foreach_add_(counts, 1);
    const auto found_inf = optional(control.found_inf);
    const auto apply = [&](auto kernel) {
      in_chunks(params, {grads, exp_avgs, exp_avg_sqs, max_exp_avg_sqs, steps}, [&](const std::vector<List>& all) {
        with_lr(control, [&](const auto& lr) { kernel(all[0], all[1], all[2], all[3], all[4], all[5], lr); });
      });
    };
    if (decoupled) {
      apply([&](auto&&... lists) {
        at::_fused_adamw_(lists..., beta1, beta2, weight_decay, eps, amsgrad, /*maximize=*/false, {}, found_inf);
      });
    } else {
      apply([&](auto&&... lists) {
        at::_fused_adam_(lists..., beta1, beta2, weight_decay, eps, amsgrad, /*maximize=*/false, {}, found_inf);
      });
    }
    uncount(control, counts);
  });
}

char* tikhonov_fused_adagrad(Borrowed params, Borrowed grads, Borrowed sums, Borrowed steps, Control control,
                             double lr_decay, double weight_decay, double eps) {
  return in_place([&] {
    const List counts = list(steps);
    at::_foreach_add_(counts, 1);
    in_chunks(params, {grads, sums, steps}, [&](const std::vector<List>& all) {
      with_lr(control, [&](const auto& lr) {
        at::_fused_adagrad_(all[0], all[1], all[2], all[3], lr, lr_decay, weight_decay, eps, /*maximize=*/false, /*grad_scale=*/{},
                            optional(control.found_inf));
      });
    });
    uncount(control, counts);
  });
}

// momentum_buffers is empty where momentum is 0, grad_avgs where the variance is not centred.
char* tikhonov_foreach_rmsprop(Borrowed params, Borrowed grads, Borrowed square_avgs, Borrowed momentum_buffers,
                               Borrowed grad_avgs, Borrowed steps, Control control, double alpha, double eps,
                               double weight_decay, double momentum) {
  return in_place([&] {
    const OneThread alone(params);
    const List ws = list(params), gs = list(grads), squares = list(square_avgs);
    at::_foreach_add_(list(steps), 1);
    if (weight_decay != 0) at::_foreach_add_(gs, ws, weight_decay);
    at::_foreach_mul_(squares, alpha);
    at::_foreach_addcmul_(squares, gs, gs, 1 - alpha);
    List denominators;
    if (grad_avgs.count > 0) {
      const List means = list(grad_avgs);
      at::_foreach_lerp_(means, gs, 1 - alpha);
      denominators = at::_foreach_addcmul(squares, means, means, -1);
      at::_foreach_sqrt_(denominators);
    } else {
      denominators = at::_foreach_sqrt(squares);
    }
    at::_foreach_add_(denominators, eps);
    if (momentum_buffers.count > 0) {
      const List buffers = list(momentum_buffers);
      at::_foreach_mul_(buffers, momentum);
      at::_foreach_addcdiv_(buffers, gs, denominators);
      move(control, ws, buffers);
    } else if (control.lr_tensor) {
      move(control, ws, at::_foreach_div(gs, denominators));
    } else {
      at::_foreach_addcdiv_(ws, gs, denominators, -control.lr);
    }
  });
}

}  // extern "C"
