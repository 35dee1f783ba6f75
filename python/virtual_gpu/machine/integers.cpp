// Integer arithmetic and operations on bits.

#include <limits>
#include <type_traits>

#include "lanes.h"

namespace virtual_gpu {
namespace {

// An unsigned type no narrower than int, so that nothing overflows.
template <class T>
using Wrapping = std::conditional_t<sizeof(T) == 8, u64, u32>;
template <class T>
using Twice = std::conditional_t<sizeof(T) == 8, std::conditional_t<std::is_signed_v<T>, i128, u128>,
                                 std::conditional_t<std::is_signed_v<T>, i64, u64>>;
template <class T>
constexpr int BITS = 8 * sizeof(T);

template <class T>
struct Add {
  T operator()(T a, T b) const { return static_cast<T>(Wrapping<T>(a) + Wrapping<T>(b)); }
};
template <class T>
struct Subtract {
  T operator()(T a, T b) const { return static_cast<T>(Wrapping<T>(a) - Wrapping<T>(b)); }
};
template <class T>
struct Multiply {
  T operator()(T a, T b) const { return static_cast<T>(Wrapping<T>(a) * Wrapping<T>(b)); }
};
template <class T>
struct MultiplyHigh {
  T operator()(T a, T b) const { return static_cast<T>((Twice<T>(a) * Twice<T>(b)) >> BITS<T>); }
};
template <class T>
struct MultiplyAdd {
  T operator()(T a, T b, T c) const { return Add<T>{}(Multiply<T>{}(a, b), c); }
};
template <class T>
struct MultiplyHighAdd {
  T operator()(T a, T b, T c) const { return Add<T>{}(MultiplyHigh<T>{}(a, b), c); }
};
template <class T, class Wide>
struct MultiplyWide {
  Wide operator()(T a, T b) const { return static_cast<Wide>(a) * static_cast<Wide>(b); }
};
template <class T, class Wide>
struct MultiplyWideAdd {
  Wide operator()(T a, T b, Wide c) const { return Add<Wide>{}(static_cast<Wide>(a) * static_cast<Wide>(b), c); }
};

// Division by zero is not an error on the device: all bits are set, and the remainder is the dividend.
template <class T>
struct Divide {
  T operator()(T a, T b) const {
    if (b == 0) return static_cast<T>(-1);
    if (std::is_signed_v<T> && b == static_cast<T>(-1)) return Subtract<T>{}(0, a);
    return static_cast<T>(a / b);
  }
};
template <class T>
struct Remainder {
  T operator()(T a, T b) const {
    if (b == 0) return a;
    if (std::is_signed_v<T> && b == static_cast<T>(-1)) return 0;
    return static_cast<T>(a % b);
  }
};
template <class T>
struct Minimum {
  T operator()(T a, T b) const { return a < b ? a : b; }
};
template <class T>
struct Maximum {
  T operator()(T a, T b) const { return a < b ? b : a; }
};
template <class T>
struct Absolute {
  T operator()(T a) const { return a < 0 ? Subtract<T>{}(0, a) : a; }
};
template <class T>
struct Negate {
  T operator()(T a) const { return Subtract<T>{}(0, a); }
};
template <class T>
struct AbsoluteDifference {
  T operator()(T a, T b, T c) const { return Add<T>{}(c, a < b ? Subtract<T>{}(b, a) : Subtract<T>{}(a, b)); }
};
template <class T>
struct AddSaturated {
  T operator()(T a, T b) const {
    const i64 sum = static_cast<i64>(a) + b;
    return static_cast<T>(sum < std::numeric_limits<T>::min()   ? std::numeric_limits<T>::min()
                          : sum > std::numeric_limits<T>::max() ? std::numeric_limits<T>::max()
                                                                : sum);
  }
};
template <class T>
struct SubtractSaturated {
  T operator()(T a, T b) const {
    const i64 difference = static_cast<i64>(a) - b;
    return static_cast<T>(difference < std::numeric_limits<T>::min()   ? std::numeric_limits<T>::min()
                          : difference > std::numeric_limits<T>::max() ? std::numeric_limits<T>::max()
                                                                       : difference);
  }
};

template <class T>
struct And {
  T operator()(T a, T b) const { return a & b; }
};
template <class T>
struct Or {
  T operator()(T a, T b) const { return a | b; }
};
template <class T>
struct Xor {
  T operator()(T a, T b) const { return a ^ b; }
};
template <class T>
struct Not {
  T operator()(T a) const { return static_cast<T>(~a); }
};
template <class T>
struct IsZero {
  T operator()(T a) const { return a == 0; }
};

template <class T>
struct ShiftLeft {
  T operator()(T a, u32 n) const { return n < BITS<T> ? static_cast<T>(Wrapping<T>(a) << n) : T{0}; }
};
template <class T>
struct ShiftRight {
  T operator()(T a, u32 n) const {
    if (n < BITS<T>) return static_cast<T>(a >> n);
    return std::is_signed_v<T> && a < 0 ? static_cast<T>(-1) : T{0};
  }
};

template <bool Right, bool Clamps>
struct FunnelShift {
  u32 operator()(u32 low, u32 high, u32 n) const {
    n = Clamps ? (n < 32 ? n : 32) : n & 31;
    const u64 both = static_cast<u64>(high) << 32 | low;
    return Right ? static_cast<u32>(both >> n) : static_cast<u32>((both << n) >> 32);
  }
};

template <class T>
struct FieldExtract {
  T operator()(T a, u32 start, u32 length) const {
    using Bits = std::make_unsigned_t<T>;
    start &= 255;
    length &= 255;
    if (length == 0) return 0;
    const u32 last = start + length - 1 < BITS<T> - 1 ? start + length - 1 : BITS<T> - 1;
    const bool negative = std::is_signed_v<T> && (static_cast<Bits>(a) >> last & 1);
    const Bits shifted = start < BITS<T> ? static_cast<Bits>(a) >> start : Bits{0};
    const u32 held = start < BITS<T> ? last - start + 1 : 0;
    if (held >= BITS<T>) return static_cast<T>(shifted);
    const Bits mask = (Bits{1} << held) - 1;
    return static_cast<T>((shifted & mask) | (negative ? static_cast<Bits>(~mask) : Bits{0}));
  }
};
template <class T>
struct FieldInsert {
  T operator()(T a, T b, u32 start, u32 length) const {
    start &= 255;
    length &= 255;
    if (start >= BITS<T> || length == 0) return b;
    const T mask = length >= BITS<T> ? static_cast<T>(-1) : static_cast<T>((T{1} << length) - 1);
    return static_cast<T>((b & ~(mask << start)) | ((a & mask) << start));
  }
};
template <class T>
struct Reverse {
  T operator()(T a) const {
    T out = 0;
    for (int bit = 0; bit < BITS<T>; ++bit) out |= static_cast<T>((a >> bit & 1) << (BITS<T> - 1 - bit));
    return out;
  }
};
template <class T>
struct LeadingZeros {
  u32 operator()(T a) const {
    return a == 0 ? BITS<T> : sizeof(T) == 8 ? __builtin_clzll(a) : __builtin_clz(static_cast<u32>(a));
  }
};
template <class T>
struct PopulationCount {
  u32 operator()(T a) const { return __builtin_popcountll(a); }
};
template <class T, bool FromTop>
struct LeadingBit {
  u32 operator()(T a) const {
    using Bits = std::make_unsigned_t<T>;
    const Bits bits = std::is_signed_v<T> && a < 0 ? static_cast<Bits>(~a) : static_cast<Bits>(a);
    if (bits == 0) return ALL_LANES;
    const u32 zeros = LeadingZeros<Bits>{}(bits);
    return FromTop ? zeros : BITS<T> - 1 - zeros;
  }
};

struct Permute {
  u32 operator()(u32 a, u32 b, u32 selector) const {
    const u64 both = static_cast<u64>(b) << 32 | a;
    u32 out = 0;
    for (int k = 0; k < 4; ++k) {
      const u32 chosen = selector >> (4 * k) & 15;
      u32 byte = static_cast<u32>(both >> (8 * (chosen & 7))) & 255;
      if (chosen & 8) byte = byte & 128 ? 255 : 0;
      out |= byte << (8 * k);
    }
    return out;
  }
};

Outcome three_inputs(Step& step) {
  const u32 table = static_cast<u32>(step.instruction.immediates[0]);
  const auto any = [table](u32 a, u32 b, u32 c) {
    u32 out = 0;
    for (u32 row = 0; row < 8; ++row) {
      if (table >> row & 1) out |= (row & 4 ? a : ~a) & (row & 2 ? b : ~b) & (row & 1 ? c : ~c);
    }
    return out;
  };
  map_lanes(step.lanes, step.values<u32>(0), any, step.values<u32>(1), step.values<u32>(2), step.values<u32>(3));
  return Outcome::Next;
}

// Sums that read or write the carry. Results: the value and the carry; then the operands, the carry last where one is
// read.
template <class T, class F, int Inputs, bool Reads>
Outcome carrying(Step& step) {
  u32 carries = 0;
  const u32 carried = Reads ? step.predicate(2 + Inputs) : 0;
  u32 known = ALL_LANES;
  for (int k = 0; k < Inputs + (Reads ? 1 : 0); ++k) known &= step.defined(2 + k);
  for_lanes(step.lanes, [&](int lane) {
    u64 in[3] = {0, 0, 0};
    for (int k = 0; k < Inputs; ++k) in[k] = step.values<T>(2 + k)[lane];
    const u128 whole = F{}(static_cast<T>(in[0]), static_cast<T>(in[1]), static_cast<T>(in[2]), carried >> lane & 1);
    step.values<T>(0)[lane] = static_cast<T>(whole);
    carries |= static_cast<u32>(whole >> BITS<T> & 1) << lane;
  });
  step.set_predicate(1, carries);
  step.define(0, known);
  step.define(1, known);
  return Outcome::Next;
}
template <class T>
struct CarryAdd {
  u128 operator()(T a, T b, T, u32 carry) const { return u128(a) + b + carry; }
};
// The carry of a difference is its borrow.
template <class T>
struct CarrySubtract {
  u128 operator()(T a, T b, T, u32 borrow) const { return u128(a) - b - borrow; }
};
template <class T>
struct CarryMultiplyLow {
  u128 operator()(T a, T b, T c, u32 carry) const { return u128(static_cast<T>(u128(a) * b)) + c + carry; }
};
template <class T>
struct CarryMultiplyHigh {
  u128 operator()(T a, T b, T c, u32 carry) const { return u128(static_cast<T>((u128(a) * b) >> BITS<T>)) + c + carry; }
};

template <class T>
void add_carries(Registry& registry) {
  const std::string type = NAME<T>, other = sizeof(T) == 8 ? "s64" : "s32", bits = sizeof(T) == 8 ? "b64" : "b32";
  for (const std::string& name : {type, other, bits}) {
    registry["add.cc." + name] = {carrying<T, CarryAdd<T>, 2, false>, Nature::Own};
    registry["sub.cc." + name] = {carrying<T, CarrySubtract<T>, 2, false>, Nature::Own};
    registry["addc." + name] = {carrying<T, CarryAdd<T>, 2, true>, Nature::Own};
    registry["subc." + name] = {carrying<T, CarrySubtract<T>, 2, true>, Nature::Own};
    registry["mad.cc.lo." + name] = {carrying<T, CarryMultiplyLow<T>, 3, false>, Nature::Own};
    registry["madc.lo." + name] = {carrying<T, CarryMultiplyLow<T>, 3, true>, Nature::Own};
  }
  registry["mad.cc.hi." + type] = {carrying<T, CarryMultiplyHigh<T>, 3, false>, Nature::Own};
  registry["madc.hi." + type] = {carrying<T, CarryMultiplyHigh<T>, 3, true>, Nature::Own};
}

template <class T, class Wide>
void add_wide(Registry& registry) {
  add_plain<Wide, MultiplyWide<T, Wide>, T, T>(registry, std::string("mul.wide.") + NAME<T>);
  add_plain<Wide, MultiplyWideAdd<T, Wide>, T, T, Wide>(registry, std::string("mad.wide.") + NAME<T>);
}

template <class T>
void add_bits(Registry& registry) {
  const std::string type = NAME<T>;
  add_plain<T, And<T>, T, T>(registry, "and." + type);
  add_plain<T, Or<T>, T, T>(registry, "or." + type);
  add_plain<T, Xor<T>, T, T>(registry, "xor." + type);
  add_plain<T, Not<T>, T>(registry, "not." + type);
  add_plain<T, IsZero<T>, T>(registry, "cnot." + type);
  add_plain<T, ShiftLeft<T>, T, u32>(registry, "shl." + type);
}

template <class T>
void add_words(Registry& registry) {
  const std::string type = NAME<T>;
  add_plain<T, FieldInsert<T>, T, T, u32, u32>(registry, "bfi." + type);
  add_plain<T, Reverse<T>, T>(registry, "brev." + type);
  add_plain<u32, LeadingZeros<T>, T>(registry, "clz." + type);
  add_plain<u32, PopulationCount<T>, T>(registry, "popc." + type);
}

template <class... T>
void add_fields(Registry& registry, Types<T...>) {
  (add_plain<T, FieldExtract<T>, T, u32, u32>(registry, std::string("bfe.") + NAME<T>), ...);
  (add_plain<u32, LeadingBit<T, false>, T>(registry, std::string("bfind.") + NAME<T>), ...);
  (add_plain<u32, LeadingBit<T, true>, T>(registry, std::string("bfind.shiftamt.") + NAME<T>), ...);
}

template <class... T>
void add_shifts(Registry& registry, Types<T...>) {
  (add_plain<T, ShiftRight<T>, T, u32>(registry, std::string("shr.") + NAME<T>), ...);
}

}  // namespace

void add_integers(Registry& registry) {
  add_binary<Add>(registry, "add", Integers{});
  add_binary<Subtract>(registry, "sub", Integers{});
  add_binary<Multiply>(registry, "mul", Integers{});
  add_binary<MultiplyHigh>(registry, "mul.hi", Integers{});
  add_ternary<MultiplyAdd>(registry, "mad", Integers{});
  add_ternary<MultiplyHighAdd>(registry, "mad.hi", Integers{});
  add_binary<Divide>(registry, "div", Integers{});
  add_binary<Remainder>(registry, "rem", Integers{});
  add_binary<Minimum>(registry, "min", Integers{});
  add_binary<Maximum>(registry, "max", Integers{});
  add_ternary<AbsoluteDifference>(registry, "sad", Integers{});
  add_unary<Absolute>(registry, "abs", Types<i16, i32, i64>{});
  add_unary<Negate>(registry, "neg", Integers{});
  add_binary<AddSaturated>(registry, "add.sat", Types<i32>{});
  add_binary<SubtractSaturated>(registry, "sub.sat", Types<i32>{});
  add_wide<u16, u32>(registry);
  add_wide<i16, i32>(registry);
  add_wide<u32, u64>(registry);
  add_wide<i32, i64>(registry);
  add_bits<u16>(registry);
  add_bits<u32>(registry);
  add_bits<u64>(registry);
  add_words<u32>(registry);
  add_words<u64>(registry);
  add_fields(registry, Types<u32, i32, u64, i64>{});
  add_shifts(registry, Integers{});
  add_carries<u32>(registry);
  add_carries<u64>(registry);
  add_plain<u32, FunnelShift<false, false>, u32, u32, u32>(registry, "shf.l.wrap.u32");
  add_plain<u32, FunnelShift<false, true>, u32, u32, u32>(registry, "shf.l.clamp.u32");
  add_plain<u32, FunnelShift<true, false>, u32, u32, u32>(registry, "shf.r.wrap.u32");
  add_plain<u32, FunnelShift<true, true>, u32, u32, u32>(registry, "shf.r.clamp.u32");
  add_plain<u32, Permute, u32, u32, u32>(registry, "prmt.u32");
  registry["lop3.u32"] = {three_inputs, Nature::Plain};
}

}  // namespace virtual_gpu
