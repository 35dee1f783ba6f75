// PTX's approximate functions, as wrong as their documentation lets them be.
//
// A result lies within the error that the PTX ISA gives (section "Floating Point Instructions", cited beside each) and,
// where another number of the format does too, is not the nearest one: which side it lies on depends on the argument's
// bits. Code that relies on more than is documented shows, and the same bits come every time. Results that the ISA
// tabulates (zeros, infinities, NaN) are those of its tables. Subnormal numbers are flushed (.ftz) where the CPU does
// it.

#pragma once

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>
#include <numbers>

#include "floats.h"
#include "halves.h"

namespace virtual_gpu {

template <int ExponentBits, int FractionBits>
double widened(uint32_t bits) {
  if constexpr (ExponentBits == 11) return std::bit_cast<double>(static_cast<uint64_t>(bits) << (52 - FractionBits));
  if constexpr (ExponentBits == 8) return std::bit_cast<float>(bits << (23 - FractionBits));
  return widen<Float16>(static_cast<uint16_t>(bits));
}

// The distance of neighbours in a format at the number nearest to a value.
template <int ExponentBits, int FractionBits>
double ulp(double value) {
  const double nearest =
      widened<ExponentBits, FractionBits>(narrow<ExponentBits, FractionBits>(value, Round::nearest_even));
  return std::ldexp(1.0, std::max(std::ilogb(nearest), 2 - (1 << (ExponentBits - 1))) - FractionBits);
}

// The bits of a number at most `error` from `exact`, the farthest on its side of it, and not the nearest if it can be.
// `seed`, of the argument's bits, chooses the side.
template <int ExponentBits, int FractionBits>
uint32_t astray(double exact, double error, uint32_t seed) {
  const auto rounded = [](double value, Round round) { return narrow<ExponentBits, FractionBits>(value, round); };
  const uint32_t nearest = rounded(exact, Round::nearest_even);
  if (exact == 0 || !std::isfinite(widened<ExponentBits, FractionBits>(nearest))) return nearest;
  const bool above = (seed * 0x9e3779b1u) >> 31;
  for (const bool side : {above, !above}) {
    const uint32_t candidate = side ? rounded(exact + error, Round::down) : rounded(exact - error, Round::up);
    const bool within = std::fabs(widened<ExponentBits, FractionBits>(candidate) - exact) <= error;
    if (within && candidate != nearest) return candidate;
  }
  return nearest;
}

inline float astray(double exact, double error, float argument) {
  return as_flushed(std::bit_cast<float>(astray<8, 23>(exact, error, std::bit_cast<uint32_t>(argument))));
}

// rcp.approx.f32: "the maximum ulp error is 1 across the full range of inputs".
inline float approximate_reciprocal(float a) {
  const double exact = 1.0 / static_cast<double>(a);
  return astray(exact, ulp<8, 23>(exact), a);
}

// rcp.approx.ftz.f64: 1 / a of the upper 32 bits of a, in the upper 32 bits of the result. The ISA gives no error: 1
// ulp of that format here.
inline double approximate_reciprocal(double a) {
  const uint32_t upper = static_cast<uint32_t>(std::bit_cast<uint64_t>(a) >> 32), sign = upper & 0x80000000;
  const bool subnormal = (upper & 0x7ff00000) == 0;
  const double exact = 1.0 / widened<11, 20>(subnormal ? sign : upper);
  const uint32_t result = std::isnan(a) ? 0x7fffffff : astray<11, 20>(exact, ulp<11, 20>(exact), upper);
  return widened<11, 20>(result & 0x7ff00000 ? result : sign);
}

// div.full.f32: "the maximum ulp error is 2 across the full range of inputs".
inline float full_range_quotient(float a, float b) {
  const double exact = static_cast<double>(a) / b;
  return astray(exact, 2 * ulp<8, 23>(exact),
                std::bit_cast<float>(std::bit_cast<uint32_t>(a) ^ (std::bit_cast<uint32_t>(b) >> 1)));
}

// div.approx.f32: a * (1 / b); "for |b| in [2^-126, 2^126] the maximum ulp error is 2"; above, NaN for infinite a and
// else a zero. Below the ISA is silent: the product as float has it.
inline float approximate_quotient(float a, float b) {
  const float size = std::fabs(b);
  if (size > 0x1p126f && std::isfinite(b)) {
    if (!std::isfinite(a)) return canonical_nan<float>();
    return std::signbit(a) == std::signbit(b) ? 0.0f : -0.0f;
  }
  return size < 0x1p-126f ? a * (1.0f / b) : full_range_quotient(a, b);
}

// sqrt.approx.f32: "the maximum relative error over the entire positive finite floating-point range is 2^-23".
inline float approximate_root(float a) {
  const double exact = std::sqrt(static_cast<double>(a));
  return astray(exact, 0x1p-23 * exact, a);
}

// rsqrt.approx.f32: "the maximum relative error over the entire positive finite floating-point range is 2^-22.9".
inline float approximate_reciprocal_root(float a) {
  const double exact = 1.0 / std::sqrt(static_cast<double>(a));
  return astray(exact, std::exp2(-22.9) * exact, a);
}

// rsqrt.approx.ftz.f64: as rcp.approx.ftz.f64.
inline double approximate_reciprocal_root(double a) {
  const uint32_t upper = static_cast<uint32_t>(std::bit_cast<uint64_t>(a) >> 32);
  const bool subnormal = (upper & 0x7ff00000) == 0;
  const double exact = 1.0 / std::sqrt(widened<11, 20>(subnormal ? upper & 0x80000000 : upper));
  return widened<11, 20>(std::isnan(a) ? 0x7fffffff : astray<11, 20>(exact, ulp<11, 20>(exact), upper));
}

// sin.approx.f32, cos.approx.f32: "maximum absolute error 2^-20.5 in [-2pi, 2pi], 2^-14.7 in [-100pi, 100pi]", none
// guaranteed outside, where the latter is kept here.
inline double angle_error(float a) { return std::exp2(std::fabs(a) <= 2 * std::numbers::pi ? -20.5 : -14.7); }
inline float approximate_sine(float a) { return astray(std::sin(static_cast<double>(a)), angle_error(a), a); }
inline float approximate_cosine(float a) {
  return a == 0 ? 1.0f : astray(std::cos(static_cast<double>(a)), angle_error(a), a);
}

// lg2.approx.f32: "the maximum absolute error is 2^-22 when the input is in (0.5, 2), the maximum relative error 2^-22
// outside".
inline float approximate_logarithm(float a) {
  const double exact = std::log2(static_cast<double>(a));
  const double error = 0x1p-22 * (a > 0.5f && a < 2.0f ? 1.0 : std::fabs(exact));
  if (exact != 0) return astray(exact, error, a);
  return static_cast<float>(error);  // the logarithm of 1, which an absolute error does not spare
}

// ex2.approx.f32: "the maximum ulp error is 2 from the correctly rounded result across the full range of inputs".
inline float approximate_exponential(float a) {
  const double exact = std::exp2(static_cast<double>(a));
  return a == 0 ? 1.0f : astray(exact, 2 * ulp<8, 23>(exact), a);
}

// tanh.approx.f32: "the maximum relative error over the entire floating point range is 2^-11"; subnormal numbers as
// they come.
inline float approximate_tangent(float a) {
  if (std::isinf(a) || std::fabs(a) < std::numeric_limits<float>::min())
    return std::isinf(a) ? std::copysign(1.0f, a) : a;
  const double exact = std::tanh(static_cast<double>(a));
  return astray(exact, 0x1p-11 * std::fabs(exact), a);
}

// ex2.approx: "maximum relative error 2^-9.9" for .f16, "2^-7" for .bf16, which is always flushed (.ftz).
template <class Half>
uint16_t approximate_exponential_half(uint16_t a) {
  const double value = widen<Half>(a), exact = std::exp2(value),
               relative = std::exp2(Half::exponent_bits == 5 ? -9.9 : -7.0);
  if (value == 0) return to_half<Half>(1.0);
  const uint32_t bits = astray<Half::exponent_bits, Half::fraction_bits>(exact, relative * exact, a);
  return static_cast<uint16_t>(std::is_same_v<Half, BFloat16> && bits < 0x80 ? 0 : bits);
}

// tanh.approx: "maximum absolute error 2^-10.987" for .f16, "2^-8" for .bf16.
template <class Half>
uint16_t approximate_tangent_half(uint16_t a) {
  const double value = widen<Half>(a), exact = std::tanh(value),
               error = std::exp2(Half::exponent_bits == 5 ? -10.987 : -8.0);
  if (std::isinf(value)) return to_half<Half>(exact);
  return static_cast<uint16_t>(astray<Half::exponent_bits, Half::fraction_bits>(exact, error, a));
}

}  // namespace virtual_gpu
