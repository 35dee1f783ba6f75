// The machine's arithmetic over arrays, for test_arithmetic.py: an operation is named, numbers go in and out as arrays.

#include <xmmintrin.h>

#include <cstddef>
#include <string_view>

#include "virtual_gpu/machine/approximations.h"
#include "virtual_gpu/machine/floats.h"
#include "virtual_gpu/machine/halves.h"

using namespace virtual_gpu;

namespace {

template <class Result, class Operation, class... Arrays>
bool each(size_t count, Result* out, Operation operation, const Arrays*... in) {
  for (size_t k = 0; k < count; ++k) out[k] = operation(in[k]...);
  return true;
}

template <class Float>
bool float_operation(std::string_view name, Round round, size_t n, const Float* a, const Float* b, Float* out) {
  if (name == "integral") return each(n, out, [=](Float x) { return to_integral(x, round); }, a);
  if (name == "saturate") return each(n, out, saturate<Float>, a);
  if (name == "smaller") return each(n, out, [](Float x, Float y) { return smaller(x, y, false); }, a, b);
  if (name == "smaller.NaN") return each(n, out, [](Float x, Float y) { return smaller(x, y, true); }, a, b);
  if (name == "larger") return each(n, out, [](Float x, Float y) { return larger(x, y, false); }, a, b);
  if (name == "larger.NaN") return each(n, out, [](Float x, Float y) { return larger(x, y, true); }, a, b);
  if constexpr (std::is_same_v<Float, float>) {
    if (name == "div.full") return each(n, out, full_range_quotient, a, b);
    if (name == "div") return each(n, out, approximate_quotient, a, b);
    if (name == "sqrt") return each(n, out, approximate_root, a);
    if (name == "sin") return each(n, out, approximate_sine, a);
    if (name == "cos") return each(n, out, approximate_cosine, a);
    if (name == "lg2") return each(n, out, approximate_logarithm, a);
    if (name == "ex2") return each(n, out, approximate_exponential, a);
    if (name == "tanh") return each(n, out, approximate_tangent, a);
  }
  if (name == "rcp") return each(n, out, [](Float x) { return approximate_reciprocal(x); }, a);
  if (name == "rsqrt") return each(n, out, [](Float x) { return approximate_reciprocal_root(x); }, a);
  return false;
}

template <class Half>
bool half_operation(std::string_view name, size_t n, const uint16_t* a, const uint16_t* b, const uint16_t* c,
                    uint16_t* out) {
  if (name == "fused") return each(n, out, fused_half<Half>, a, b, c);
  if (name == "sum") return each(n, out, sum_half<Half>, a, b);
  if (name == "difference") return each(n, out, difference_half<Half>, a, b);
  if (name == "product") return each(n, out, product_half<Half>, a, b);
  if (name == "smaller")
    return each(n, out, [](uint16_t x, uint16_t y) { return smaller_half<Half>(x, y, false); }, a, b);
  if (name == "smaller.NaN")
    return each(n, out, [](uint16_t x, uint16_t y) { return smaller_half<Half>(x, y, true); }, a, b);
  if (name == "larger")
    return each(n, out, [](uint16_t x, uint16_t y) { return larger_half<Half>(x, y, false); }, a, b);
  if (name == "negated") return each(n, out, negated_half, a);
  if (name == "absolute") return each(n, out, absolute_half, a);
  if (name == "ex2") return each(n, out, approximate_exponential_half<Half>, a);
  if (name == "tanh") return each(n, out, approximate_tangent_half<Half>, a);
  return false;
}

template <class Integer, class Float>
void to_integers(Round round, size_t n, const Float* in, Integer* out) {
  each(n, out, [=](Float x) { return to_integer<Integer>(x, round); }, in);
}

}  // namespace

extern "C" {

// The CPU's control register of floating-point numbers; returns what it was.
unsigned controlled(unsigned control) {
  const unsigned before = _mm_getcsr();
  _mm_setcsr(control);
  return before;
}
bool floats(const char* name, int round, size_t n, const float* a, const float* b, float* out) {
  return float_operation(name, static_cast<Round>(round), n, a, b, out);
}
bool doubles(const char* name, int round, size_t n, const double* a, const double* b, double* out) {
  return float_operation(name, static_cast<Round>(round), n, a, b, out);
}
bool float16s(const char* name, size_t n, const uint16_t* a, const uint16_t* b, const uint16_t* c, uint16_t* out) {
  return half_operation<Float16>(name, n, a, b, c, out);
}
bool bfloat16s(const char* name, size_t n, const uint16_t* a, const uint16_t* b, const uint16_t* c, uint16_t* out) {
  return half_operation<BFloat16>(name, n, a, b, c, out);
}
// format: the bits of the exponent and of the fraction of what a double is rounded to.
bool rounded(int exponent_bits, int fraction_bits, int round, size_t n, const double* in, uint32_t* out) {
  const Round mode = static_cast<Round>(round);
  const auto is = [=](int exponent, int fraction) { return exponent_bits == exponent && fraction_bits == fraction; };
  if (is(5, 10)) return each(n, out, [=](double x) -> uint32_t { return to_half<Float16>(x, mode); }, in);
  if (is(8, 7)) return each(n, out, [=](double x) -> uint32_t { return to_half<BFloat16>(x, mode); }, in);
  if (is(8, 10)) return each(n, out, [=](double x) { return to_tf32(x, mode); }, in);
  if (is(8, 23)) return each(n, out, [=](double x) { return narrow<8, 23>(x, mode); }, in);
  return false;
}
void widened_float16s(size_t n, const uint16_t* in, float* out) { each(n, out, widen<Float16>, in); }
void widened_bfloat16s(size_t n, const uint16_t* in, float* out) { each(n, out, widen<BFloat16>, in); }
void read_tf32s(size_t n, const uint32_t* in, float* out) { each(n, out, read_tf32, in); }
void packed_sums(size_t n, const uint32_t* a, const uint32_t* b, uint32_t* out) {
  each(n, out, [](uint32_t x, uint32_t y) { return packed(sum_half<Float16>, x, y); }, a, b);
}
void integers_to_halves(int round, size_t n, const int64_t* in, uint16_t* out) {
  each(n, out, [=](int64_t x) { return to_half<BFloat16>(integer_to_odd(x), static_cast<Round>(round)); }, in);
}
void float_to_s32(int round, size_t n, const float* in, int32_t* out) {
  to_integers(static_cast<Round>(round), n, in, out);
}
void double_to_u32(int round, size_t n, const double* in, uint32_t* out) {
  to_integers(static_cast<Round>(round), n, in, out);
}
void double_to_s64(int round, size_t n, const double* in, int64_t* out) {
  to_integers(static_cast<Round>(round), n, in, out);
}
void double_to_u8(int round, size_t n, const double* in, uint8_t* out) {
  to_integers(static_cast<Round>(round), n, in, out);
}
}
