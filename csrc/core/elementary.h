// Logarithm, sine and cosine of whole turns, and square roots of one number of every task: what normal and chi
// variables are made of.
//
// Nothing here branches on a number, so that S may be a vector. Errors, in units of the last place of the result: ln 2
// (3 in a GPU's floats), and for a sine or cosine 1.5 of the larger of the two. Operations: ln 19 (float) or 26
// (double) and one division; both sine and cosine 25 or 33.

#pragma once

#include <math.h>

#include <cstdint>
#include <cstring>

#include "core/scalar.h"

namespace memformer::core {

MEMFORMER_INLINE uint32_t bits_of(float value) {
  uint32_t bits;
  memcpy(&bits, &value, sizeof bits);
  return bits;
}
MEMFORMER_INLINE uint64_t bits_of(double value) {
  uint64_t bits;
  memcpy(&bits, &value, sizeof bits);
  return bits;
}
MEMFORMER_INLINE float number_of(uint32_t bits, float) {
  float value;
  memcpy(&value, &bits, sizeof value);
  return value;
}
MEMFORMER_INLINE double number_of(uint64_t bits, double) {
  double value;
  memcpy(&value, &bits, sizeof value);
  return value;
}

MEMFORMER_INLINE float square_root(float value) { return sqrtf(value); }
MEMFORMER_INLINE double square_root(double value) { return sqrt(value); }
// Quotients of normal numbers, the lower one's reciprocal normal too, and roots of what is 0 or normal, for random
// numbers: on a GPU one or two instructions that err by 2 units of the last place, elsewhere exact to rounding.
template <class S>
MEMFORMER_INLINE S quick_quotient(S above, S below) {
  return above / below;
}
template <class S>
MEMFORMER_INLINE S quick_root(S value) {
  return square_root(value);
}
MEMFORMER_INLINE float quick_quotient(float above, float below) {
#ifdef __CUDA_ARCH__
  float reciprocal;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(reciprocal) : "f"(below));
  return above * reciprocal;
#else
  return above / below;
#endif
}
MEMFORMER_INLINE float quick_root(float value) {
#ifdef __CUDA_ARCH__
  float root;
  asm("sqrt.approx.ftz.f32 %0, %1;" : "=f"(root) : "f"(value));
  return root;
#else
  return sqrtf(value);
#endif
}
// The logarithm to base 2 of a normal number: on a GPU one instruction that errs by 2^-22, of the logarithm outside of
// (1/2, 2).
MEMFORMER_INLINE float quick_binary_logarithm(float value) {
#ifdef __CUDA_ARCH__
  float logarithm;
  asm("lg2.approx.ftz.f32 %0, %1;" : "=f"(logarithm) : "f"(value));
  return logarithm;
#else
  return log2f(value);
#endif
}
MEMFORMER_INLINE float absolute(float value) { return fabsf(value); }
MEMFORMER_INLINE double absolute(double value) { return fabs(value); }

// The floating-point format of T: what takes a number apart, and as many terms of a series as its precision needs.
template <class T>
struct Format;

template <>
struct Format<float> {
  using Bits = uint32_t;
  static constexpr int fraction_bits = 23;
  static constexpr Bits fraction = 0x007FFFFFu;
  static constexpr Bits all_but_sign = 0x7FFFFFFFu;
  static constexpr Bits one = 0x3F800000u;
  static constexpr Bits root_half = 0x3F3504F3u;
  static constexpr Bits counting = 0x4B000000u;  // 2^23: what is or-ed in below counts up from it
  static constexpr float uncount = 8388608.0f + 127.0f;
  static constexpr float to_integer = 12582912.0f;  // 1.5 * 2^23
  static constexpr int log_terms = 4;
  static constexpr int last_turn_term = 9;
  static constexpr float ln2_high = 0.69287109375f;  // 11 bits, so that its multiples are exact
  static constexpr float ln2_low = 2.76086810e-4f;
};

template <>
struct Format<double> {
  using Bits = uint64_t;
  static constexpr int fraction_bits = 52;
  static constexpr Bits fraction = 0x000FFFFFFFFFFFFFull;
  static constexpr Bits all_but_sign = 0x7FFFFFFFFFFFFFFFull;
  static constexpr Bits one = 0x3FF0000000000000ull;
  static constexpr Bits root_half = 0x3FE6A09E667F3BCDull;
  static constexpr Bits counting = 0x4330000000000000ull;
  static constexpr double uncount = 4503599627370496.0 + 1023.0;
  static constexpr double to_integer = 6755399441055744.0;
  static constexpr int log_terms = 10;
  static constexpr int last_turn_term = 17;
  static constexpr double ln2_high = 0.6931471803691238;  // 32 bits
  static constexpr double ln2_low = 1.9082149292705877e-10;
};

// series * square - 2 / (2 k + 1) for k = K, ..., 1.
template <int K, class S>
MEMFORMER_INLINE S add_log_terms(S series, S square) {
  using T = ValueOf<S>;
  if constexpr (K == 0) {
    return series;
  } else {
    constexpr T term = T(-2) / T(2 * K + 1);
    return add_log_terms<K - 1>(series * square + S(term), square);
  }
}

// 2^exponent fraction, with the fraction in [sqrt(1/2), sqrt(2)).
template <class S>
struct Split {
  S exponent;
  S fraction;
};

// Of positive normal numbers that are 2^larger times as large.
template <class S>
MEMFORMER_INLINE Split<S> split(S value, ValueOf<S> larger = 0) {
  using F = Format<ValueOf<S>>;
  const auto shifted = bits_of(value) + (F::one - F::root_half);
  return {number_of((shifted >> F::fraction_bits) | F::counting, S()) - S(F::uncount + larger),
          number_of((shifted & F::fraction) + F::root_half, S())};
}

// The logarithm of a number m 2^e: with s = (1 - m) / (1 + m), ln m = -2 (s + s^3 / 3 + s^5 / 5 + ...). Signs are such
// that nothing is subtracted: a product and a sum are one instruction.
template <class S>
MEMFORMER_INLINE S logarithm(const Split<S>& value) {
  using T = ValueOf<S>;
  using F = Format<T>;
  const S f = value.fraction - S(T(1));
  const S s = quick_quotient(f, S(T(-2)) - f);
  const S square = s * s;
  constexpr T last = T(-2) / T(2 * F::log_terms + 1);
  const S series = add_log_terms<F::log_terms - 1>(S(last), square);
  // -2 s = f + s f: the rounding of s then counts in the small second part alone.
  const S small = s * (square * series + f) + value.exponent * F::ln2_low;
  return value.exponent * F::ln2_high + (f + small);
}

template <class S>
MEMFORMER_INLINE S logarithm(S value) {
  return logarithm(split(value));
}

// (-1)^(k / 2) (pi / 2)^k / k!, the coefficient of f^k in the sine (k odd) or cosine of f quarters of a turn.
MEMFORMER_INLINE constexpr double quarter_turn_term(int k) {
  double term = k / 2 % 2 ? -1.0 : 1.0;
  for (int i = 1; i <= k; ++i) term *= 1.5707963267948966 / i;
  return term;
}

// The terms of f^(K - 2), ..., f for the sine, of f^(K - 1), ..., f^2 for the cosine; K odd.
template <int K, class S>
MEMFORMER_INLINE void add_turn_terms(S square, S& sine, S& cosine) {
  using T = ValueOf<S>;
  if constexpr (K > 1) {
    constexpr T sine_term = T(quarter_turn_term(K - 2)), cosine_term = T(quarter_turn_term(K - 1));
    sine = sine * square + S(sine_term);
    cosine = cosine * square + S(cosine_term);
    add_turn_terms<K - 2>(square, sine, cosine);
  }
}

// sin(2 pi turns) and cos(2 pi turns) for 0 <= turns <= 1: a series in the distance f from the nearest quarter k, |f|
// <= 1/2, turned by k quarters; the factors of that are 0, 1 and -1.
template <class S>
MEMFORMER_INLINE void sine_cosine_of_turns(S turns, S& sine, S& cosine) {
  using T = ValueOf<S>;
  using F = Format<T>;
  const S quarters = turns * T(4);
  const S k = (quarters + S(F::to_integer)) - S(F::to_integer);
  const S f = quarters - k;
  const S square = f * f;
  constexpr int last = F::last_turn_term;
  constexpr T last_sine = T(quarter_turn_term(last)), last_cosine = T(quarter_turn_term(last + 1));
  S s = S(last_sine), c = S(last_cosine);
  add_turn_terms<last>(square, s, c);
  s = s * f;
  c = c * square + S(T(1));
  const S from_half = k - S(T(2));
  const S distance = absolute(from_half);
  const S cosine_of_k = distance - S(T(1)), sine_of_k = from_half * (distance - S(T(2)));
  sine = s * cosine_of_k + c * sine_of_k;
  cosine = c * cosine_of_k - s * sine_of_k;
}

// The same for random numbers: on a GPU one instruction each, which err by 2^-20.5.
template <class S>
MEMFORMER_INLINE void quick_sine_cosine_of_turns(S turns, S& sine, S& cosine) {
  sine_cosine_of_turns(turns, sine, cosine);
}
MEMFORMER_INLINE void quick_sine_cosine_of_turns(float turns, float& sine, float& cosine) {
#ifdef __CUDA_ARCH__
  const float angle = turns * 6.28318531f;
  asm("sin.approx.ftz.f32 %0, %1;" : "=f"(sine) : "f"(angle));
  asm("cos.approx.ftz.f32 %0, %1;" : "=f"(cosine) : "f"(angle));
#else
  sine_cosine_of_turns(turns, sine, cosine);
#endif
}

}  // namespace memformer::core
