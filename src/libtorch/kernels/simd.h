// Loops that are compiled once for each instruction set (AVX-512, AVX2, baseline), one of which is chosen at
// run time.

#pragma once

#include <ATen/Version.h>

#include <cstdint>
#include <cstring>
#include <string>

#if defined(__GNUC__)
#define TIKHONOV_INLINE inline __attribute__((always_inline))
#define TIKHONOV_LAMBDA __attribute__((always_inline))
#define TIKHONOV_NO_ALIAS __restrict__
#else
#define TIKHONOV_INLINE inline
#define TIKHONOV_LAMBDA
#define TIKHONOV_NO_ALIAS
#endif

namespace {

#if defined(__x86_64__) && defined(__GNUC__)

template <typename Kernel, typename... Args>
__attribute__((target("avx512f,avx512bw,avx512vl,avx512dq,prefer-vector-width=512"))) void on_avx512(Args... args) {
  Kernel::run(args...);
}

template <typename Kernel, typename... Args>
__attribute__((target("avx2,fma"))) void on_avx2(Args... args) {
  Kernel::run(args...);
}

#else

template <typename Kernel, typename... Args>
void on_avx512(Args...) {}

template <typename Kernel, typename... Args>
void on_avx2(Args...) {}

#endif

// The number of floats in libtorch's widest vectors: those of this CPU, or narrower ones by
// ATEN_CPU_CAPABILITY.
inline int simd_lanes() {
  static const int lanes = [] {
    const std::string capability = at::get_cpu_capability();
    return capability == "AVX512" ? 16 : capability == "AVX2" ? 8 : 4;
  }();
  return lanes;
}

// Kernel<lanes>::run(args...), which must be TIKHONOV_INLINE, with the widest vectors that this CPU has.
template <template <int> class Kernel, typename... Args>
void by_lanes(Args... args) {
  switch (simd_lanes()) {
    case 16: return on_avx512<Kernel<16>>(args...);
    case 8: return on_avx2<Kernel<8>>(args...);
    default: return Kernel<4>::run(args...);
  }
}

// The same for a kernel that the compiler vectorises.
template <typename Kernel, typename... Args>
void simd(Args... args) {
  switch (simd_lanes()) {
    case 16: return on_avx512<Kernel>(args...);
    case 8: return on_avx2<Kernel>(args...);
    default: return Kernel::run(args...);
  }
}

#if defined(__GNUC__)

template <int lanes>
struct Vector {
  typedef float type __attribute__((vector_size(lanes * sizeof(float))));
};

template <typename V>
TIKHONOV_INLINE V load(const float* at) {
  V value;
  memcpy(&value, at, sizeof value);
  return value;
}

template <typename V>
TIKHONOV_INLINE void store(float* at, const V& value) {
  memcpy(at, &value, sizeof value);
}

#endif

// float32 and bfloat16 (as its bits) to float32 and back, rounded to nearest even; NaN stays NaN.
TIKHONOV_INLINE float widen(float value) { return value; }

TIKHONOV_INLINE float widen(uint16_t bits) {
  const uint32_t wide = static_cast<uint32_t>(bits) << 16;
  float value;
  memcpy(&value, &wide, sizeof value);
  return value;
}

TIKHONOV_INLINE void narrow(float value, float* out) { *out = value; }

TIKHONOV_INLINE void narrow(float value, uint16_t* out) {
  uint32_t bits;
  memcpy(&bits, &value, sizeof bits);
  const uint32_t rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
  *out = static_cast<uint16_t>(value != value ? 0x7fc0 : rounded);
}

// The gradient of a ReLU's input: zero where its result is zero.
template <typename T>
struct ReluBackward {
  static TIKHONOV_INLINE void run(const T* TIKHONOV_NO_ALIAS dys, const T* TIKHONOV_NO_ALIAS ys, T* TIKHONOV_NO_ALIAS dzs,
                                  int64_t count) {
    for (int64_t i = 0; i < count; ++i) dzs[i] = widen(ys[i]) <= 0 ? T{0} : dys[i];
  }
};

}  // namespace
