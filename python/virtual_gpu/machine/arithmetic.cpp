// Floating-point arithmetic. Rounding modes and flushed subnormals are the host's own: the interpreter sets its control
// register for instructions that ask for them.

#include <cmath>

#include "approximations.h"
#include "lanes.h"

namespace virtual_gpu {
namespace {

template <class T>
struct Add {
  T operator()(T a, T b) const { return a + b; }
};
template <class T>
struct Subtract {
  T operator()(T a, T b) const { return a - b; }
};
template <class T>
struct Multiply {
  T operator()(T a, T b) const { return a * b; }
};
template <class T>
struct FusedMultiplyAdd {
  T operator()(T a, T b, T c) const { return std::fma(a, b, c); }
};
template <class T>
struct Divide {
  T operator()(T a, T b) const { return a / b; }
};
template <class T>
struct Reciprocal {
  T operator()(T a) const { return T{1} / a; }
};
template <class T>
struct SquareRoot {
  T operator()(T a) const { return std::sqrt(a); }
};
// The CPU flushes what it computes, not what it only copies or changes the sign of.
template <class T>
T flushed(T value) {
  if constexpr (std::is_same_v<T, float>) return as_flushed(value);
  return value;
}
template <class T, bool Propagates>
struct Smaller {
  T operator()(T a, T b) const { return flushed(smaller(a, b, Propagates)); }
};
template <class T, bool Propagates>
struct Larger {
  T operator()(T a, T b) const { return flushed(larger(a, b, Propagates)); }
};
template <class T>
struct Absolute {
  T operator()(T a) const { return std::fabs(flushed(a)); }
};
template <class T>
struct Negate {
  T operator()(T a) const { return -flushed(a); }
};
// PTX names the operand with the sign first.
template <class T>
struct CopySign {
  T operator()(T sign, T magnitude) const { return std::copysign(magnitude, sign); }
};

template <auto F>
struct Calls;
template <class Result, class... Inputs, Result (*F)(Inputs...)>
struct Calls<F> {
  Result operator()(Inputs... in) const { return F(in...); }
};

constexpr float (*RECIPROCAL)(float) = approximate_reciprocal;
constexpr double (*RECIPROCAL_DOUBLE)(double) = approximate_reciprocal;
constexpr float (*RECIPROCAL_ROOT)(float) = approximate_reciprocal_root;
constexpr double (*RECIPROCAL_ROOT_DOUBLE)(double) = approximate_reciprocal_root;

// Halves: alone in 16 bits, or two in 32.
template <class Half, class F>
struct One {
  template <class... Bits>
  u16 operator()(Bits... in) const {
    return F{}(in...);
  }
};
template <class Half, class F>
struct Two {
  template <class... Bits>
  u32 operator()(Bits... in) const {
    return packed(F{}, in...);
  }
};

template <class Half>
void add_halves(Registry& registry, const std::string& type) {
  using Sum = Calls<sum_half<Half>>;
  using Difference = Calls<difference_half<Half>>;
  using Product = Calls<product_half<Half>>;
  using Fused = Calls<fused_half<Half>>;
  const auto binary = [&]<class F>(const std::string& name, F) {
    add_plain<u16, One<Half, F>, u16, u16>(registry, name + "." + type);
    add_plain<u32, Two<Half, F>, u32, u32>(registry, name + "." + type + "x2");
  };
  const auto unary = [&]<class F>(const std::string& name, F) {
    add_plain<u16, One<Half, F>, u16>(registry, name + "." + type);
    add_plain<u32, Two<Half, F>, u32>(registry, name + "." + type + "x2");
  };
  binary("add", Sum{});
  binary("sub", Difference{});
  binary("mul", Product{});
  add_plain<u16, One<Half, Fused>, u16, u16, u16>(registry, "fma." + type);
  add_plain<u32, Two<Half, Fused>, u32, u32, u32>(registry, "fma." + type + "x2");
  binary("min", [](u16 a, u16 b) { return smaller_half<Half>(a, b, false); });
  binary("max", [](u16 a, u16 b) { return larger_half<Half>(a, b, false); });
  binary("min.NaN", [](u16 a, u16 b) { return smaller_half<Half>(a, b, true); });
  binary("max.NaN", [](u16 a, u16 b) { return larger_half<Half>(a, b, true); });
  unary("neg", Calls<negated_half>{});
  unary("abs", Calls<absolute_half>{});
  unary("ex2.approx", Calls<approximate_exponential_half<Half>>{});
  unary("tanh.approx", Calls<approximate_tangent_half<Half>>{});
}

// Two floats in 64 bits.
template <class F>
struct Pair {
  template <class... Bits>
  u64 operator()(Bits... in) const {
    const u32 low = bits_as<u32>(F{}(bits_as<float>(static_cast<u32>(in))...));
    const u32 high = bits_as<u32>(F{}(bits_as<float>(static_cast<u32>(in >> 32))...));
    return static_cast<u64>(high) << 32 | low;
  }
};

template <class... T>
void add_extrema(Registry& registry, Types<T...>) {
  (add_plain<T, Smaller<T, false>, T, T>(registry, std::string("min.") + NAME<T>), ...);
  (add_plain<T, Larger<T, false>, T, T>(registry, std::string("max.") + NAME<T>), ...);
  (add_plain<T, Smaller<T, true>, T, T>(registry, std::string("min.NaN.") + NAME<T>), ...);
  (add_plain<T, Larger<T, true>, T, T>(registry, std::string("max.NaN.") + NAME<T>), ...);
}

void add_approximations(Registry& registry) {
  add_plain<float, Calls<RECIPROCAL>, float>(registry, "rcp.approx.f32");
  add_plain<double, Calls<RECIPROCAL_DOUBLE>, double>(registry, "rcp.approx.f64");
  add_plain<float, Calls<RECIPROCAL_ROOT>, float>(registry, "rsqrt.approx.f32");
  add_plain<double, Calls<RECIPROCAL_ROOT_DOUBLE>, double>(registry, "rsqrt.approx.f64");
  add_plain<float, Calls<approximate_root>, float>(registry, "sqrt.approx.f32");
  add_plain<float, Calls<approximate_quotient>, float, float>(registry, "div.approx.f32");
  add_plain<float, Calls<full_range_quotient>, float, float>(registry, "div.full.f32");
  add_plain<float, Calls<approximate_sine>, float>(registry, "sin.approx.f32");
  add_plain<float, Calls<approximate_cosine>, float>(registry, "cos.approx.f32");
  add_plain<float, Calls<approximate_logarithm>, float>(registry, "lg2.approx.f32");
  add_plain<float, Calls<approximate_exponential>, float>(registry, "ex2.approx.f32");
  add_plain<float, Calls<approximate_tangent>, float>(registry, "tanh.approx.f32");
}

}  // namespace

void add_arithmetic(Registry& registry) {
  add_binary<Add>(registry, "add", Floats{});
  add_binary<Subtract>(registry, "sub", Floats{});
  add_binary<Multiply>(registry, "mul", Floats{});
  add_binary<Divide>(registry, "div", Floats{});
  add_ternary<FusedMultiplyAdd>(registry, "fma", Floats{});
  add_unary<Reciprocal>(registry, "rcp", Floats{});
  add_unary<SquareRoot>(registry, "sqrt", Floats{});
  add_unary<Absolute>(registry, "abs", Floats{});
  add_unary<Negate>(registry, "neg", Floats{});
  add_binary<CopySign>(registry, "copysign", Floats{});
  add_extrema(registry, Floats{});
  add_approximations(registry);
  add_plain<u64, Pair<Add<float>>, u64, u64>(registry, "add.f32x2");
  add_plain<u64, Pair<Subtract<float>>, u64, u64>(registry, "sub.f32x2");
  add_plain<u64, Pair<Multiply<float>>, u64, u64>(registry, "mul.f32x2");
  add_plain<u64, Pair<FusedMultiplyAdd<float>>, u64, u64, u64>(registry, "fma.f32x2");
  add_halves<Float16>(registry, "f16");
  add_halves<BFloat16>(registry, "bf16");
}

}  // namespace virtual_gpu
