// What the CPU does not do to floating-point numbers as PTX does: rounding to narrow formats, minima, integers,
// saturation.
//
// Arithmetic of float and double is the CPU's own, in the rounding mode and with the flushing that its control register
// is set to. What follows holds in each of these modes, and needs a compiler that keeps to IEEE 754 (-ffp-contract=off,
// no -ffast-math).

#pragma once

#include <bit>
#include <cmath>
#include <cstdint>
#include <limits>
#include <type_traits>

namespace virtual_gpu {

enum class Round : uint8_t { nearest_even, toward_zero, down, up, nearest_away };  // .rn .rz .rm .rp .rna

// The bits of a value rounded to a binary format, subnormals included. NaN becomes the format's canonical one, all ones
// but the sign. Beyond the greatest number: infinity, or that number where the mode leads away from infinity.
template <int ExponentBits, int FractionBits>
constexpr uint32_t narrow(double value, Round round) {
  constexpr int least = 2 - (1 << (ExponentBits - 1));  // exponent of the least normal number
  constexpr uint64_t infinity = uint64_t{(1u << ExponentBits) - 1} << FractionBits;
  constexpr uint64_t infinite = 0x7ff0000000000000;
  const uint64_t bits = std::bit_cast<uint64_t>(value), magnitude = bits & ~(uint64_t{1} << 63);
  const bool negative = bits >> 63;
  const uint32_t sign = negative ? 1u << (ExponentBits + FractionBits) : 0;
  if (magnitude > infinite) return (1u << (ExponentBits + FractionBits)) - 1;
  if (magnitude == infinite) return sign | static_cast<uint32_t>(infinity);

  const int field = static_cast<int>(magnitude >> 52);
  const int exponent = (field > 0 ? field : 1) - 1023, rounded_exponent = exponent > least ? exponent : least;
  const uint64_t significand = (magnitude & 0xfffffffffffff) | (field > 0 ? uint64_t{1} << 52 : 0);
  const int surplus = 52 - FractionBits + rounded_exponent - exponent, dropped = surplus < 63 ? surplus : 63;
  const uint64_t kept = significand >> dropped, rest = significand & ((uint64_t{1} << dropped) - 1);
  const uint64_t half = uint64_t{1} << (dropped - 1);
  bool away = false;
  switch (round) {
    case Round::nearest_even: away = rest > half || (rest == half && (kept & 1)); break;
    case Round::nearest_away: away = rest >= half; break;
    case Round::toward_zero: break;
    case Round::down: away = negative && rest; break;
    case Round::up: away = !negative && rest; break;
  }
  // The leading bit of a normal number, which its format leaves out, adds one to the exponent's field.
  const uint64_t result = (static_cast<uint64_t>(rounded_exponent - least) << FractionBits) + kept + away;
  if (result < infinity) return sign | static_cast<uint32_t>(result);
  const bool stays =
      round == Round::toward_zero || (round == Round::down && !negative) || (round == Round::up && negative);
  return sign | static_cast<uint32_t>(infinity - stays);
}

// A value rounded to odd: of the two doubles it lies between, the one whose last bit is 1. Rounded again, in any mode
// and to at most 51 bits, it is the value rounded once. From either of the two, and a number of the sign of (value -
// that).
inline double to_odd(double neighbour, double error) {
  const uint64_t bits = std::bit_cast<uint64_t>(neighbour);
  if (!(error < 0 || error > 0) || (bits & 1)) return neighbour;
  return std::bit_cast<double>((error > 0) == (neighbour > 0) ? bits + 1 : bits - 1);
}

inline double sum_to_odd(double a, double b) {
  const double sum = a + b, part = sum - a;
  return to_odd(sum, (a - (sum - part)) + (b - part));
}

template <class Integer>
double integer_to_odd(Integer value) {
  const double neighbour = static_cast<double>(value);
  return to_odd(neighbour, static_cast<double>(static_cast<__int128>(value) - static_cast<__int128>(neighbour)));
}

// A number that integers made, as the CPU would have: where it flushes subnormal numbers (.ftz), they compare equal to
// 0.
inline float as_flushed(float value) { return value == 0 ? std::copysign(0.0f, value) : value; }

// .sat: into [0, 1], NaN to +0.
template <class Float>
Float saturate(Float value) {
  return value > Float{0} ? (value < Float{1} ? value : Float{1}) : Float{0};
}

template <class Float>
Float canonical_nan() {
  if constexpr (std::is_same_v<Float, float>) return std::bit_cast<float>(0x7fffffffu);
  return static_cast<Float>(std::bit_cast<double>(uint64_t{0x7fffffffffffffff}));
}

// min and max: -0 lies below +0; one NaN gives the other number, or NaN where it `propagates` (.NaN).
template <class Float>
Float smaller(Float a, Float b, bool propagates) {
  if (std::isnan(a) || std::isnan(b)) {
    if (propagates || (std::isnan(a) && std::isnan(b))) return canonical_nan<Float>();
    return std::isnan(a) ? b : a;
  }
  return a == b ? (std::signbit(a) ? a : b) : a < b ? a : b;
}

template <class Float>
Float larger(Float a, Float b, bool propagates) {
  const Float result = smaller(-a, -b, propagates);
  return std::isnan(result) ? result : -result;
}

// A value rounded to an integer, as a float of the same type (.rni .rzi .rmi .rpi).
template <class Float>
Float to_integral(Float value, Round round) {
  switch (round) {
    case Round::toward_zero: return std::trunc(value);
    case Round::down: return std::floor(value);
    case Round::up: return std::ceil(value);
    case Round::nearest_away: return std::round(value);
    default: return std::nearbyint(value);
  }
}

// A value rounded to an integer, clamped to its type. NaN gives 0, or with a double or 64 bits the type's upper bit.
template <class Integer, class Float>
Integer to_integer(Float value, Round round) {
  constexpr int bits = 8 * sizeof(Integer);
  if (std::isnan(value)) {
    const bool wide = std::is_same_v<Float, double> || bits == 64;
    return wide ? static_cast<Integer>(std::make_unsigned_t<Integer>{1} << (bits - 1)) : Integer{0};
  }
  const double integral = to_integral<double>(value, round);
  const double beyond = std::ldexp(1.0, std::is_signed_v<Integer> ? bits - 1 : bits);
  if (integral >= beyond) return std::numeric_limits<Integer>::max();
  if (integral < (std::is_signed_v<Integer> ? -beyond : 0.0)) return std::numeric_limits<Integer>::min();
  return static_cast<Integer>(integral);
}

}  // namespace virtual_gpu
