// Loops that the compiler turns into vector instructions, compiled once for each instruction set and chosen at run time.

#pragma once

#include <cstdint>
#include <cstring>

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

// Whether this CPU has 32 registers of 16 floats.
inline bool has_avx512() {
  static const bool has = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                          __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
  return has;
}

// Kernel::run(args...), which must be TIKHONOV_INLINE, with the widest vectors that this CPU has.
template <typename Kernel, typename... Args>
void simd(Args... args) {
  static const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  if (has_avx512()) {
    on_avx512<Kernel>(args...);
  } else if (avx2) {
    on_avx2<Kernel>(args...);
  } else {
    Kernel::run(args...);
  }
}

#else

inline bool has_avx512() { return false; }

template <typename Kernel, typename... Args>
void simd(Args... args) {
  Kernel::run(args...);
}

#endif

#if defined(__GNUC__)
constexpr int64_t LANES = 16;
// A vector of the widest kind, or as many narrower ones as hold the same.
using Lanes = float __attribute__((vector_size(LANES * sizeof(float)), aligned(sizeof(float)), may_alias));
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

}  // namespace
