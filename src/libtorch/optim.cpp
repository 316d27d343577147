// Optimiser kernels that tch does not bind: at::_fused_* and at::_foreach_* over lists of tensors.
// Every function returns nullptr, or the text of the exception (free it with tikhonov_free).

#include <ATen/EmptyTensor.h>
#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/_amp_foreach_non_finite_check_and_unscale.h>
#include <ATen/ops/_foreach_add.h>
#include <ATen/ops/_foreach_addcdiv.h>
#include <ATen/ops/_foreach_addcmul.h>
#include <ATen/ops/_foreach_clamp_max.h>
#include <ATen/ops/_foreach_clamp_min.h>
#include <ATen/ops/_foreach_div.h>
#include <ATen/ops/_foreach_lerp.h>
#include <ATen/ops/_foreach_mul.h>
#include <ATen/ops/_foreach_norm.h>
#include <ATen/ops/_foreach_sign.h>
#include <ATen/ops/_foreach_sqrt.h>
#include <ATen/ops/_foreach_sub.h>
#include <ATen/ops/_fused_adagrad.h>
#include <ATen/ops/_fused_adam.h>
#include <ATen/ops/_fused_adamw.h>
#include <ATen/ops/_fused_sgd.h>
#include <ATen/ops/clamp.h>
#include <ATen/ops/eq.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/linalg_vector_norm.h>
#include <ATen/ops/stack.h>
#include <c10/core/GradMode.h>

#include <cmath>
#include <numeric>

#include "guarded.h"
#include "simd.h"
#include "team.h"
#ifdef _OPENMP
#include <omp.h>
#endif

namespace {

// A borrowed array of tensors, as Rust passes it.
struct Borrowed {
  at::Tensor* const* tensors;
  size_t count;
};

using List = std::vector<at::Tensor>;

// What the step is under: its rate, on the host or (where lr_tensor is no nullptr) on the device; and where found_inf is no
// nullptr and holds 1, the step changes nothing.
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

// ws -= lr * steps
void move(const Control& control, const List& ws, const List& steps) {
  if (control.lr_tensor) {
    at::_foreach_add_(ws, at::_foreach_mul(steps, control.lr_tensor->to(ws[0].scalar_type())), -1);
  } else {
    at::_foreach_add_(ws, steps, -control.lr);
  }
}

// A skipped step is not counted.
void uncount(const Control& control, const List& counts) {
  if (control.found_inf) at::_foreach_add_(counts, *control.found_inf, -1);
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

// The memory from value `begin` on, as a tensor of one dimension.
at::Tensor cut(const at::Tensor& tensor, int64_t begin, int64_t end) {
  return tensor.as_strided({end - begin}, {1}, tensor.storage_offset() + begin);
}

// step(lists) with all parameters and what belongs to them; of many values where these lie in the CPU's memory, by pieces of each
// of them, on several threads. What one value becomes, no other has a part in.
template <typename F>
void by_pieces(Borrowed params, std::initializer_list<Borrowed> others, F&& step) {
  std::vector<List> whole = {list(params)};
  for (const Borrowed& other : others) whole.push_back(list(other));
  int64_t values = 0;
  bool is_here = true;
  for (const at::Tensor& param : whole[0]) {
    values += param.numel();
    is_here = is_here && param.device().is_cpu();
  }
  if (!is_here || values > FEW) return step(whole);
  const int64_t pieces = std::max<int64_t>(1, std::min(tikhonov::team(), values / PIECE_OF_STEP));
  if (pieces == 1) {
    const Serial serial(params);
    return step(whole);
  }
  tikhonov::together(pieces, [&](int64_t piece) {
    const c10::AutoGradMode off(false);
    const at::AutoDispatchBelowADInplaceOrView no_views;
    std::vector<List> own(whole.size());
    for (size_t i = 0; i < whole[0].size(); ++i) {
      const int64_t count = whole[0][i].numel();
      // Whole vectors, lest a value be the rest of them in one partition and not in another.
      const auto bound = [&](int64_t piece) {
        return piece == pieces ? count : count < PIECE_OF_STEP / 4 ? 0 : piece * count / pieces / 64 * 64;
      };
      const int64_t begin = bound(piece), end = bound(piece + 1);
      if (begin == end) continue;
      for (size_t kind = 0; kind < whole.size(); ++kind) {
        if (whole[kind].empty()) continue;
        const at::Tensor& tensor = whole[kind][i];
        const bool is_count = tensor.dim() == 0;
        own[kind].push_back(is_count || end - begin == count ? tensor : cut(tensor, begin, end));
      }
    }
    const Serial serial(params);
    if (!own[0].empty()) step(own);
  });
}

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

// The 2-norm of a few values, added up in libtorch's order, to the same bits: a step that is clipped by it is PyTorch's.
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
    const int64_t pieces = std::max<int64_t>(1, std::min(tikhonov::team(), count / PIECE_OF_STEP));
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

// grads /= the scale; found_inf = 1 where one of them holds NaN or infinity.
char* tikhonov_unscale(Borrowed grads, const at::Tensor* found_inf, const at::Tensor* inverse_scale) {
  return in_place([&] {
    at::Tensor found = *found_inf;
    at::_amp_foreach_non_finite_check_and_unscale_(list(grads), found, *inverse_scale);
  });
}

// grads[i] = the gradient of params[i], or nullptr where it has none. The CPU kernels walk raw memory and
// trust all tensors of a parameter to be laid out alike, so a gradient that is not is copied into place.
char* tikhonov_gradients(Borrowed params, at::Tensor** grads) {
  return in_place([&] {
    for (size_t i = 0; i < params.count; ++i) grads[i] = nullptr;
    for (size_t i = 0; i < params.count; ++i) {
      const at::Tensor& param = *params.tensors[i];
      at::Tensor grad = param.grad();
      if (!grad.defined()) continue;
      TORCH_CHECK(param.is_non_overlapping_and_dense(), "a parameter's memory has gaps: make it contiguous");
      if (!grad.strides().equals(param.strides()) || grad.scalar_type() != param.scalar_type()) {
        at::Tensor aligned = at::empty_like(param);
        aligned.copy_(grad);
        grad = aligned;
      }
      grads[i] = new at::Tensor(std::move(grad));
    }
  });
}

// Makes the gradients undefined, which spares the next backward pass an addition.
char* tikhonov_forget_gradients(Borrowed params) {
  return in_place([&] {
    for (size_t i = 0; i < params.count; ++i) params.tensors[i]->mutable_grad().reset();
  });
}

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

// tensors += alpha * others
char* tikhonov_add(Borrowed tensors, Borrowed others, double alpha) {
  return in_place([&] { at::_foreach_add_(list(tensors), list(others), alpha); });
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
    for (size_t i = 0; i < tensors.count; ++i) {
      at::Tensor& w = *tensors.tensors[i];
      const at::Tensor high = threshold->to(w.scalar_type());
      w.sub_(at::clamp(w, -high, high));
    }
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

// momentum_buffers is empty where momentum is 0.
char* tikhonov_fused_sgd(Borrowed params, Borrowed grads, Borrowed momentum_buffers, Control control,
                         double weight_decay, double momentum, double dampening, bool nesterov, bool is_first_step) {
  return in_place([&] {
    by_pieces(params, {grads, momentum_buffers}, [&](const std::vector<List>& all) {
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
      by_pieces(params, {grads, exp_avgs, exp_avg_sqs, max_exp_avg_sqs, steps}, [&](const std::vector<List>& all) {
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
    by_pieces(params, {grads, sums, steps}, [&](const std::vector<List>& all) {
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
    const Serial serial(params);
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
