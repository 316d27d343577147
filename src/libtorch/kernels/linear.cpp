// A linear layer on a small batch with the ReLU after it on the CPU, one operation of autograd. For few rows
// libtorch spends more time on dispatching its operations, and MKL on repacking the weights, than on the
// multiplications.

#include <ATen/ATen.h>
#include <ATen/EmptyTensor.h>
#include <ATen/autocast_mode.h>
#include <torch/csrc/autograd/function.h>
#include <torch/csrc/autograd/functions/utils.h>
#include <torch/csrc/autograd/saved_variable.h>

#include <algorithm>
#include <memory>
#include <utility>

#if defined(__GNUC__) && !defined(__clang__)
// ISO C++ forbids GCC to make one instruction of a product and a sum; the kernels below are nothing else.
#pragma GCC optimize("fp-contract=fast")
#endif

#include "guarded.h"
#include "kernels/simd.h"
#include "kernels/thread_pool.h"

namespace {

// With more rows than this MKL, which repacks its factors, is as fast.
constexpr int64_t MAX_ROWS = 64;
// Multiplications that are worth another thread: about 3 us of them.
constexpr int64_t GRAIN = 1 << 18;

#if defined(__GNUC__)

// A matrix in row order, its rows `stride` apart.
template <typename T>
struct Rows {
  T* at;
  int64_t stride;
};

// A matrix or a transposed one, read value by value.
struct Strided {
  const float* at;
  int64_t row, column;
};

// `height` rows and `width` vectors of columns of C = A B. The sums over `depth` stay in registers and have a
// fixed order: how C is divided among threads changes no bit of it.
template <typename V, int height, int width>
TIKHONOV_INLINE void tile(Strided a, Rows<const float> b, Rows<float> c, int64_t depth) {
  constexpr int64_t lanes = sizeof(V) / sizeof(float);
  V sums[height][width] = {};
  for (int64_t k = 0; k < depth; ++k) {
    V row[width];
    for (int v = 0; v < width; ++v) row[v] = load<V>(b.at + k * b.stride + v * lanes);
    for (int r = 0; r < height; ++r)
      for (int v = 0; v < width; ++v) sums[r][v] += a.at[r * a.row + k * a.column] * row[v];
  }
  for (int r = 0; r < height; ++r)
    for (int v = 0; v < width; ++v) store(c.at + r * c.stride + v * lanes, sums[r][v]);
}

template <typename V, int height, int width>
TIKHONOV_INLINE void tiles(Strided a, Rows<const float> b, Rows<float> c, int64_t& row, int64_t rows, int64_t depth) {
  for (; row + height <= rows; row += height)
    tile<V, height, width>({a.at + row * a.row, a.row, a.column}, b, {c.at + row * c.stride, c.stride}, depth);
}

// C = A B for at least one vector of columns: A [rows, depth], B [depth, columns]. Computes as many sums at
// once as there are registers.
template <int lanes>
struct Product {
  static constexpr int height = lanes == 16 ? 8 : 4;

  template <int width>
  static TIKHONOV_INLINE void columns_from(int64_t column, Strided a, Rows<const float> b, Rows<float> c, int64_t rows, int64_t depth) {
    using V = typename Vector<lanes>::type;
    b.at += column;
    c.at += column;
    int64_t row = 0;
    tiles<V, height, width>(a, b, c, row, rows, depth);
    tiles<V, 2, width>(a, b, c, row, rows, depth);
    tiles<V, 1, width>(a, b, c, row, rows, depth);
  }

  static TIKHONOV_INLINE void run(Strided a, Rows<const float> b, Rows<float> c, int64_t rows, int64_t columns, int64_t depth) {
    int64_t column = 0;
    for (; column + 2 * lanes <= columns; column += 2 * lanes) columns_from<2>(column, a, b, c, rows, depth);
    // Where the last columns do not fill a vector, it is moved back and some columns are computed twice.
    for (; column < columns; column += lanes) columns_from<1>(std::min(column, columns - lanes), a, b, c, rows, depth);
  }
};

// The index, in two concatenated vectors, of the i-th value when one half of each group of 2 * half values is
// taken.
template <int half, bool upper>
constexpr int source(int i) {
  return i / half * 2 * half + i % half + (upper ? half : 0);
}

// Adds the two halves of each group of 2 * half values of a and b: one vector with groups of half the length.
template <int half, typename V, int... i>
TIKHONOV_INLINE V folded(const V& a, const V& b, std::integer_sequence<int, i...>) {
#if defined(__clang__)
  return __builtin_shufflevector(a, b, source<half, false>(i)...) + __builtin_shufflevector(a, b, source<half, true>(i)...);
#else
  typedef int32_t Places __attribute__((vector_size(sizeof(V))));
  return __builtin_shuffle(a, b, Places{source<half, false>(i)...}) + __builtin_shuffle(a, b, Places{source<half, true>(i)...});
#endif
}

// The horizontal sums of `lanes` vectors, as one vector.
template <int half, typename V>
TIKHONOV_INLINE V totals(V* sums) {
  constexpr int lanes = sizeof(V) / sizeof(float);
  for (int i = 0; i < half; ++i) sums[i] = folded<half>(sums[2 * i], sums[2 * i + 1], std::make_integer_sequence<int, lanes>());
  if constexpr (half > 1) return totals<half / 2>(sums);
  return sums[0];
}

// The columns [first, first + count) of C = relu(A B' + shift), A and B read along their rows: A [rows,
// depth], B [columns, depth].
template <int lanes>
struct Dots {
  // height * width sums: as many as a vector has values.
  static constexpr int height = 4, width = lanes / height;

  // `real_rows` rows and `real_columns` columns, from the starts of A and B on; where they do not fill a tile,
  // the last row or column is repeated.
  static TIKHONOV_INLINE void tile(Rows<const float> a, Rows<const float> b, const float* shift, bool relu, Rows<float> c,
                                   int64_t real_rows, int64_t real_columns, int64_t depth) {
    using V = typename Vector<lanes>::type;
    const float *as[height], *bs[width];
    for (int r = 0; r < height; ++r) as[r] = a.at + std::min<int64_t>(r, real_rows - 1) * a.stride;
    for (int v = 0; v < width; ++v) bs[v] = b.at + std::min<int64_t>(v, real_columns - 1) * b.stride;
    V sums[lanes] = {};
    int64_t k = 0;
    for (; k + lanes <= depth; k += lanes) {
      V row[height];
      for (int r = 0; r < height; ++r) row[r] = load<V>(as[r] + k);
      for (int v = 0; v < width; ++v) {
        const V column = load<V>(bs[v] + k);
        for (int r = 0; r < height; ++r) sums[r * width + v] += row[r] * column;
      }
    }
    float all[lanes];
    store(all, totals<lanes / 2>(sums));
    for (int64_t r = 0; r < real_rows; ++r) {
      for (int64_t v = 0; v < real_columns; ++v) {
        float sum = all[r * width + v];
        for (int64_t rest = k; rest < depth; ++rest) sum += as[r][rest] * bs[v][rest];
        if (shift) sum += shift[v];
        c.at[r * c.stride + v] = relu && sum < 0 ? 0 : sum;
      }
    }
  }

  static TIKHONOV_INLINE void run(Rows<const float> a, Rows<const float> b, const float* shift, bool relu, Rows<float> c, int64_t rows,
                                  int64_t first, int64_t count, int64_t depth) {
    for (int64_t column = first; column < first + count; column += width) {
      for (int64_t row = 0; row < rows; row += height) {
        tile({a.at + row * a.stride, a.stride}, {b.at + column * b.stride, b.stride}, shift ? shift + column : nullptr, relu,
             {c.at + row * c.stride + column, c.stride}, std::min<int64_t>(height, rows - row),
             std::min<int64_t>(width, first + count - column), depth);
      }
    }
  }
};

// f(first, number) over `count` items that cost `each` multiplications, in multiples of `step`, on as many
// threads as the work is worth.
template <typename F>
void share(int64_t count, int64_t each, int64_t step, F&& f) {
  const int64_t steps = (count + step - 1) / step, worth = count * each / GRAIN;
  const int64_t chunks = tikhonov::num_chunks(std::min(steps, worth));
  tikhonov::parallel_for(chunks, [&](int64_t chunk) {
    const int64_t begin = chunk * steps / chunks * step, end = (chunk + 1) * steps / chunks * step;
    f(begin, std::min(count, end) - begin);
  });
}

struct Scratch {
  std::unique_ptr<float[]> memory;

  explicit Scratch(int64_t values) : memory(new float[values]) {}
  float* get() const { return memory.get(); }
};

at::Tensor empty(at::IntArrayRef size) { return at::Tensor(at::detail::empty_cpu(size, at::kFloat)); }

// ys = relu(xs weight' + bias)
at::Tensor forward(const at::Tensor& xs, const at::Tensor& weight, const at::Tensor& bias, bool relu) {
  const int64_t rows = xs.size(0), in = xs.size(1), out = weight.size(0);
  const at::Tensor ys = empty({rows, out});
  const Rows<const float> x = {xs.const_data_ptr<float>(), in}, w = {weight.const_data_ptr<float>(), in};
  const Rows<float> y = {ys.mutable_data_ptr<float>(), out};
  const float* shift = bias.defined() ? bias.const_data_ptr<float>() : nullptr;
  share(out, in * rows, 4, [&](int64_t first, int64_t count) { by_lanes<Dots>(x, w, shift, relu, y, rows, first, count, in); });
  return ys;
}

// C = A B for any number of columns.
void multiply(Strided a, Rows<const float> b, Rows<float> c, int64_t rows, int64_t columns, int64_t depth) {
  if (columns < simd_lanes()) {
    for (int64_t row = 0; row < rows; ++row) {
      for (int64_t column = 0; column < columns; ++column) {
        float sum = 0;
        for (int64_t k = 0; k < depth; ++k) sum += a.at[row * a.row + k * a.column] * b.at[k * b.stride + column];
        c.at[row * c.stride + column] = sum;
      }
    }
  } else if (rows >= columns) {
    share(rows, columns * depth, 8, [&](int64_t first, int64_t count) {
      by_lanes<Product>(Strided{a.at + first * a.row, a.row, a.column}, b, Rows<float>{c.at + first * c.stride, c.stride}, count, columns,
                        depth);
    });
  } else {
    // Two of the widest vectors; the remainder goes with the last step.
    constexpr int64_t step = 32;
    const int64_t steps = std::max<int64_t>(1, columns / step);
    share(steps, rows * depth * step, 1, [&](int64_t first, int64_t count) {
      const int64_t begin = first * step, end = first + count == steps ? columns : (first + count) * step;
      by_lanes<Product>(a, Rows<const float>{b.at + begin, b.stride}, Rows<float>{c.at + begin, c.stride}, rows, end - begin, depth);
    });
  }
}

using torch::autograd::Edge;
using torch::autograd::SavedVariable;
using torch::autograd::variable_list;

struct LinearNode : torch::autograd::Node {
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
      // For a second derivative the gradient is computed by libtorch's differentiable operations.
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
    // The gradient of the ReLU's input.
    const Scratch own(relu ? rows * width : 0);
    if (relu) simd<ReluBackward<float>>(dy, result, own.get(), rows * width);
    const float* dz = relu ? own.get() : dy;
    if (wanted[0]) {
      out[0] = empty({rows, in});
      multiply({dz, width, 1}, {w.const_data_ptr<float>(), in}, {out[0].mutable_data_ptr<float>(), in}, rows, in, width);
    }
    if (wanted[1]) {
      out[1] = empty({width, in});
      multiply({dz, 1, width}, {x.const_data_ptr<float>(), in}, {out[1].mutable_data_ptr<float>(), in}, width, in, rows);
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

  std::string name() const override { return "FusedLinearBackward"; }
};

bool fits(const at::Tensor& tensor, int64_t dims) {
  return tensor.device().is_cpu() && tensor.layout() == at::kStrided && tensor.scalar_type() == at::kFloat && tensor.dim() == dims &&
         tensor.is_contiguous() && tensor.numel() > 0;
}

#endif

}  // namespace

extern "C" {

// *out = relu(xs weight' + bias), with the ReLU where `relu`; null, and nothing done, for an input that these
// kernels do not support. bias may be null.
char* tikhonov_linear(const at::Tensor* xs, const at::Tensor* weight, const at::Tensor* bias, bool relu, at::Tensor** out) {
  return guarded([&] {
    *out = nullptr;
#if defined(__GNUC__)
    if (!fits(*xs, 2) || !fits(*weight, 2) || (bias && !fits(*bias, 1)) || xs->size(0) > MAX_ROWS) return;
    if (xs->size(1) != weight->size(1) || (bias && bias->size(0) != weight->size(0))) return;
    if (at::autocast::is_autocast_enabled(at::kCPU)) return;
    const at::Tensor shift = bias ? *bias : at::Tensor();
    at::Tensor ys = forward(*xs, *weight, shift, relu);
    if (torch::autograd::compute_requires_grad(*xs, *weight, shift)) {
      const auto node = std::shared_ptr<LinearNode>(new LinearNode(), torch::autograd::deleteNode);
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
