// atom and red. Atomics of one address do not race with each other; they hand on what fences have published.

#include <algorithm>

#include "access.h"
#include "halves.h"
#include "lanes.h"
#include "ordering.h"

namespace virtual_gpu {
namespace {

// Operands: the result, the address, a value, and for cas a second.
template <class T, class F>
Outcome atomic(Step& step) {
  const bool compares = step.instruction.count > 3;
  const u32 refused = for_each_access(step, 1, sizeof(T), true, [&](Access& access) {
    const Observer me = observer_of(step, true);
    const bool publishes = (step.instruction.flags & RELEASE) && (step.instruction.flags & WHOLE_GRID);
    if (publishes && access.space == GLOBAL) fence_grid(step.machine, *step.block.group);
    for_lanes(access.lanes, [&](int lane) {
      Access one = access;
      one.lanes = 1u << lane;
      T old;
      std::memcpy(&old, access.bytes[lane], sizeof old);
      u32 known = step.defined(2) & (compares ? step.defined(3) : ALL_LANES);
      known &= defined_bytes(one, 0, sizeof(T));
      observe_writes(one, me, 0, 0);
      const T value = static_cast<T>(step.value(2, lane));
      const T other = compares ? static_cast<T>(step.value(3, lane)) : T{};
      const T made = F{}(old, value, other);
      std::memcpy(access.bytes[lane], &made, sizeof made);
      define_bytes(one, 0, sizeof(T), known);
      if (!step.given(0)) return;
      step.set_value(0, lane, static_cast<u64>(old));
      u32& result_known = step.warp.defined[step.operand(0).slot];
      result_known = (result_known & ~one.lanes) | (known & one.lanes);
    });
    if (access.space == GLOBAL) {
      acquire_at(access);
      for_lanes(access.lanes,
                [&](int lane) { join(step.machine.released[access.address[lane]], step.block.group->fenced); });
    }
    step.machine.counters.atomics += static_cast<u64>(count_lanes(access.lanes));
  });
  if (refused != 0 && step.given(0)) step.warp.defined[step.operand(0).slot] |= refused;
  ++step.machine.events;
  step.warp.spins = true;
  return Outcome::Next;
}

// Values are held as bits; `Value` is what they mean.
template <class T, class Value>
struct Sum {
  T operator()(T old, T value, T) const {
    return bits_as<T>(static_cast<Value>(bits_as<Value>(old) + bits_as<Value>(value)));
  }
};
template <class T, class Value>
struct Least {
  T operator()(T old, T value, T) const { return bits_as<T>(std::min(bits_as<Value>(old), bits_as<Value>(value))); }
};
template <class T, class Value>
struct Most {
  T operator()(T old, T value, T) const { return bits_as<T>(std::max(bits_as<Value>(old), bits_as<Value>(value))); }
};
template <class T>
struct And {
  T operator()(T old, T value, T) const { return old & value; }
};
template <class T>
struct Or {
  T operator()(T old, T value, T) const { return old | value; }
};
template <class T>
struct Xor {
  T operator()(T old, T value, T) const { return old ^ value; }
};
template <class T>
struct Exchange {
  T operator()(T, T value, T) const { return value; }
};
template <class T>
struct CompareAndSwap {
  T operator()(T old, T expected, T value) const { return old == expected ? value : old; }
};
struct Increment {
  u32 operator()(u32 old, u32 most, u32) const { return old >= most ? 0 : old + 1; }
};
struct Decrement {
  u32 operator()(u32 old, u32 most, u32) const { return old == 0 || old > most ? most : old - 1; }
};
template <class Half>
struct SumHalf {
  u16 operator()(u16 old, u16 value, u16) const { return sum_half<Half>(old, value); }
};
template <class Half>
struct SumHalves {
  u32 operator()(u32 old, u32 value, u32) const { return packed(sum_half<Half>, old, value); }
};

template <class T, class F>
void add(Registry& registry, const std::string& key) {
  registry["atom." + key] = {atomic<T, F>, Nature::Own};
}

template <class T, class Signed>
void add_integers_of(Registry& registry) {
  const std::string type = NAME<T>, with_sign = NAME<Signed>, bits = "b" + std::to_string(8 * sizeof(T));
  add<T, Sum<T, T>>(registry, "add." + type);
  add<T, Least<T, T>>(registry, "min." + type);
  add<T, Most<T, T>>(registry, "max." + type);
  add<T, Least<T, Signed>>(registry, "min." + with_sign);
  add<T, Most<T, Signed>>(registry, "max." + with_sign);
  add<T, And<T>>(registry, "and." + type);
  add<T, Or<T>>(registry, "or." + type);
  add<T, Xor<T>>(registry, "xor." + type);
  add<T, Exchange<T>>(registry, "exch." + type);
  add<T, CompareAndSwap<T>>(registry, "cas." + type);
}

}  // namespace

void add_atomics(Registry& registry) {
  add_integers_of<u32, i32>(registry);
  add_integers_of<u64, i64>(registry);
  add<u16, CompareAndSwap<u16>>(registry, "cas.u16");
  add<u32, Increment>(registry, "inc.u32");
  add<u32, Decrement>(registry, "dec.u32");
  add<u32, Sum<u32, float>>(registry, "add.f32");
  add<u64, Sum<u64, double>>(registry, "add.f64");
  add<u16, SumHalf<Float16>>(registry, "add.f16");
  add<u16, SumHalf<BFloat16>>(registry, "add.bf16");
  add<u32, SumHalves<Float16>>(registry, "add.f16x2");
  add<u32, SumHalves<BFloat16>>(registry, "add.bf16x2");
}

}  // namespace virtual_gpu
