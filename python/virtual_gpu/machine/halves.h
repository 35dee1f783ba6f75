// float16, bfloat16 and tf32 as PTX computes with them: bits in, bits out, every operation rounded once.

#pragma once

#include <bit>
#include <cmath>
#include <cstdint>

#include "floats.h"

namespace virtual_gpu {

struct Float16 {
  static constexpr int exponent_bits = 5, fraction_bits = 10;
};
struct BFloat16 {
  static constexpr int exponent_bits = 8, fraction_bits = 7;
};

// Exact.
template <class Half>
float widen(uint16_t bits) {
  if constexpr (Half::exponent_bits == 8) {
    return std::bit_cast<float>(static_cast<uint32_t>(bits) << 16);
  } else {
    // Subnormal halves are normal floats, and stay what they are where the CPU flushes subnormal floats.
    const uint32_t sign = static_cast<uint32_t>(bits & 0x8000) << 16, field = bits & 0x7fff;
    const uint32_t subnormal = std::bit_cast<uint32_t>(static_cast<float>(static_cast<int32_t>(field)) * 0x1p-24f);
    const uint32_t normal = (field << 13) + (112u << 23), other = 0x7f800000 | field << 13;
    return std::bit_cast<float>(sign | (field < 0x0400 ? subnormal : field < 0x7c00 ? normal : other));
  }
}

// A number of any type that is exact in double, or was rounded to odd in it, rounded once.
template <class Half>
uint16_t to_half(double value, Round round = Round::nearest_even) {
  return static_cast<uint16_t>(narrow<Half::exponent_bits, Half::fraction_bits>(value, round));
}

template <class Half>
uint16_t fused_half(uint16_t a, uint16_t b, uint16_t c) {
  return to_half<Half>(sum_to_odd(static_cast<double>(widen<Half>(a)) * widen<Half>(b), widen<Half>(c)));
}

template <class Half>
uint16_t sum_half(uint16_t a, uint16_t b) {
  return to_half<Half>(sum_to_odd(widen<Half>(a), widen<Half>(b)));
}

template <class Half>
uint16_t difference_half(uint16_t a, uint16_t b) {
  return to_half<Half>(sum_to_odd(widen<Half>(a), -static_cast<double>(widen<Half>(b))));
}

template <class Half>
uint16_t product_half(uint16_t a, uint16_t b) {
  return to_half<Half>(static_cast<double>(widen<Half>(a)) * widen<Half>(b));
}

template <class Half>
uint16_t smaller_half(uint16_t a, uint16_t b, bool propagates) {
  return to_half<Half>(smaller(widen<Half>(a), widen<Half>(b), propagates));
}

template <class Half>
uint16_t larger_half(uint16_t a, uint16_t b, bool propagates) {
  return to_half<Half>(larger(widen<Half>(a), widen<Half>(b), propagates));
}

inline uint16_t negated_half(uint16_t bits) { return bits ^ 0x8000; }
inline uint16_t absolute_half(uint16_t bits) { return bits & 0x7fff; }

// An operation on each half of words: f16x2, bf16x2.
template <class Operation, class... Words>
uint32_t packed(Operation operation, Words... words) {
  const uint16_t low = operation(static_cast<uint16_t>(words)...);
  const uint16_t high = operation(static_cast<uint16_t>(words >> 16)...);
  return low | static_cast<uint32_t>(high) << 16;
}

// tf32: a float whose last 13 bits count for nothing. A tensor core does not look at them.
inline uint32_t to_tf32(double value, Round round) { return narrow<8, 10>(value, round) << 13; }
inline float read_tf32(uint32_t bits) { return std::bit_cast<float>(bits & 0xffffe000); }

}  // namespace virtual_gpu
