// Batch normalisation in training, with the addition and the ReLU that follow it: one operation of autograd
// for channels-last images on the CPU. libtorch makes a pass over memory for each of them; here statistics
// take one, values one, gradients two. Every function returns nullptr, or the text of the exception.

#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <torch/csrc/autograd/custom_function.h>

#include <numeric>

#include "guarded.h"
#include "kernels/simd.h"

namespace {

// Channels-last memory as rows of `width` values, a whole number of pixels: long enough to fill vectors for
// any number of channels. Per-channel factors are repeated along the row.
struct Rows {
  int64_t channels;
  int64_t width;
  int64_t values;
  // Values per piece of work, a multiple of width that stays in the cache of a core.
  int64_t piece;

  explicit Rows(const at::Tensor& xs) : channels(xs.size(1)), values(xs.numel()) {
    const int64_t even = std::lcm(channels, int64_t{16});
    width = channels >= 256 || even > 1024 ? channels : even * ((256 + even - 1) / even);
    piece = width * std::max<int64_t>(1, 16384 / width);
  }

  int64_t pieces() const { return (values + piece - 1) / piece; }

  // f(piece, first value, number of values) for all pieces. Their bounds do not depend on the number of
  // threads, so sums over them do not either.
  template <typename F>
  void each(F&& f) const {
    // Two pieces per thread: with fewer, waking a thread costs more than its work.
    at::parallel_for(0, pieces(), 2, [&](int64_t begin, int64_t end) {
      for (int64_t at = begin; at < end; ++at) f(at, at * piece, std::min(piece, values - at * piece));
    });
  }

  // Adds the columns of a row up by channel.
  void fold(const float* row, float* sums) const {
    for (int64_t i = 0; i < width; i += channels)
      for (int64_t c = 0; c < channels; ++c) sums[c] += row[i + c];
  }

  // A value per channel, repeated along a row.
  template <typename F>
  std::vector<float> repeated(F&& value) const {
    std::vector<float> row(width);
    for (int64_t c = 0; c < channels; ++c) row[c] = static_cast<float>(value(c));
    for (int64_t i = channels; i < width; ++i) row[i] = row[i - channels];
    return row;
  }
};

// Sums `width` columns of a piece; `rest` values are left over at its end. Four rows at a time, so that the
// sums are loaded and stored a quarter as often.
template <int sums, typename Term>
TIKHONOV_INLINE void columns(int64_t count, int64_t width, float* const (&out)[sums], Term term) {
  const int64_t rows = count / width;
  int64_t row = 0;
  for (; row + 4 <= rows; row += 4) {
    const int64_t at = row * width;
    for (int64_t i = 0; i < width; ++i) {
      float total[sums];
      for (int s = 0; s < sums; ++s) total[s] = out[s][i];
      for (int r = 0; r < 4; ++r) {
        float own[sums];
        term(at + r * width + i, i, own);
        for (int s = 0; s < sums; ++s) total[s] += own[s];
      }
      for (int s = 0; s < sums; ++s) out[s][i] = total[s];
    }
  }
  for (int64_t at = row * width; at < count; at += width) {
    const int64_t end = std::min(width, count - at);
    for (int64_t i = 0; i < end; ++i) {
      float own[sums];
      term(at + i, i, own);
      for (int s = 0; s < sums; ++s) out[s][i] += own[s];
    }
  }
}

template <typename T>
struct Sum {
  static TIKHONOV_INLINE void run(const T* xs, int64_t count, int64_t width, float* TIKHONOV_NO_ALIAS sum) {
    float* const out[1] = {sum};
    columns<1>(count, width, out, [=](int64_t at, int64_t, float* own) TIKHONOV_LAMBDA { own[0] = widen(xs[at]); });
  }
};

template <typename T>
struct Deviation {
  static TIKHONOV_INLINE void run(const T* xs, int64_t count, int64_t width, const float* TIKHONOV_NO_ALIAS mean,
                                  float* TIKHONOV_NO_ALIAS sum) {
    float* const out[1] = {sum};
    columns<1>(count, width, out, [=](int64_t at, int64_t i, float* own) TIKHONOV_LAMBDA {
      const float away = widen(xs[at]) - mean[i];
      own[0] = away * away;
    });
  }
};

// y = relu(scale x + shift + addend)
template <typename T, bool relu, bool added>
struct Apply {
  static TIKHONOV_INLINE void run(const T* TIKHONOV_NO_ALIAS xs, const T* TIKHONOV_NO_ALIAS addend, T* TIKHONOV_NO_ALIAS ys,
                                  int64_t count, int64_t width, const float* TIKHONOV_NO_ALIAS scale,
                                  const float* TIKHONOV_NO_ALIAS shift) {
    for (int64_t at = 0; at < count; at += width) {
      const int64_t end = std::min(width, count - at);
      for (int64_t i = 0; i < end; ++i) {
        float y = widen(xs[at + i]) * scale[i] + shift[i];
        if (added) y += widen(addend[at + i]);
        if (relu) y = y < 0 ? 0 : y;
        narrow(y, ys + at + i);
      }
    }
  }
};

// The sums of dz and of dz (x - mean), where dz is the gradient of the ReLU's input: zero where its result was.
template <typename T, bool relu>
struct GradientSums {
  static TIKHONOV_INLINE void run(const T* TIKHONOV_NO_ALIAS dys, const T* TIKHONOV_NO_ALIAS xs, int64_t count, int64_t width,
                                  const float* TIKHONOV_NO_ALIAS mean, const float* TIKHONOV_NO_ALIAS scale,
                                  const float* TIKHONOV_NO_ALIAS shift, float* TIKHONOV_NO_ALIAS sum,
                                  float* TIKHONOV_NO_ALIAS product) {
    float* const out[2] = {sum, product};
    columns<2>(count, width, out, [=](int64_t at, int64_t i, float* own) TIKHONOV_LAMBDA {
      const float x = widen(xs[at]);
      float dz = widen(dys[at]);
      if (relu) dz = x * scale[i] + shift[i] <= 0 ? 0 : dz;
      own[0] = dz;
      own[1] = dz * (x - mean[i]);
    });
  }
};

// dx = scale (dz - offset - slope (x - mean))
template <typename T, bool relu>
struct InputGradient {
  static TIKHONOV_INLINE void run(const T* TIKHONOV_NO_ALIAS dys, const T* TIKHONOV_NO_ALIAS xs, T* TIKHONOV_NO_ALIAS dxs,
                                  int64_t count, int64_t width, const float* TIKHONOV_NO_ALIAS mean,
                                  const float* TIKHONOV_NO_ALIAS scale, const float* TIKHONOV_NO_ALIAS shift,
                                  const float* TIKHONOV_NO_ALIAS offset, const float* TIKHONOV_NO_ALIAS slope) {
    for (int64_t at = 0; at < count; at += width) {
      const int64_t end = std::min(width, count - at);
      for (int64_t i = 0; i < end; ++i) {
        const float x = widen(xs[at + i]);
        float dz = widen(dys[at + i]);
        if (relu) dz = x * scale[i] + shift[i] <= 0 ? 0 : dz;
        narrow(scale[i] * (dz - offset[i] - slope[i] * (x - mean[i])), dxs + at + i);
      }
    }
  }
};

template <typename T>
T* memory(const at::Tensor& tensor) {
  return tensor.defined() ? static_cast<T*>(tensor.data_ptr()) : nullptr;
}

// f(value of the memory's type) for float32 and bfloat16 tensors.
template <typename F>
void by_kind(const at::Tensor& xs, F&& f) {
  if (xs.scalar_type() == at::kBFloat16) {
    f(uint16_t{});
  } else {
    f(float{});
  }
}

at::Tensor factor(const at::Tensor& weight, int64_t channels, double otherwise) {
  return weight.defined() ? weight.detach() : at::full({channels}, otherwise, at::kFloat);
}

// Mean and variance of each channel, both by pieces whose own means are exact, joined in double.
template <typename T>
void statistics(const Rows& rows, const T* xs, double* mean, double* variance) {
  const int64_t channels = rows.channels, pieces = rows.pieces();
  std::vector<float> means(pieces * channels), squares(pieces * channels);
  rows.each([&](int64_t piece, int64_t first, int64_t count) {
    float* own_mean = means.data() + piece * channels;
    float* own_square = squares.data() + piece * channels;
    std::vector<float> sum(rows.width);
    simd<Sum<T>>(xs + first, count, rows.width, sum.data());
    rows.fold(sum.data(), own_mean);
    const float pixels = static_cast<float>(count / channels);
    for (int64_t c = 0; c < channels; ++c) own_mean[c] /= pixels;
    const std::vector<float> centre = rows.repeated([&](int64_t c) { return own_mean[c]; });
    std::fill(sum.begin(), sum.end(), 0.f);
    simd<Deviation<T>>(xs + first, count, rows.width, static_cast<const float*>(centre.data()), sum.data());
    rows.fold(sum.data(), own_square);
  });
  std::fill_n(mean, channels, 0.0);
  std::fill_n(variance, channels, 0.0);
  double before = 0;
  for (int64_t piece = 0; piece < pieces; ++piece) {
    const double pixels = static_cast<double>(std::min(rows.piece, rows.values - piece * rows.piece) / channels);
    const double all = before + pixels;
    for (int64_t c = 0; c < channels; ++c) {
      const double away = means[piece * channels + c] - mean[c];
      mean[c] += away * (pixels / all);
      variance[c] += squares[piece * channels + c] + away * away * (before * pixels / all);
    }
    before = all;
  }
  for (int64_t c = 0; c < channels; ++c) variance[c] /= before;
}

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

using Optional = std::optional<at::Tensor>;

struct Normalize : torch::autograd::Function<Normalize> {
  static at::Tensor forward(AutogradContext* context, const at::Tensor& xs, const Optional& some_addend,
                            const Optional& some_weight, const Optional& some_bias, at::Tensor running_mean,
                            at::Tensor running_var, double momentum, double eps, bool relu) {
    const at::Tensor addend = some_addend.value_or(at::Tensor()), weight = some_weight.value_or(at::Tensor()),
                     bias = some_bias.value_or(at::Tensor());
    const Rows rows(xs);
    const int64_t channels = rows.channels;
    const double pixels = static_cast<double>(rows.values / channels);
    std::vector<double> mean(channels), variance(channels);
    at::Tensor ys = at::empty_like(xs);
    // Per channel: mean, inverse deviation.
    at::Tensor saved = at::empty({2, channels}, at::kFloat);
    float* means = saved.data_ptr<float>();
    float* inverse = means + channels;
    by_kind(xs, [&](auto kind) {
      using T = decltype(kind);
      statistics(rows, memory<const T>(xs), mean.data(), variance.data());
      float* kept_mean = running_mean.data_ptr<float>();
      float* kept_var = running_var.data_ptr<float>();
      for (int64_t c = 0; c < channels; ++c) {
        means[c] = static_cast<float>(mean[c]);
        inverse[c] = static_cast<float>(1 / std::sqrt(variance[c] + eps));
        const double unbiased = variance[c] * pixels / (pixels - 1);
        kept_mean[c] = static_cast<float>(momentum * mean[c] + (1 - momentum) * kept_mean[c]);
        kept_var[c] = static_cast<float>(momentum * unbiased + (1 - momentum) * kept_var[c]);
      }
      const auto [scale, shift] = line(rows, saved, weight, bias);
      const bool added = addend.defined();
      rows.each([&](int64_t, int64_t first, int64_t count) {
        const T* x = memory<const T>(xs) + first;
        const T* other = added ? memory<const T>(addend) + first : nullptr;
        T* y = memory<T>(ys) + first;
        const float* a = scale.data();
        const float* b = shift.data();
        if (added && relu) simd<Apply<T, true, true>>(x, other, y, count, rows.width, a, b);
        if (added && !relu) simd<Apply<T, false, true>>(x, other, y, count, rows.width, a, b);
        if (!added && relu) simd<Apply<T, true, false>>(x, other, y, count, rows.width, a, b);
        if (!added && !relu) simd<Apply<T, false, false>>(x, other, y, count, rows.width, a, b);
      });
    });
    // Without an addend the sign of the result follows from xs; else the result itself is kept, as the next
    // layer does.
    context->save_for_backward({xs, weight, bias, saved, addend.defined() && relu ? ys : at::Tensor()});
    context->saved_data["added"] = addend.defined();
    context->saved_data["relu"] = relu;
    return ys;
  }

  static variable_list backward(AutogradContext* context, variable_list gradients) {
    TORCH_CHECK(!at::GradMode::is_enabled(), "batch norm with ReLU has no second derivative");
    const auto kept = context->get_saved_variables();
    const at::Tensor &xs = kept[0], &weight = kept[1], &bias = kept[2], &saved = kept[3], &ys = kept[4];
    const bool added = context->saved_data["added"].toBool(), relu = context->saved_data["relu"].toBool();
    at::Tensor dys = gradients[0].to(xs.scalar_type()).contiguous(at::MemoryFormat::ChannelsLast);
    // contiguous() leaves ambiguous strides alone, such as those of one channel or one pixel: the memory is
    // the same.
    const Rows rows(xs);
    const int64_t channels = rows.channels, pieces = rows.pieces();
    const float* means = saved.data_ptr<float>();
    const float* inverse = means + channels;
    const auto [scale, shift] = line(rows, saved, weight, bias);
    const std::vector<float> mean = rows.repeated([&](int64_t c) { return means[c]; });
    at::Tensor dxs = at::empty_like(xs);
    at::Tensor dzs = added && relu ? at::empty_like(xs) : dys;
    std::vector<float> sums(pieces * 2 * channels);
    by_kind(xs, [&](auto kind) {
      using T = decltype(kind);
      rows.each([&](int64_t piece, int64_t first, int64_t count) {
        std::vector<float> own(2 * rows.width);
        float* sum = own.data();
        float* product = sum + rows.width;
        const T* dy = memory<const T>(dys) + first;
        const T* x = memory<const T>(xs) + first;
        const float *m = mean.data(), *a = scale.data(), *b = shift.data();
        if (added && relu) {
          // This is the gradient of the addend too.
          T* dz = memory<T>(dzs) + first;
          simd<ReluBackward<T>>(dy, memory<const T>(ys) + first, dz, count);
          // The piece is still in the cache.
          dy = dz;
        }
        if (relu && !added) {
          simd<GradientSums<T, true>>(dy, x, count, rows.width, m, a, b, sum, product);
        } else {
          simd<GradientSums<T, false>>(dy, x, count, rows.width, m, a, b, sum, product);
        }
        float* out = sums.data() + piece * 2 * channels;
        rows.fold(sum, out);
        rows.fold(product, out + channels);
      });
    });
    at::Tensor dweight = at::empty({channels}, at::kFloat), dbias = at::empty({channels}, at::kFloat);
    std::vector<double> total(2 * channels);
    for (int64_t piece = 0; piece < pieces; ++piece)
      for (int64_t i = 0; i < 2 * channels; ++i) total[i] += sums[piece * 2 * channels + i];
    const double pixels = static_cast<double>(rows.values / channels);
    for (int64_t c = 0; c < channels; ++c) {
      dbias.data_ptr<float>()[c] = static_cast<float>(total[c]);
      dweight.data_ptr<float>()[c] = static_cast<float>(total[channels + c] * inverse[c]);
    }
    const std::vector<float> offset = rows.repeated([&](int64_t c) { return total[c] / pixels; });
    const std::vector<float> slope = rows.repeated(
        [&](int64_t c) { return total[channels + c] * static_cast<double>(inverse[c]) * inverse[c] / pixels; });
    by_kind(xs, [&](auto kind) {
      using T = decltype(kind);
      rows.each([&](int64_t, int64_t first, int64_t count) {
        const T* dz = memory<const T>(dzs) + first;
        const T* x = memory<const T>(xs) + first;
        T* dx = memory<T>(dxs) + first;
        const float *m = mean.data(), *a = scale.data(), *b = shift.data(), *o = offset.data(), *s = slope.data();
        if (relu && !added) {
          simd<InputGradient<T, true>>(dz, x, dx, count, rows.width, m, a, b, o, s);
        } else {
          simd<InputGradient<T, false>>(dz, x, dx, count, rows.width, m, a, b, o, s);
        }
      });
    });
    const at::Tensor none;
    return {dxs, added ? dzs : none, weight.defined() ? dweight : none, bias.defined() ? dbias : none,
            none, none, none, none, none};
  }

  // scale = weight / deviation and shift = bias - mean scale, along a row.
  static std::pair<std::vector<float>, std::vector<float>> line(const Rows& rows, const at::Tensor& saved,
                                                                const at::Tensor& weight, const at::Tensor& bias) {
    const at::Tensor ws = factor(weight, rows.channels, 1), bs = factor(bias, rows.channels, 0);
    const float *mean = saved.data_ptr<float>(), *inverse = mean + rows.channels;
    const float *w = ws.data_ptr<float>(), *b = bs.data_ptr<float>();
    return {rows.repeated([&](int64_t c) { return w[c] * inverse[c]; }),
            rows.repeated([&](int64_t c) { return b[c] - mean[c] * (w[c] * inverse[c]); })};
  }
};

bool is_float(const at::Tensor* tensor) {
  return !tensor || (tensor->device().is_cpu() && tensor->scalar_type() == at::kFloat && tensor->is_contiguous());
}

}  // namespace

extern "C" {

// *out = relu(batch_norm(xs) + addend), and updates the running statistics; null, and nothing done, for an
// input that these kernels do not support. addend, weight and bias may be null.
char* tikhonov_batch_norm(const at::Tensor* xs, const at::Tensor* addend, const at::Tensor* weight, const at::Tensor* bias,
                          const at::Tensor* running_mean, const at::Tensor* running_var, double momentum, double eps, bool relu,
                          at::Tensor** out) {
  return guarded([&] {
    *out = nullptr;
    const auto fits = [](const at::Tensor& images) {
      const bool kind = images.scalar_type() == at::kFloat || images.scalar_type() == at::kBFloat16;
      return images.device().is_cpu() && kind && images.dim() == 4 && images.is_contiguous(at::MemoryFormat::ChannelsLast);
    };
    if (!fits(*xs) || xs->numel() / std::max<int64_t>(xs->size(1), 1) < 2) return;
    if (addend && !(fits(*addend) && addend->sizes() == xs->sizes() && addend->scalar_type() == xs->scalar_type())) return;
    if (!is_float(weight) || !is_float(bias) || !is_float(running_mean) || !is_float(running_var)) return;
    const auto optional = [](const at::Tensor* tensor) { return tensor ? Optional(*tensor) : std::nullopt; };
    *out = new at::Tensor(Normalize::apply(*xs, optional(addend), optional(weight), optional(bias), *running_mean, *running_var,
                                           momentum, eps, relu));
  });
}

}  // extern "C"
