// The parts of a convolution by Winograd's method: tiles, their transforms, and the products between them.
// The six interpolation points of F(4, 3) are 0, 2/3, -2/3, 3/2, -3/2 and infinity.

#pragma once

#include <algorithm>

#include "kernels/simd.h"

namespace {

// An output tile is 4x4, an input tile 6x6, a transformed tile 6x6: the products are of 36 matrices (planes).
constexpr int64_t kOut = 4, kIn = 6, kPlanes = kIn * kIn, kTaps = 9;
// Rows of a product that are computed at once, and terms that are summed before they are added to the others.
constexpr int64_t kRows = 6, kDepth = 128;

constexpr double kNear = 2.0 / 3, kFar = 3.0 / 2;

// The transforms along one side, for values `step` apart. kNear * kFar = 1 saves multiplications.
template <typename V>
struct Side {
  static constexpr float a = kNear, b = kFar, aa = kNear * kNear, bb = kFar * kFar, both = kNear * kNear + kFar * kFar;

  // B' d: six inputs.
  static TIKHONOV_INLINE void of_input(const V* d, V* out, int step) {
    const V d0 = d[0], d1 = d[step], d2 = d[2 * step], d3 = d[3 * step], d4 = d[4 * step], d5 = d[5 * step];
    const V near = d4 - bb * d2, near_odd = a * d3 - b * d1;
    const V far = d4 - aa * d2, far_odd = b * d3 - a * d1;
    out[0] = d0 - both * d2 + d4;
    out[step] = near + near_odd;
    out[2 * step] = near - near_odd;
    out[3 * step] = far + far_odd;
    out[4 * step] = far - far_odd;
    out[5 * step] = d1 - both * d3 + d5;
  }

  // A' m: six values to four outputs.
  static TIKHONOV_INLINE void to_output(const V* m, V* out, int step, int out_step) {
    const V near = m[step] + m[2 * step], near_odd = m[step] - m[2 * step];
    const V far = m[3 * step] + m[4 * step], far_odd = m[3 * step] - m[4 * step];
    out[0] = m[0] + near + far;
    out[out_step] = a * near_odd + b * far_odd;
    out[2 * out_step] = aa * near + bb * far;
    out[3 * out_step] = (a * aa) * near_odd + (b * bb) * far_odd + m[5 * step];
  }

  // A d: four gradients of outputs to six values.
  static TIKHONOV_INLINE void of_gradient(const V* d, V* out, int step, int out_step) {
    const V d0 = d[0], d1 = d[step], d2 = d[2 * step], d3 = d[3 * step];
    const V near = d0 + aa * d2, near_odd = a * d1 + (a * aa) * d3;
    const V far = d0 + bb * d2, far_odd = b * d1 + (b * bb) * d3;
    out[0] = d0;
    out[out_step] = near + near_odd;
    out[2 * out_step] = near - near_odd;
    out[3 * out_step] = far + far_odd;
    out[4 * out_step] = far - far_odd;
    out[5 * out_step] = d3;
  }

  static constexpr float near_scale = 1 / (2 * kNear * kNear * (kNear * kNear - kFar * kFar));
  static constexpr float far_scale = 1 / (2 * kFar * kFar * (kFar * kFar - kNear * kNear));

  // G g: three weights to six values.
  static TIKHONOV_INLINE void of_weight(const V* g, V* out, int step, int out_step) {
    const V g0 = g[0], g1 = g[step], g2 = g[2 * step];
    const V near = (g0 + aa * g2) * near_scale, near_odd = (a * near_scale) * g1;
    const V far = (g0 + bb * g2) * far_scale, far_odd = (b * far_scale) * g1;
    out[0] = g0;
    out[out_step] = near + near_odd;
    out[2 * out_step] = near - near_odd;
    out[3 * out_step] = far + far_odd;
    out[4 * out_step] = far - far_odd;
    out[5 * out_step] = g2;
  }

  // G' s: six values to the gradients of three weights.
  static TIKHONOV_INLINE void to_weight(const V* s, V* out, int step, int out_step) {
    const V near = (s[step] + s[2 * step]) * near_scale, near_odd = (s[step] - s[2 * step]) * near_scale;
    const V far = (s[3 * step] + s[4 * step]) * far_scale, far_odd = (s[3 * step] - s[4 * step]) * far_scale;
    out[0] = s[0] + near + far;
    out[out_step] = a * near_odd + b * far_odd;
    out[2 * out_step] = aa * near + bb * far + s[5 * step];
  }
};

// A matrix of `rows` rows whose columns are stored in panels, a few vectors wide, so that the product reads
// contiguous memory.
struct Panels {
  int64_t rows;
  int64_t lanes;
  int64_t vectors;

  Panels(int64_t rows, int64_t columns, int64_t lanes)
      : rows(rows), lanes(lanes), vectors((columns + lanes - 1) / lanes) {}

  // Vectors of a panel: with kRows rows they fill the registers.
  int64_t wide() const { return lanes == 16 ? 4 : 2; }
  int64_t count() const { return (vectors + wide() - 1) / wide(); }
  int64_t width(int64_t panel) const { return lanes * std::min(wide(), vectors - panel * wide()); }
  int64_t start(int64_t panel) const { return panel * wide() * lanes * rows; }
  // Where a vector of a row lies in its plane.
  int64_t at(int64_t row, int64_t vector) const {
    const int64_t panel = vector / wide();
    return start(panel) + row * width(panel) + vector % wide() * lanes;
  }
  // The distance between two planes. The odd 16 floats keep the 36 values of a place out of the same cache set.
  int64_t size() const { return rows * vectors * lanes + 16; }
};

// Images [N, H, W, C] in 4x4 tiles of the result of their convolution, or of their own pixels.
struct Tiles {
  int64_t height, width, channels;
  // Tiles per image.
  int64_t down, across;

  int64_t per_image() const { return down * across; }

  // Pointers to the pixels of a square of `side` that begins `before` pixels above and left of the tile;
  // `outside` for pixels outside the image.
  template <int64_t side, typename T>
  TIKHONOV_INLINE void locate(T* images, int64_t tile, int64_t before, T* outside, T** pixels) const {
    const int64_t image = tile / per_image(), within = tile % per_image();
    const int64_t top = within / across * kOut - before, left = within % across * kOut - before;
    for (int64_t i = 0; i < side; ++i) {
      const int64_t y = top + i;
      const bool has_row = y >= 0 && y < height;
      T* row = images + (image * height + (has_row ? y : 0)) * width * channels;
      for (int64_t j = 0; j < side; ++j) {
        const int64_t x = left + j;
        pixels[i * side + j] = has_row && x >= 0 && x < width ? row + x * channels : outside;
      }
    }
  }
};

// The first channel of a vector; where the channels do not fill the last vector, it overlaps its neighbour.
TIKHONOV_INLINE int64_t first(int64_t vector, int64_t lanes, int64_t channels) {
  return std::min(vector * lanes, channels - lanes);
}

// B' d B of tiles [begin, end): 36 planes, `plane` apart, of rows of channels.
template <int lanes>
struct OfInput {
  static TIKHONOV_INLINE void run(const Tiles* tiles, const float* images, const float* zeros, int64_t before, int64_t begin,
                                  int64_t end, float* out, int64_t plane) {
    using V = typename Vector<lanes>::type;
    const int64_t channels = tiles->channels;
    for (int64_t tile = begin; tile < end; ++tile, out += channels) {
      const float *pixels[kPlanes], *next[kPlanes];
      tiles->locate<kIn>(images, tile, before, zeros, pixels);
      tiles->locate<kIn>(images, std::min(tile + 1, end - 1), before, zeros, next);
      for (int64_t vector = 0; vector * lanes < channels; ++vector) {
        const int64_t c = first(vector, lanes, channels);
        for (int i = 0; i < kIn; ++i)
          for (int j = 2; j < kIn; ++j) __builtin_prefetch(next[i * kIn + j] + c);
        V d[kPlanes], t[kPlanes];
        for (int j = 0; j < kIn; ++j) {
          V column[kIn];
          for (int i = 0; i < kIn; ++i) column[i] = load<V>(pixels[i * kIn + j] + c);
          V made[kIn];
          Side<V>::of_input(column, made, 1);
          for (int i = 0; i < kIn; ++i) t[i * kIn + j] = made[i];
        }
        for (int i = 0; i < kIn; ++i) {
          Side<V>::of_input(t + i * kIn, d, 1);
          for (int j = 0; j < kIn; ++j) store(out + (i * kIn + j) * plane + c, d[j]);
        }
      }
    }
  }
};

// A d A' of the tiles [begin, end) of a gradient, in panels of which this is row `row` and on.
template <int lanes>
struct OfGradient {
  static TIKHONOV_INLINE void run(const Tiles* tiles, const float* images, const float* zeros, int64_t begin, int64_t end,
                                  float* out, const Panels* panels, int64_t row) {
    using V = typename Vector<lanes>::type;
    const int64_t channels = tiles->channels, plane = panels->size();
    for (int64_t tile = begin; tile < end; ++tile, ++row) {
      const float *pixels[kOut * kOut], *next[kOut * kOut];
      tiles->locate<kOut>(images, tile, 0, zeros, pixels);
      tiles->locate<kOut>(images, std::min(tile + 1, end - 1), 0, zeros, next);
      for (int64_t vector = 0; vector < panels->vectors; ++vector) {
        for (int i = 0; i < kOut * kOut; ++i) __builtin_prefetch(next[i] + vector * lanes);
        float* to = out + panels->at(row, vector);
        V t[kIn * kOut], made[kIn];
        const int64_t rest = channels - vector * lanes;
        for (int j = 0; j < kOut; ++j) {
          V column[kOut];
          for (int i = 0; i < kOut; ++i) {
            const float* from = pixels[i * kOut + j] + vector * lanes;
            if (rest >= lanes) {
              column[i] = load<V>(from);
            } else {
              float some[lanes] = {};
              memcpy(some, from, rest * sizeof(float));
              column[i] = load<V>(some);
            }
          }
          Side<V>::of_gradient(column, made, 1, 1);
          for (int i = 0; i < kIn; ++i) t[i * kOut + j] = made[i];
        }
        for (int i = 0; i < kIn; ++i) {
          Side<V>::of_gradient(t + i * kOut, made, 1, 1);
          for (int j = 0; j < kIn; ++j) store(to + (i * kIn + j) * plane, made[j]);
        }
      }
    }
  }
};

// A' m A of the tiles [begin, end), for the channels [from, from + width): planes `plane` apart, rows of
// `width`.
template <int lanes>
struct ToOutput {
  static TIKHONOV_INLINE void run(const Tiles* tiles, float* images, float* sink, int64_t begin, int64_t end, const float* in,
                                  int64_t plane, int64_t width, int64_t from, const float* bias) {
    using V = typename Vector<lanes>::type;
    const int64_t channels = tiles->channels, count = std::min(width, channels - from);
    for (int64_t tile = begin; tile < end; ++tile, in += width) {
      float *pixels[kOut * kOut], *next[kOut * kOut];
      tiles->locate<kOut>(images, tile, 0, sink, pixels);
      tiles->locate<kOut>(images, std::min(tile + 1, end - 1), 0, sink, next);
      for (int64_t c = 0; c < count; c += lanes) {
        for (int i = 0; i < kOut * kOut; ++i) __builtin_prefetch(next[i] + from + c, 1);
        V t[kOut * kIn], made[kOut];
        for (int j = 0; j < kIn; ++j) {
          V column[kIn];
          for (int i = 0; i < kIn; ++i) column[i] = load<V>(in + (i * kIn + j) * plane + c);
          Side<V>::to_output(column, made, 1, 1);
          for (int i = 0; i < kOut; ++i) t[i * kIn + j] = made[i];
        }
        const bool whole = c + lanes <= count;
        V shift = {};
        if (bias && whole) {
          shift = load<V>(bias + from + c);
        } else if (bias) {
          memcpy(&shift, bias + from + c, (count - c) * sizeof(float));
        }
        for (int i = 0; i < kOut; ++i) {
          Side<V>::to_output(t + i * kIn, made, 1, 1);
          for (int j = 0; j < kOut; ++j) {
            float* to = pixels[i * kOut + j] + from + c;
            const V y = made[j] + shift;
            if (whole) {
              store(to, y);
            } else {
              memcpy(to, &y, (count - c) * sizeof(float));
            }
          }
        }
      }
    }
  }
};

// Weights [O, C, 3, 3] seen as a matrix of 3x3 filters.
template <typename T>
struct Filters {
  T* weights;
  // Distances between filters.
  int64_t row, column;
  // Rotated by 180 degrees, for the gradient of the inputs.
  bool rotated;

  TIKHONOV_INLINE T* at(int64_t r, int64_t c) const { return weights + r * row + c * column; }
  Filters from(int64_t c) const { return {at(0, c), row, column, rotated}; }
};

// G g G' of the rows [begin, end) of a matrix of filters of so many columns.
template <int lanes>
struct OfWeight {
  static TIKHONOV_INLINE void run(const Filters<const float>* filters, int64_t columns, int64_t begin, int64_t end, float* out,
                                  const Panels* panels) {
    using V = typename Vector<lanes>::type;
    const int64_t plane = panels->size();
    for (int64_t vector = 0; vector < panels->vectors; ++vector) {
      const int64_t width = panels->width(vector / panels->wide());
      const int64_t count = std::min<int64_t>(lanes, columns - vector * lanes);
      float* to = out + panels->at(begin, vector);
      for (int64_t row = begin; row < end; ++row, to += width) {
        float taps[kTaps][lanes] = {};
        for (int64_t lane = 0; lane < count; ++lane) {
          const float* filter = filters->at(row, vector * lanes + lane);
          for (int k = 0; k < kTaps; ++k) taps[k][lane] = filter[filters->rotated ? kTaps - 1 - k : k];
        }
        V g[kTaps], t[kIn * 3], made[kIn];
        for (int k = 0; k < kTaps; ++k) g[k] = load<V>(taps[k]);
        for (int j = 0; j < 3; ++j) Side<V>::of_weight(g + j, t + j, 3, 3);
        for (int i = 0; i < kIn; ++i) {
          Side<V>::of_weight(t + i * 3, made, 1, 1);
          for (int j = 0; j < kIn; ++j) store(to + (i * kIn + j) * plane, made[j]);
        }
      }
    }
  }
};

// G' s G: the gradient of such rows.
template <int lanes>
struct ToWeight {
  static TIKHONOV_INLINE void run(const float* in, const Panels* panels, int64_t columns, int64_t begin, int64_t end,
                                  const Filters<float>* filters) {
    using V = typename Vector<lanes>::type;
    const int64_t plane = panels->size();
    for (int64_t vector = 0; vector < panels->vectors; ++vector) {
      const int64_t width = panels->width(vector / panels->wide());
      const int64_t count = std::min<int64_t>(lanes, columns - vector * lanes);
      const float* from = in + panels->at(begin, vector);
      for (int64_t row = begin; row < end; ++row, from += width) {
        V s[kPlanes], t[3 * kIn], made[3];
        for (int k = 0; k < kPlanes; ++k) s[k] = load<V>(from + k * plane);
        for (int j = 0; j < kIn; ++j) Side<V>::to_weight(s + j, t + j, kIn, kIn);
        float taps[kTaps][lanes];
        for (int i = 0; i < 3; ++i) {
          Side<V>::to_weight(t + i * kIn, made, 1, 1);
          for (int j = 0; j < 3; ++j) store(taps[i * 3 + j], made[j]);
        }
        for (int64_t lane = 0; lane < count; ++lane) {
          float* filter = filters->at(row, vector * lanes + lane);
          for (int k = 0; k < kTaps; ++k) filter[k] = taps[k][lane];
        }
      }
    }
  }
};

// c[r, :] (+)= sum over k of a[r, k] b[k, :] for kRows rows and one panel of columns.
template <int lanes, int vectors>
TIKHONOV_INLINE void block(const float* a, int64_t a_row, int64_t a_step, const float* b, int64_t depth, float* c, int64_t c_row,
                           bool add) {
  using V = typename Vector<lanes>::type;
  V sum[kRows][vectors];
  for (int r = 0; r < kRows; ++r)
    for (int v = 0; v < vectors; ++v) sum[r][v] = V{};
  for (int64_t k = 0; k < depth; ++k) {
    V line[vectors];
    for (int v = 0; v < vectors; ++v) line[v] = load<V>(b + (k * vectors + v) * lanes);
    for (int r = 0; r < kRows; ++r) {
      const float value = a[r * a_row + k * a_step];
      for (int v = 0; v < vectors; ++v) sum[r][v] += value * line[v];
    }
  }
  for (int r = 0; r < kRows; ++r)
    for (int v = 0; v < vectors; ++v) {
      float* to = c + r * c_row + v * lanes;
      store(to, add ? load<V>(to) + sum[r][v] : sum[r][v]);
    }
}

// The product of kRows * `blocks` rows and a panel of `width` columns, whose rows in c are `width` long. Long
// sums are split into shorter ones, which round less.
template <int lanes>
struct Multiply {
  static TIKHONOV_INLINE void run(const float* a, int64_t a_row, int64_t a_step, int64_t blocks, const float* b, int64_t width,
                                  int64_t depth, float* c, bool add) {
    for (int64_t i = 0; i < blocks; ++i, a += kRows * a_row, c += kRows * width) {
      for (int64_t k = 0; k < depth; k += kDepth) {
        const int64_t some = std::min(kDepth, depth - k);
        const float *left = a + k * a_step, *right = b + k * width;
        const bool on = add || k > 0;
        switch (width / lanes) {
          case 1: block<lanes, 1>(left, a_row, a_step, right, some, c, width, on); break;
          case 2: block<lanes, 2>(left, a_row, a_step, right, some, c, width, on); break;
          case 3: if (lanes == 16) block<lanes, 3>(left, a_row, a_step, right, some, c, width, on); break;
          default: if (lanes == 16) block<lanes, 4>(left, a_row, a_step, right, some, c, width, on);
        }
      }
    }
  }
};

struct Add {
  static TIKHONOV_INLINE void run(const float* TIKHONOV_NO_ALIAS xs, float* TIKHONOV_NO_ALIAS sum, int64_t count) {
    for (int64_t i = 0; i < count; ++i) sum[i] += xs[i];
  }
};

}  // namespace
