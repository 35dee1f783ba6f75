// ld and st: values between registers and memory.

#include "access.h"
#include "lanes.h"
#include "ordering.h"

namespace virtual_gpu {
namespace {

template <class T, class Register>
void load_values(const Access& access, Register* out, u32 offset) {
  for_lanes(access.lanes, [&](int lane) {
    T value;
    std::memcpy(&value, access.bytes[lane] + offset, sizeof value);
    out[lane] = static_cast<Register>(value);
  });
}

template <class T>
void load_register(const Access& access, const Step& step, int k) {
  const u32 offset = static_cast<u32>(k * sizeof(T));
  switch (step.operand(k).width) {
    case 2: load_values<T>(access, step.values<u16>(k), offset); break;
    case 4: load_values<T>(access, step.values<u32>(k), offset); break;
    default: load_values<T>(access, step.values<u64>(k), offset); break;
  }
}

// A parameter that all lanes read, as they mostly do, is read once. False where they do not, or may not.
template <class T>
bool load_parameter(const Step& step) {
  const int count = step.instruction.results;
  u64 address[WARP];
  read_addresses(step, count, step.instruction.immediates[0], address);
  const u64 size = static_cast<u64>(count) * sizeof(T), offset = address[0] - PARAM_WINDOW;
  u32 other = 0;
  for (int lane = 0; lane < WARP; ++lane) other |= static_cast<u32>(address[lane] != address[0]) << lane;
  const bool known = (step.lanes & ~step.defined(count)) == 0;
  if (other != 0 || !known || offset + size > step.machine.parameter_bytes || offset % size != 0) return false;
  for (int k = 0; k < count; ++k) {
    T value;
    std::memcpy(&value, step.machine.parameters + offset + static_cast<u64>(k) * sizeof(T), sizeof value);
    if (step.given(k)) for_lanes(step.lanes, [&](int lane) { step.set_value(k, lane, static_cast<u64>(value)); });
    step.define(k, ALL_LANES);
  }
  return true;
}

template <class T>
Outcome load(Step& step) {
  if (step.instruction.space == PARAM && load_parameter<T>(step)) return Outcome::Next;
  const int count = step.instruction.results;
  const u32 size = static_cast<u32>(count * sizeof(T));
  const bool strong = step.instruction.flags & STRONG;
  bool polls = false;
  const u32 refused = for_each_access(step, count, size, false, [&](Access& access) {
    observe_reads(access, observer_of(step, strong));
    for (int k = 0; k < count; ++k) {
      if (!step.given(k)) continue;
      load_register<T>(access, step, k);
      u32& known = step.warp.defined[step.operand(k).slot];
      known = (known & ~access.lanes) | defined_bytes(access, static_cast<u32>(k * sizeof(T)), sizeof(T));
    }
    if (strong && access.space == GLOBAL) {
      acquire_at(access);
      polls = true;
    }
  });
  if (refused != 0) {
    for (int k = 0; k < count; ++k) {
      if (!step.given(k)) continue;
      for_lanes(refused, [&](int lane) { step.set_value(k, lane, 0); });
      step.warp.defined[step.operand(k).slot] |= refused;
    }
  }
  step.warp.spins |= polls;
  return Outcome::Next;
}

template <class T, class Register>
u32 held_values(const Access& access, const Register* in, u32 offset) {
  u32 out = 0;
  for_lanes(access.lanes, [&](int lane) {
    T there;
    std::memcpy(&there, access.bytes[lane] + offset, sizeof there);
    out |= static_cast<u32>(there == static_cast<T>(in[lane])) << lane;
  });
  return out;
}

// Lanes whose bits memory holds.
template <class T>
u32 held(const Access& access, const Step& step, int count) {
  u32 out = access.lanes;
  for (int k = 0; k < count; ++k) {
    const u32 offset = static_cast<u32>(k * sizeof(T));
    switch (step.operand(k).width) {
      case 2: out &= held_values<T>(access, step.values<u16>(k), offset); break;
      case 4: out &= held_values<T>(access, step.values<u32>(k), offset); break;
      default: out &= held_values<T>(access, step.values<u64>(k), offset); break;
    }
  }
  return out;
}

template <class T, class Register>
void store_values(const Access& access, const Register* in, u32 offset) {
  for_lanes(access.lanes, [&](int lane) {
    const T value = static_cast<T>(in[lane]);
    std::memcpy(access.bytes[lane] + offset, &value, sizeof value);
  });
}

template <class T>
void store_register(const Access& access, const Step& step, int k) {
  const u32 offset = static_cast<u32>(k * sizeof(T));
  switch (step.operand(k).width) {
    case 2: store_values<T>(access, step.values<u16>(k), offset); break;
    case 4: store_values<T>(access, step.values<u32>(k), offset); break;
    default: store_values<T>(access, step.values<u64>(k), offset); break;
  }
}

template <class T>
Outcome store(Step& step) {
  const int count = step.instruction.count - 1;
  const u32 size = static_cast<u32>(count * sizeof(T));
  const bool strong = step.instruction.flags & STRONG;
  for_each_access(step, count, size, true, [&](Access& access) {
    const bool shared_by_threads = step.machine.checks.races && (access.space == SHARED || access.space == GLOBAL);
    const u32 before = shared_by_threads ? held<T>(access, step, count) : 0;
    for (int k = 0; k < count; ++k) {
      store_register<T>(access, step, k);
      define_bytes(access, static_cast<u32>(k * sizeof(T)), sizeof(T), step.defined(k));
    }
    if (shared_by_threads) observe_writes(access, observer_of(step, strong), before, held<T>(access, step, count));
    if (strong && access.space == GLOBAL) release_at(access);
  });
  ++step.machine.events;
  return Outcome::Next;
}

template <class... T>
void add_loads(Registry& registry, Types<T...>) {
  ((registry[std::string("ld.") + NAME<T>] = {load<T>, Nature::Own}), ...);
}
template <class... T>
void add_stores(Registry& registry, Types<T...>) {
  ((registry[std::string("st.") + NAME<T>] = {store<T>, Nature::Own}), ...);
}

}  // namespace

void add_loads_and_stores(Registry& registry) {
  add_loads(registry, Types<u8, i8, u16, i16, u32, i32, u64, i64>{});
  add_stores(registry, Types<u8, u16, u32, u64>{});
}

}  // namespace virtual_gpu
