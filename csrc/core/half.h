// Half-precision storage: bfloat16 and IEEE binary16 to float and back, rounding to nearest even.
//
// A GPU has instructions for binary16; the arithmetic below gives the same bits.

#pragma once

#include <cstdint>
#include <cstring>

#include "core/scalar.h"

namespace memformer::core {

MEMFORMER_INLINE float float_of_bits(uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

MEMFORMER_INLINE uint32_t bits_of_float(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  return bits;
}

MEMFORMER_INLINE float from_bfloat16(uint16_t half) { return float_of_bits(static_cast<uint32_t>(half) << 16); }

MEMFORMER_INLINE uint16_t to_bfloat16(float value) {
  const uint32_t bits = bits_of_float(value);
  if ((bits & 0x7fffffffu) > 0x7f800000u) return static_cast<uint16_t>((bits >> 16) | 0x40u);
  return static_cast<uint16_t>((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
}

MEMFORMER_INLINE float from_float16(uint16_t half) {
#ifdef __CUDA_ARCH__
  float value;
  asm("cvt.f32.f16 %0, %1;" : "=f"(value) : "h"(half));
  return value;
#else
  const uint32_t sign = static_cast<uint32_t>(half & 0x8000u) << 16;
  const uint32_t rest = half & 0x7fffu;
  if (rest >= 0x7c00u) return float_of_bits(sign | 0x7f800000u | ((rest & 0x3ffu) << 13));
  // Scaling by 2^112 moves the exponent's bias, and makes subnormal halves normal floats.
  return float_of_bits(sign | bits_of_float(float_of_bits(rest << 13) * 0x1p112f));
#endif
}

MEMFORMER_INLINE uint16_t to_float16(float value) {
#ifdef __CUDA_ARCH__
  uint16_t half;
  asm("cvt.rn.f16.f32 %0, %1;" : "=h"(half) : "f"(value));
  return half;
#else
  const uint32_t bits = bits_of_float(value);
  const uint16_t sign = static_cast<uint16_t>((bits >> 16) & 0x8000u);
  const uint32_t rest = bits & 0x7fffffffu;
  if (rest > 0x7f800000u) return sign | 0x7e00u;
  if (rest >= 0x477ff000u) return sign | 0x7c00u;  // 65520 and above round to infinity
  if (rest < 0x38800000u) {
    // Below 2^-14 a half counts in units of 2^-24: adding 0.5 leaves the float just those bits, rounded to nearest
    // even.
    return sign | static_cast<uint16_t>(bits_of_float(float_of_bits(rest) + 0.5f) - 0x3f000000u);
  }
  const uint32_t rounded = rest + 0xfffu + ((rest >> 13) & 1u);
  return sign | static_cast<uint16_t>((rounded - 0x38000000u) >> 13);
#endif
}

}  // namespace memformer::core
