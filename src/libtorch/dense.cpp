// A linear map of a small batch with the ReLU after it on the CPU, one operation of autograd. For few rows libtorch spends more
// time on finding its operations, and on repacking the weights for MKL, than on multiplying.

#include <ATen/ATen.h>
#include <ATen/EmptyTensor.h>
#include <ATen/Parallel.h>
#include <ATen/autocast_mode.h>
#include <torch/csrc/autograd/function.h>
#include <torch/csrc/autograd/functions/utils.h>
#include <torch/csrc/autograd/saved_variable.h>

#if defined(__GNUC__) && !defined(__clang__)
// ISO C++ forbids GCC to make one instruction of a product and a sum; the kernels below are nothing else.
#pragma GCC optimize("fp-contract=fast")
#endif

#include "guarded.h"
#include "simd.h"

namespace {

// From so many rows on MKL, which repacks its factors, is as fast.
constexpr int64_t MOST_ROWS = 64;
// Multiplications that are worth a thread.
constexpr int64_t GRAIN = 1 << 22;

#if defined(__GNUC__)

// A matrix in row order, its rows `stride` apart.
template <typename T>
struct Rows {
  T* at;
  int64_t stride;
};

// `height` rows of `width` x 16 columns of C = A B, the sums over `depth` in registers and in order: no partition of C changes
// a bit of it.
template <int height, int width>
TIKHONOV_INLINE void tile(Rows<const float> a, Rows<const float> b, Rows<float> c, int64_t depth) {
  Lanes sums[height][width] = {};
  for (int64_t k = 0; k < depth; ++k) {
    Lanes row[width];
    for (int v = 0; v < width; ++v) row[v] = *reinterpret_cast<const Lanes*>(b.at + k * b.stride + v * LANES);
    for (int r = 0; r < height; ++r)
      for (int v = 0; v < width; ++v) sums[r][v] += a.at[r * a.stride + k] * row[v];
  }
  for (int r = 0; r < height; ++r)
    for (int v = 0; v < width; ++v) *reinterpret_cast<Lanes*>(c.at + r * c.stride + v * LANES) = sums[r][v];
}

template <int height, int width>
TIKHONOV_INLINE void tiles(Rows<const float> a, Rows<const float> b, Rows<float> c, int64_t& row, int64_t rows, int64_t column,
                           int64_t depth) {
  for (; row + height <= rows; row += height)
    tile<height, width>({a.at + row * a.stride, a.stride}, {b.at + column, b.stride}, {c.at + row * c.stride + column, c.stride}, depth);
}

// C = A B for at least 16 columns: A [rows, depth], B [depth, columns]. As many sums at once as there are registers.
template <bool many>
struct Product {
  static TIKHONOV_INLINE void run(Rows<const float> a, Rows<const float> b, Rows<float> c, int64_t rows, int64_t columns,
                                  int64_t depth) {
    int64_t column = 0;
    if (many) {
      for (; column + 2 * LANES <= columns; column += 2 * LANES) {
        int64_t row = 0;
        tiles<8, 2>(a, b, c, row, rows, column, depth);
        tiles<2, 2>(a, b, c, row, rows, column, depth);
        tiles<1, 2>(a, b, c, row, rows, column, depth);
      }
    }
    while (column < columns) {
      // The last columns once more with those before them, where they do not fill a vector.
      column = std::min(column, columns - LANES);
      int64_t row = 0;
      if (many) tiles<8, 1>(a, b, c, row, rows, column, depth);
      tiles<4, 1>(a, b, c, row, rows, column, depth);
      tiles<1, 1>(a, b, c, row, rows, column, depth);
      column += LANES;
    }
  }
};

void product(Rows<const float> a, Rows<const float> b, Rows<float> c, int64_t rows, int64_t columns, int64_t depth) {
  if (simd_lanes() == 16) {
    simd<Product<true>>(a, b, c, rows, columns, depth);
  } else {
    simd<Product<false>>(a, b, c, rows, columns, depth);
  }
}

// f(first, number) for all of `count` things that cost `each` multiplications, in multiples of `step`, on the threads that they
// are worth.
template <typename F>
void share(int64_t count, int64_t each, int64_t step, F&& f) {
  const int64_t steps = (count + step - 1) / step;
  const int64_t grain = std::max<int64_t>(1, GRAIN / std::max<int64_t>(1, each * step));
  at::parallel_for(0, steps, grain, [&](int64_t begin, int64_t end) {
    f(begin * step, std::min(count, end * step) - begin * step);
  });
}

struct Scratch {
  std::unique_ptr<float[]> memory;

  explicit Scratch(int64_t values) : memory(new float[values]) {}
  float* get() const { return memory.get(); }
};

int64_t padded(int64_t values) { return (values + LANES - 1) / LANES * LANES; }

at::Tensor empty(at::IntArrayRef size) { return at::Tensor(at::detail::empty_cpu(size, at::kFloat)); }

// to = from', in squares that stay in the cache.
void turn(Rows<const float> from, Rows<float> to, int64_t rows, int64_t columns) {
  for (int64_t left = 0; left < columns; left += LANES)
    for (int64_t row = 0; row < rows; ++row)
      for (int64_t k = left; k < std::min(left + LANES, columns); ++k) to.at[k * to.stride + row] = from.at[row * from.stride + k];
}

// ys = relu(xs weight' + bias)
at::Tensor through(const at::Tensor& xs, const at::Tensor& weight, const at::Tensor& bias, bool relu) {
  const int64_t rows = xs.size(0), in = xs.size(1), out = weight.size(0), wide = padded(rows);
  const at::Tensor ys = empty({rows, out});
  const float *x = xs.const_data_ptr<float>(), *w = weight.const_data_ptr<float>();
  const float* shift = bias.defined() ? bias.const_data_ptr<float>() : nullptr;
  float* y = ys.mutable_data_ptr<float>();
  // A vector holds one column of the batch, so that the weights are read as they lie.
  const Scratch turned(in * wide), sums(out * wide);
  if (wide > rows) std::fill_n(turned.get(), in * wide, 0.f);
  turn({x, in}, {turned.get(), wide}, rows, in);
  share(out, in * wide, 16, [&](int64_t first, int64_t count) {
    product({w + first * in, in}, {turned.get(), wide}, {sums.get() + first * wide, wide}, count, wide, in);
    for (int64_t row = 0; row < rows; ++row) {
      for (int64_t o = first; o < first + count; ++o) {
        const float value = sums.get()[o * wide + row] + (shift ? shift[o] : 0);
        y[row * out + o] = relu && value < 0 ? 0 : value;
      }
    }
  });
  return ys;
}

// C = A B whatever the number of columns.
void multiply(Rows<const float> a, Rows<const float> b, Rows<float> c, int64_t rows, int64_t columns, int64_t depth) {
  if (columns < LANES) {
    for (int64_t row = 0; row < rows; ++row) {
      for (int64_t column = 0; column < columns; ++column) {
        float sum = 0;
        for (int64_t k = 0; k < depth; ++k) sum += a.at[row * a.stride + k] * b.at[k * b.stride + column];
        c.at[row * c.stride + column] = sum;
      }
    }
  } else if (rows >= columns) {
    share(rows, columns * depth, 8, [&](int64_t first, int64_t count) {
      product({a.at + first * a.stride, a.stride}, b, {c.at + first * c.stride, c.stride}, count, columns, depth);
    });
  } else {
    share(columns / LANES, rows * depth * LANES, 2, [&](int64_t first, int64_t count) {
      // What is left over goes with the last.
      const int64_t end = (first + count == columns / LANES) ? columns : (first + count) * LANES;
      product(a, {b.at + first * LANES, b.stride}, {c.at + first * LANES, c.stride}, rows, end - first * LANES, depth);
    });
  }
}

using torch::autograd::Edge;
using torch::autograd::SavedVariable;
using torch::autograd::variable_list;

struct Dense : torch::autograd::Node {
  SavedVariable xs, weight, ys;
  bool relu = false;

  variable_list apply(variable_list&& gradients) override {
    const std::lock_guard<std::mutex> lock(mutex_);
    variable_list out(3);
    if (!gradients[0].defined()) return out;
    const at::Tensor x = xs.unpack(), w = weight.unpack();
    const at::Tensor y = relu ? ys.unpack(shared_from_this()) : at::Tensor();
    const bool wanted[] = {task_should_compute_output(0), task_should_compute_output(1), task_should_compute_output(2)};
    if (at::GradMode::is_enabled()) {
      // Who wants a second derivative gets it from libtorch's operations.
      const at::Tensor dz = relu ? at::threshold_backward(gradients[0], y, 0) : gradients[0];
      if (wanted[0]) out[0] = dz.mm(w);
      if (wanted[1]) out[1] = dz.t().mm(x);
      if (wanted[2]) out[2] = dz.sum(0);
      return out;
    }
    const at::Tensor dys = gradients[0].contiguous();
    const int64_t rows = x.size(0), in = x.size(1), width = w.size(0);
    const float* dy = dys.const_data_ptr<float>();
    const float* result = relu ? y.const_data_ptr<float>() : nullptr;
    // The gradient before the ReLU, and turned.
    const Scratch own(relu ? rows * width : 0), turned(rows * width);
    if (relu) simd<Undo<float>>(dy, result, own.get(), rows * width);
    const float* dz = relu ? own.get() : dy;
    turn({dz, width}, {turned.get(), rows}, rows, width);
    if (wanted[0]) {
      out[0] = empty({rows, in});
      multiply({dz, width}, {w.const_data_ptr<float>(), in}, {out[0].mutable_data_ptr<float>(), in}, rows, in, width);
    }
    if (wanted[1]) {
      out[1] = empty({width, in});
      multiply({turned.get(), rows}, {x.const_data_ptr<float>(), in}, {out[1].mutable_data_ptr<float>(), in}, width, in, rows);
    }
    if (wanted[2]) {
      out[2] = empty({width});
      float* sums = out[2].mutable_data_ptr<float>();
      std::fill_n(sums, width, 0.f);
      for (int64_t row = 0; row < rows; ++row)
        for (int64_t o = 0; o < width; ++o) sums[o] += dz[row * width + o];
    }
    return out;
  }

  void release_variables() override {
    const std::lock_guard<std::mutex> lock(mutex_);
    xs.reset_data();
    weight.reset_data();
    ys.reset_data();
  }

  std::string name() const override { return "DenseBackward"; }
};

bool fits(const at::Tensor& tensor, int64_t dims) {
  return tensor.device().is_cpu() && tensor.layout() == at::kStrided && tensor.scalar_type() == at::kFloat && tensor.dim() == dims &&
         tensor.is_contiguous() && tensor.numel() > 0;
}

#endif

}  // namespace

extern "C" {

// *out = relu(xs weight' + bias), the ReLU as asked for; null where these kernels do not take the input, and nothing has been
// done. bias may be null.
char* tikhonov_dense(const at::Tensor* xs, const at::Tensor* weight, const at::Tensor* bias, bool relu, at::Tensor** out) {
  return guarded([&] {
    *out = nullptr;
#if defined(__GNUC__)
    if (!fits(*xs, 2) || !fits(*weight, 2) || (bias && !fits(*bias, 1)) || xs->size(0) > MOST_ROWS) return;
    if (xs->size(1) != weight->size(1) || (bias && bias->size(0) != weight->size(0))) return;
    if (at::autocast::is_autocast_enabled(at::kCPU)) return;
    const at::Tensor shift = bias ? *bias : at::Tensor();
    at::Tensor ys = through(*xs, *weight, shift, relu);
    if (torch::autograd::compute_requires_grad(*xs, *weight, shift)) {
      const auto node = std::shared_ptr<Dense>(new Dense(), torch::autograd::deleteNode);
      node->set_next_edges(torch::autograd::collect_next_edges(*xs, *weight, shift));
      node->relu = relu;
      torch::autograd::set_history(ys, node);
      node->xs = SavedVariable(*xs, false);
      node->weight = SavedVariable(*weight, false);
      if (relu) node->ys = SavedVariable(ys, true);
    }
    *out = new at::Tensor(std::move(ys));
#endif
  });
}

}  // extern "C"
