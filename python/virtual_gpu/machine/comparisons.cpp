// Comparisons, their predicates, and choices by them.

#include <cmath>

#include "halves.h"
#include "lanes.h"

namespace virtual_gpu {
namespace {

enum Combination : i64 { ALONE, AND, OR, XOR };

// A bit for each lane in which `holds` is true of its values.
template <class T, class Holds>
u32 lanes_where(const T* a, const T* b, Holds holds) {
  u32 out = 0;
#pragma GCC ivdep
  for (int lane = 0; lane < WARP; ++lane) out |= static_cast<u32>(holds(a[lane], b[lane])) << lane;
  return out;
}

u32 combined(i64 how, u32 comparison, u32 other) {
  switch (how) {
    case AND: return comparison & other;
    case OR: return comparison | other;
    case XOR: return comparison ^ other;
    default: return comparison;
  }
}

// Results: a predicate and that of the opposite; operands: two values, and a predicate to combine each with.
template <class T, class Holds>
Outcome set_predicates(Step& step) {
  const u32 holds = lanes_where(step.values<T>(2), step.values<T>(3), Holds{});
  const i64 how = step.instruction.immediates[0];
  const u32 other = how != ALONE ? step.predicate(4) : 0;
  u32 known = step.defined(2) & step.defined(3);
  u32 known_result = known;
  if (how != ALONE) {
    // What one operand decides does not depend on the other.
    const u32 settled = how == AND ? ~other & step.defined(4) : how == OR ? other & step.defined(4) : 0;
    known_result = (known & step.defined(4)) | settled;
  }
  step.set_predicate(0, combined(how, holds, other));
  step.set_predicate(1, combined(how, ~holds, other));
  step.define(0, known_result);
  step.define(1, known_result);
  return Outcome::Next;
}

template <class T>
T widened(T value) {
  return value;
}
template <class Half>
struct HalfBits {
  u16 bits;
};
template <class Half>
float widened(HalfBits<Half> value) {
  return widen<Half>(value.bits);
}

struct Equal {
  template <class T>
  bool operator()(T a, T b) const {
    return widened(a) == widened(b);
  }
};
struct Less {
  template <class T>
  bool operator()(T a, T b) const {
    return widened(a) < widened(b);
  }
};
struct LessEqual {
  template <class T>
  bool operator()(T a, T b) const {
    return widened(a) <= widened(b);
  }
};
struct Greater {
  template <class T>
  bool operator()(T a, T b) const {
    return widened(a) > widened(b);
  }
};
struct GreaterEqual {
  template <class T>
  bool operator()(T a, T b) const {
    return widened(a) >= widened(b);
  }
};
// False where either is NaN.
struct NotEqual {
  template <class T>
  bool operator()(T a, T b) const {
    return widened(a) < widened(b) || widened(a) > widened(b);
  }
};
template <class Ordered>
struct Opposite {
  template <class T>
  bool operator()(T a, T b) const {
    return !Ordered{}(a, b);
  }
};
struct Numbers {
  template <class T>
  bool operator()(T a, T b) const {
    return !(std::isnan(widened(a)) || std::isnan(widened(b)));
  }
};

template <class T>
void add_ordered(Registry& registry, const std::string& type) {
  registry["setp.eq." + type] = {set_predicates<T, Equal>, Nature::Own};
  registry["setp.ne." + type] = {set_predicates<T, NotEqual>, Nature::Own};
  registry["setp.lt." + type] = {set_predicates<T, Less>, Nature::Own};
  registry["setp.le." + type] = {set_predicates<T, LessEqual>, Nature::Own};
  registry["setp.gt." + type] = {set_predicates<T, Greater>, Nature::Own};
  registry["setp.ge." + type] = {set_predicates<T, GreaterEqual>, Nature::Own};
}

template <class T>
void add_unsigned(Registry& registry, const std::string& type) {
  add_ordered<T>(registry, type);
  registry["setp.lo." + type] = {set_predicates<T, Less>, Nature::Own};
  registry["setp.ls." + type] = {set_predicates<T, LessEqual>, Nature::Own};
  registry["setp.hi." + type] = {set_predicates<T, Greater>, Nature::Own};
  registry["setp.hs." + type] = {set_predicates<T, GreaterEqual>, Nature::Own};
}

template <class T>
void add_unordered(Registry& registry, const std::string& type) {
  add_ordered<T>(registry, type);
  registry["setp.equ." + type] = {set_predicates<T, Opposite<NotEqual>>, Nature::Own};
  registry["setp.neu." + type] = {set_predicates<T, Opposite<Equal>>, Nature::Own};
  registry["setp.ltu." + type] = {set_predicates<T, Opposite<GreaterEqual>>, Nature::Own};
  registry["setp.leu." + type] = {set_predicates<T, Opposite<Greater>>, Nature::Own};
  registry["setp.gtu." + type] = {set_predicates<T, Opposite<LessEqual>>, Nature::Own};
  registry["setp.geu." + type] = {set_predicates<T, Opposite<Less>>, Nature::Own};
  registry["setp.num." + type] = {set_predicates<T, Numbers>, Nature::Own};
  registry["setp.nan." + type] = {set_predicates<T, Opposite<Numbers>>, Nature::Own};
}

// Undefined values that are not chosen do not matter.
void define_chosen(Step& step, u32 chooses_first, u32 known) {
  step.define(0, known & ((chooses_first & step.defined(1)) | (~chooses_first & step.defined(2))));
}

template <class T>
Outcome select(Step& step) {
  const u32 first = step.predicate(3);
  const T *a = step.values<T>(1), *b = step.values<T>(2);
  T* out = step.values<T>(0);
  const u32 lanes = step.lanes;
#pragma GCC ivdep
  for (int lane = 0; lane < WARP; ++lane) {
    const T chosen = first >> lane & 1 ? a[lane] : b[lane];
    out[lane] = lanes >> lane & 1 ? chosen : out[lane];
  }
  define_chosen(step, first, step.defined(3));
  return Outcome::Next;
}

Outcome select_predicate(Step& step) {
  const u32 first = step.predicate(3);
  step.set_predicate(0, (first & step.predicate(1)) | (~first & step.predicate(2)));
  define_chosen(step, first, step.defined(3));
  return Outcome::Next;
}

template <class T, class Sign>
Outcome select_by_sign(Step& step) {
  const Sign* sign = step.values<Sign>(3);
  const u32 first = lanes_where(sign, sign, [](Sign a, Sign) { return a >= 0; });
  for_lanes(step.lanes, [&](int lane) { step.values<T>(0)[lane] = step.values<T>(first >> lane & 1 ? 1 : 2)[lane]; });
  define_chosen(step, first, step.defined(3));
  return Outcome::Next;
}

template <class T, class Holds>
Outcome test(Step& step) {
  const T* value = step.values<T>(1);
  step.set_predicate(0, lanes_where(value, value, [](T a, T) { return Holds{}(a); }));
  step.define(0, step.defined(1));
  return Outcome::Next;
}

template <class T>
void add_tests(Registry& registry) {
  const auto add = [&]<class Holds>(const std::string& name, Holds) {
    registry["testp." + name + "." + NAME<T>] = {test<T, Holds>, Nature::Own};
  };
  add("finite", [](T a) { return std::isfinite(a); });
  add("infinite", [](T a) { return std::isinf(a); });
  add("number", [](T a) { return !std::isnan(a); });
  add("notanumber", [](T a) { return std::isnan(a); });
  add("normal", [](T a) { return std::isnormal(a); });
  add("subnormal", [](T a) { return std::fpclassify(a) == FP_SUBNORMAL; });
}

// A function of predicates, one bit for each lane. `settles` tells which lanes one operand's defined value decides.
template <u32 (*F)(u32, u32), u32 (*Settles)(u32)>
Outcome logic(Step& step) {
  const u32 a = step.predicate(1), b = step.predicate(2);
  const u32 known_a = step.defined(1), known_b = step.defined(2);
  step.set_predicate(0, F(a, b));
  step.define(0, (known_a & known_b) | (known_a & Settles(a)) | (known_b & Settles(b)));
  return Outcome::Next;
}
u32 both(u32 a, u32 b) { return a & b; }
u32 either(u32 a, u32 b) { return a | b; }
u32 one(u32 a, u32 b) { return a ^ b; }
u32 where_false(u32 a) { return ~a; }
u32 where_true(u32 a) { return a; }
u32 nowhere(u32) { return 0; }

template <bool Negated>
Outcome copy_predicate(Step& step) {
  step.set_predicate(0, Negated ? ~step.predicate(1) : step.predicate(1));
  step.define(0, step.defined(1));
  return Outcome::Next;
}

}  // namespace

void add_comparisons(Registry& registry) {
  add_unsigned<u16>(registry, "u16");
  add_unsigned<u32>(registry, "u32");
  add_unsigned<u64>(registry, "u64");
  add_ordered<i16>(registry, "s16");
  add_ordered<i32>(registry, "s32");
  add_ordered<i64>(registry, "s64");
  add_unordered<float>(registry, "f32");
  add_unordered<double>(registry, "f64");
  add_unordered<HalfBits<Float16>>(registry, "f16");
  add_unordered<HalfBits<BFloat16>>(registry, "bf16");
  add_tests<float>(registry);
  add_tests<double>(registry);
  registry["selp.u16"] = {select<u16>, Nature::Own};
  registry["selp.u32"] = {select<u32>, Nature::Own};
  registry["selp.u64"] = {select<u64>, Nature::Own};
  registry["selp.pred"] = {select_predicate, Nature::Own};
  registry["slct.u32.s32"] = {select_by_sign<u32, i32>, Nature::Own};
  registry["slct.u64.s32"] = {select_by_sign<u64, i32>, Nature::Own};
  registry["slct.u32.f32"] = {select_by_sign<u32, float>, Nature::Own};
  registry["slct.u64.f32"] = {select_by_sign<u64, float>, Nature::Own};
  registry["and.pred"] = {logic<both, where_false>, Nature::Own};
  registry["or.pred"] = {logic<either, where_true>, Nature::Own};
  registry["xor.pred"] = {logic<one, nowhere>, Nature::Own};
  registry["not.pred"] = {copy_predicate<true>, Nature::Own};
  registry["mov.pred"] = {copy_predicate<false>, Nature::Own};
}

}  // namespace virtual_gpu
