// 3x3 convolutions of stride 1 on the CPU by minimal filtering, F(4x4, 3x3) of Lavin and Gray (2016): a
// quarter of the multiplications, for the forward pass and both gradients, channels-last float32. The points
// are 0, 2/3, -2/3, 3/2, -3/2 and infinity instead of the usual 1 and 2 (Barabasz et al. 2020), which brings
// the rounding error close to that of a direct convolution. Every function returns nullptr, or the text of the exception.

#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <ATen/autocast_mode.h>
#include <torch/csrc/autograd/custom_function.h>

#include <tuple>

#include "guarded.h"
#include "kernels/winograd.h"

namespace {

int64_t round_up(int64_t value, int64_t unit) { return (value + unit - 1) / unit * unit; }

// Working memory that a thread keeps from one convolution to the next. Allocated anew each time, it would
// fragment the heap between the activations.
class Scratch {
  at::Tensor kept;

 public:
  float* take(int64_t floats) {
    if (!kept.defined() || kept.numel() < floats) {
      kept.reset();
      kept = at::empty({floats}, at::kFloat);
    }
    return kept.data_ptr<float>();
  }

  // `zeros` zeros, read for pixels outside an image, and the memory after them.
  std::pair<const float*, float*> after_zeros(int64_t zeros, int64_t floats) {
    float* start = take(round_up(zeros, 16) + floats);
    return {start, std::fill_n(start, round_up(zeros, 16), 0.f)};
  }
};

// `shared` is written by the calling thread's workers too; `own` is for one thread.
thread_local Scratch shared, own;

// The input and the result of a convolution, in tiles.
struct Pass {
  Tiles source, result;
  int64_t tiles, lanes;

  Pass(const at::Tensor& xs, int64_t out_channels, int64_t padding) : lanes(simd_lanes()) {
    const int64_t height = xs.size(2) + 2 * padding - 2, width = xs.size(3) + 2 * padding - 2;
    const int64_t down = (height + kOut - 1) / kOut, across = (width + kOut - 1) / kOut;
    source = {xs.size(2), xs.size(3), xs.size(1), down, across};
    result = {height, width, out_channels, down, across};
    tiles = xs.size(0) * down * across;
  }

  // Whether the transformed weights are larger than the transformed images; then all images are transformed at
  // once.
  bool few() const { return tiles < result.channels; }

  // Then each thread transforms its own panels of the weights, which stay in its cache.
  bool by_panels() const { return few() && Panels(1, result.channels, lanes).count() >= at::get_num_threads(); }
};

// A block of tiles is transformed, multiplied and transformed back before the next, so that it stays in a
// core's cache.
constexpr int64_t kBlockFloats = 512 * 1024 / sizeof(float);

// Convolves xs [N, C, H, W] with filters: each row is a channel of xs, each column a channel of the result.
at::Tensor convolve(const at::Tensor& xs, const Filters<const float>& filters, int64_t out_channels, const float* bias,
                    int64_t padding) {
  const Pass pass(xs, out_channels, padding);
  const int64_t in_channels = xs.size(1), tiles = pass.tiles;
  at::Tensor ys = at::empty({xs.size(0), out_channels, pass.result.height, pass.result.width}, xs.options(),
                            at::MemoryFormat::ChannelsLast);
  const float* x = xs.data_ptr<float>();
  float* y = ys.data_ptr<float>();
  const Panels panels(in_channels, out_channels, pass.lanes);
  const int64_t wide = panels.width(0), threads = at::get_num_threads();
  const auto multiply = [&](const float* in, int64_t in_plane, int64_t begin, int64_t end, const float* filter,
                            int64_t filter_plane, int64_t panel, float* out, int64_t out_plane, float* sink) {
    const int64_t width = panels.width(panel), blocks = (end - begin + kRows - 1) / kRows;
    for (int64_t plane = 0; plane < kPlanes; ++plane)
      by_lanes<Multiply>(in + plane * in_plane, in_channels, int64_t{1}, blocks, filter + plane * filter_plane, width,
                         in_channels, out + plane * out_plane, false);
    by_lanes<ToOutput>(&pass.result, y, sink, begin, end, static_cast<const float*>(out), out_plane, width, panel * wide, bias);
  };
  if (pass.by_panels()) {
    const int64_t in_plane = round_up(tiles, kRows) * in_channels + 16, out_plane = round_up(tiles, kRows) * wide + 16;
    const float* zeros;
    float* in;
    std::tie(zeros, in) = shared.after_zeros(in_channels, kPlanes * in_plane);
    at::parallel_for(0, tiles, 4, [&](int64_t begin, int64_t end) {
      by_lanes<OfInput>(&pass.source, x, zeros, padding, begin, end, in + begin * in_channels, in_plane);
    });
    at::parallel_for(0, panels.count(), 1, [&](int64_t begin, int64_t end) {
      const Panels all(in_channels, wide, pass.lanes);
      float* filter = own.take(kPlanes * (all.size() + out_plane) + out_channels);
      float* out = filter + kPlanes * all.size();
      for (int64_t panel = begin; panel < end; ++panel) {
        const Panels one(in_channels, panels.width(panel), pass.lanes);
        const Filters<const float> some = filters.from(panel * wide);
        by_lanes<OfWeight>(&some, std::min(wide, out_channels - panel * wide), int64_t{0}, in_channels, filter, &one);
        multiply(in, in_plane, 0, tiles, filter, one.size(), panel, out, out_plane, out + kPlanes * out_plane);
      }
    });
    return ys;
  }
  const float* zeros;
  float* filter;
  std::tie(zeros, filter) = shared.after_zeros(in_channels, kPlanes * panels.size());
  at::parallel_for(0, in_channels, 8, [&](int64_t begin, int64_t end) {
    by_lanes<OfWeight>(&filters, out_channels, begin, end, filter, &panels);
  });
  const int64_t fitting = kBlockFloats / (kPlanes * (in_channels + wide)) / kRows * kRows;
  const int64_t block = std::min(std::max<int64_t>(fitting, 4 * kRows), round_up((tiles + threads - 1) / threads, kRows));
  const int64_t blocks = (tiles + block - 1) / block;
  // With fewer blocks than threads the panels are divided among threads too.
  const int64_t shares = std::min(panels.count(), std::max<int64_t>(1, threads / blocks));
  at::parallel_for(0, blocks * shares, 1, [&](int64_t begin, int64_t end) {
    const int64_t in_plane = block * in_channels + 16, out_plane = block * wide + 16;
    float* in = own.take(kPlanes * (in_plane + out_plane) + out_channels);
    float* out = in + kPlanes * in_plane;
    for (int64_t item = begin; item < end; ++item) {
      const int64_t share = item % shares, tile = item / shares * block, last = std::min(tiles, tile + block);
      if (share == 0 || item == begin) by_lanes<OfInput>(&pass.source, x, zeros, padding, tile, last, in, in_plane);
      for (int64_t panel = share * panels.count() / shares; panel < (share + 1) * panels.count() / shares; ++panel)
        multiply(in, in_plane, tile, last, filter + panels.start(panel), panels.size(), panel, out, out_plane,
                 out + kPlanes * out_plane);
    }
  });
  return ys;
}

// The gradient of the weights from xs [N, C, H, W] and the gradient dys [N, O, H', W'] of the results. The
// order of every sum is independent of the number of threads.
class WeightGradient {
  const Pass pass;
  const int64_t in_channels, out_channels, padding;
  // Of each plane of the gradient: rows of input channels.
  const Panels sums;
  const float *x, *dy;
  const Filters<float> filters;

  // Tiles in planes, as they are multiplied.
  struct Block {
    const float* zeros;
    float *in, *gradients;
    int64_t in_plane;
    Panels panels;
  };

  // Rows of `count` tiles, and `more` floats after its gradients. The last group of channels of the last row
  // reads a little beyond it, into the gap between two planes.
  Block block(Scratch& scratch, int64_t count, int64_t more) const {
    const Panels panels(count, out_channels, pass.lanes);
    const int64_t in_plane = count * in_channels + 16, ins = kPlanes * in_plane;
    const auto [zeros, in] =
        scratch.after_zeros(std::max(in_channels, out_channels), ins + kPlanes * panels.size() + more);
    return {zeros, in, in + ins, in_plane, panels};
  }

  // The tiles [tile, tile + count) into the block's rows from `row` on.
  void transform(const Block& block, int64_t row, int64_t tile, int64_t count) const {
    by_lanes<OfInput>(&pass.source, x, block.zeros, padding, tile, tile + count, block.in + row * in_channels, block.in_plane);
    by_lanes<OfGradient>(&pass.result, dy, block.zeros, tile, tile + count, block.gradients, &block.panels, row);
  }

  // The contribution of `count` tiles of the block to a panel of a plane: groups of kRows rows from `group` on.
  void multiply(const Block& block, int64_t count, int64_t plane, int64_t panel, int64_t group, int64_t groups, float* sum,
                bool add) const {
    const Panels& panels = block.panels;
    const float* in = block.in + plane * block.in_plane + group * kRows;
    const float* gradients = block.gradients + plane * panels.size() + panels.start(panel);
    by_lanes<Multiply>(in, int64_t{1}, in_channels, groups, gradients, panels.width(panel), count, sum, add);
  }

  // Few tiles: all are transformed at once, then each thread computes panels of the gradient.
  void by_panels() const {
    const Block all = block(shared, pass.tiles, 0);
    at::parallel_for(0, pass.tiles, 4, [&](int64_t begin, int64_t end) { transform(all, begin, begin, end - begin); });
    at::parallel_for(0, sums.count(), 1, [&](int64_t begin, int64_t end) {
      for (int64_t panel = begin; panel < end; ++panel) {
        const Panels one(sums.rows, sums.width(panel), pass.lanes);
        float* sum = own.take(kPlanes * one.size());
        for (int64_t plane = 0; plane < kPlanes; ++plane)
          multiply(all, pass.tiles, plane, panel, 0, sums.rows / kRows, sum + plane * one.size(), false);
        const Filters<float> some = filters.from(panel * sums.width(0));
        by_lanes<ToWeight>(static_cast<const float*>(sum), &one, std::min(sums.width(0), out_channels - panel * sums.width(0)),
                           int64_t{0}, in_channels, &some);
      }
    });
  }

  // Few channels: the sums over a share of the tiles stay in a core's cache, and the shares are added at the
  // end.
  void by_shares() const {
    const int64_t row = in_channels + sums.vectors * pass.lanes, whole = kPlanes * sums.size();
    const int64_t count = std::max<int64_t>(4 * kRows, 2 * kBlockFloats / (kPlanes * row));
    const int64_t most = std::min<int64_t>(64, (pass.tiles + count - 1) / count);
    const int64_t shares = std::min(std::max<int64_t>(kShared / whole, 16), most);
    float* sum = shared.take(shares * whole);
    at::parallel_for(0, shares, 1, [&](int64_t begin, int64_t end) {
      const Block some = block(own, count, 0);
      for (int64_t share = begin; share < end; ++share) {
        const int64_t start = share * pass.tiles / shares, last = (share + 1) * pass.tiles / shares;
        for (int64_t tile = start; tile < last; tile += count) {
          const int64_t tiles = std::min(count, last - tile);
          transform(some, 0, tile, tiles);
          for (int64_t plane = 0; plane < kPlanes; ++plane)
            for (int64_t panel = 0; panel < sums.count(); ++panel)
              multiply(some, tiles, plane, panel, 0, sums.rows / kRows,
                       sum + share * whole + plane * sums.size() + sums.start(panel), tile > start);
        }
      }
    });
    at::parallel_for(0, in_channels, 4, [&](int64_t begin, int64_t end) {
      for (int64_t plane = 0; plane < kPlanes; ++plane)
        for (int64_t panel = 0; panel < sums.count(); ++panel) {
          const int64_t width = sums.width(panel);
          float* total = sum + plane * sums.size() + sums.start(panel) + begin * width;
          for (int64_t share = 1; share < shares; ++share)
            simd<Add>(static_cast<const float*>(total + share * whole), total, (end - begin) * width);
        }
      by_lanes<ToWeight>(static_cast<const float*>(sum), &sums, out_channels, begin, end, &filters);
    });
  }

  // Many tiles and channels: blocks of tiles in the shared cache, each thread sums its own planes.
  void by_planes() const {
    const int64_t fitting = std::max<int64_t>(32, kShared / (kPlanes * (in_channels + round_up(out_channels, pass.lanes))));
    const int64_t count = pass.few() ? pass.tiles : std::min(pass.tiles, fitting), groups = sums.rows / kRows;
    const Block all = block(shared, count, kPlanes * sums.size());
    float* sum = all.gradients + kPlanes * all.panels.size();
    for (int64_t tile = 0; tile < pass.tiles; tile += count) {
      const int64_t tiles = std::min(count, pass.tiles - tile);
      at::parallel_for(0, tiles, 4, [&](int64_t begin, int64_t end) { transform(all, begin, tile + begin, end - begin); });
      at::parallel_for(0, kPlanes * groups, 1, [&](int64_t begin, int64_t end) {
        while (begin < end) {
          const int64_t plane = begin / groups, group = begin % groups, some = std::min(groups - group, end - begin);
          for (int64_t panel = 0; panel < sums.count(); ++panel)
            multiply(all, tiles, plane, panel, group, some,
                     sum + plane * sums.size() + sums.start(panel) + group * kRows * sums.width(panel), tile > 0);
          begin += some;
        }
      });
    }
    at::parallel_for(0, in_channels, 8, [&](int64_t begin, int64_t end) {
      by_lanes<ToWeight>(static_cast<const float*>(sum), &sums, out_channels, begin, end, &filters);
    });
  }

  // Floats that fit into the shared cache, with room to spare.
  static constexpr int64_t kShared = 6 * 1024 * 1024 / sizeof(float);

 public:
  // weights [O, C, 3, 3] is written.
  WeightGradient(const at::Tensor& xs, const at::Tensor& dys, int64_t padding, at::Tensor& weights)
      : pass(xs, dys.size(1), padding),
        in_channels(xs.size(1)),
        out_channels(dys.size(1)),
        padding(padding),
        sums(round_up(in_channels, kRows), out_channels, pass.lanes),
        x(xs.data_ptr<float>()),
        dy(dys.data_ptr<float>()),
        filters{weights.data_ptr<float>(), kTaps, in_channels * kTaps, false} {}

  void run() const {
    if (pass.by_panels()) return by_panels();
    // Sums that fit into a core's own cache.
    const bool is_narrow = kPlanes * sums.size() <= 256 * 1024;
    return is_narrow && !pass.few() ? by_shares() : by_planes();
  }
};

// Each row of the filters is a channel of the images.
at::Tensor convolve_forward(const at::Tensor& xs, const at::Tensor& weight, const float* bias, int64_t padding) {
  const int64_t out_channels = weight.size(0), in_channels = weight.size(1);
  return convolve(xs, {weight.data_ptr<float>(), kTaps, in_channels * kTaps, false}, out_channels, bias, padding);
}

at::Tensor convolve_input_gradient(const at::Tensor& dys, const at::Tensor& weight, int64_t padding) {
  const int64_t in_channels = weight.size(1);
  return convolve(dys, {weight.data_ptr<float>(), in_channels * kTaps, kTaps, true}, in_channels, nullptr, 2 - padding);
}

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

struct Winograd : torch::autograd::Function<Winograd> {
  static at::Tensor forward(AutogradContext* context, const at::Tensor& xs, const at::Tensor& weight,
                            const std::optional<at::Tensor>& bias, int64_t padding, bool learns) {
    context->save_for_backward({xs, weight});
    // Allocated now: in the backward pass it would take the place of a freed activation and fragment the heap.
    if (learns) context->saved_data["gradient"] = at::empty_like(weight);
    context->saved_data["padding"] = padding;
    context->saved_data["bias"] = bias.has_value();
    return convolve_forward(xs, weight, bias ? bias->data_ptr<float>() : nullptr, padding);
  }

  static variable_list backward(AutogradContext* context, variable_list gradients) {
    TORCH_CHECK(!at::GradMode::is_enabled(), "a convolution by Winograd's method has no second derivative");
    const auto kept = context->get_saved_variables();
    const at::Tensor &xs = kept[0], &weight = kept[1];
    const int64_t padding = context->saved_data["padding"].toInt();
    const at::Tensor dys = gradients[0].contiguous(at::MemoryFormat::ChannelsLast);
    variable_list out(5);
    if (context->needs_input_grad(0)) out[0] = convolve_input_gradient(dys, weight, padding);
    if (context->needs_input_grad(1)) {
      auto& saved = context->saved_data["gradient"];
      out[1] = saved.isTensor() ? std::move(saved).toTensor() : at::empty_like(weight);
      context->saved_data.erase("gradient");
      WeightGradient(xs, dys, padding, out[1]).run();
    }
    if (context->saved_data["bias"].toBool()) out[2] = dys.sum(at::IntArrayRef{0, 2, 3});
    return out;
  }
};

// Whether it is faster: at most half the multiplications, and enough tiles for the cost of the transformed
// weights.
bool pays(const at::Tensor& xs, int64_t out_channels, int64_t padding) {
  if (std::min(xs.size(1), out_channels) < 16) return false;
  const Pass pass(xs, out_channels, padding);
  const int64_t pixels = pass.result.height * pass.result.width;
  return pass.tiles >= 16 && 2 * kPlanes * pass.source.per_image() <= kTaps * pixels;
}

}  // namespace

extern "C" {

// *out = the convolution of xs [N, C, H, W] with weight [O, C, 3, 3], of stride 1, plus bias [O], which may be
// null. Null, and nothing done, where libtorch's own is faster or the input is not supported.
char* tikhonov_winograd(const at::Tensor* xs, const at::Tensor* weight, const at::Tensor* bias, int64_t padding,
                        at::Tensor** out) {
  return guarded([&] {
    *out = nullptr;
    const auto fits = [](const at::Tensor& tensor, at::MemoryFormat order) {
      return tensor.device().is_cpu() && tensor.scalar_type() == at::kFloat && tensor.is_contiguous(order);
    };
    if (xs->dim() != 4 || weight->dim() != 4 || padding < 0 || padding > 2) return;
    if (xs->size(2) + 2 * padding < 3 || xs->size(3) + 2 * padding < 3) return;
    if (weight->size(2) != 3 || weight->size(3) != 3 || weight->size(1) != xs->size(1)) return;
    if (!fits(*xs, at::MemoryFormat::ChannelsLast) || !fits(*weight, at::MemoryFormat::Contiguous)) return;
    if (bias && !(fits(*bias, at::MemoryFormat::Contiguous) && bias->dim() == 1 && bias->size(0) == weight->size(0))) return;
    if (at::autocast::is_autocast_enabled(at::kCPU) || !pays(*xs, weight->size(0), padding)) return;
    const bool learns = at::GradMode::is_enabled() && weight->requires_grad();
    *out = new at::Tensor(Winograd::apply(*xs, *weight, bias ? std::optional<at::Tensor>(*bias) : std::nullopt, padding, learns));
  });
}

}  // extern "C"
