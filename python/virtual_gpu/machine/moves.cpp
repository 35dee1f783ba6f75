// Moves between registers, packing and unpacking, addresses of other spaces, and instructions without effect.

#include "lanes.h"

namespace virtual_gpu {
namespace {

template <class T>
struct Same {
  T operator()(T value) const { return value; }
};

// Registers side by side in one, the first in the lowest bits.
Outcome pack(Step& step) {
  const int parts = step.instruction.count - 1;
  const int bits = 8 * step.operand(0).width / parts;
  const u64 mask = (1ull << bits) - 1;
  u32 known = ALL_LANES;
  for (int k = 0; k < parts; ++k) known &= step.defined(1 + k);
  for_lanes(step.lanes, [&](int lane) {
    u64 whole = 0;
    for (int k = 0; k < parts; ++k) whole |= (step.value(1 + k, lane) & mask) << (bits * k);
    step.set_value(0, lane, whole);
  });
  step.define(0, known);
  return Outcome::Next;
}

Outcome unpack(Step& step) {
  const int parts = step.instruction.results;
  const int bits = 8 * step.operand(parts).width / parts;
  u64 whole[WARP];
  for (int lane = 0; lane < WARP; ++lane) whole[lane] = step.value(parts, lane);
  const u32 known = step.defined(parts);
  for (int k = 0; k < parts; ++k) {
    if (!step.given(k)) continue;
    for_lanes(step.lanes, [&](int lane) { step.set_value(k, lane, whole[lane] >> (bits * k)); });
    step.define(k, known);
  }
  return Outcome::Next;
}

template <class T>
Outcome clock(Step& step) {
  for_lanes(step.lanes,
            [&](int lane) { step.values<T>(0)[lane] = static_cast<T>(step.machine.counters.warp_instructions); });
  step.define(0, ALL_LANES);
  return Outcome::Next;
}

struct ToSharedWindow {
  u64 operator()(u64 offset) const { return SHARED_WINDOW | (offset & 0xffffffff); }
};
struct FromSharedWindow {
  u64 operator()(u64 address) const { return address & 0xffffffff; }
};

template <u64 Window>
Outcome is_in_space(Step& step) {
  u32 holds = 0;
  for (int lane = 0; lane < WARP; ++lane)
    holds |= static_cast<u32>(step.values<u64>(1)[lane] >> WINDOW_SHIFT == Window) << lane;
  step.set_predicate(0, holds);
  step.define(0, step.defined(1));
  return Outcome::Next;
}

// The address of the same place in the shared memory of the cluster's block of that rank.
template <class T>
Outcome map_to_rank(Step& step) {
  const u64 window = step.instruction.immediates[0] ? SHARED_WINDOW : 0;
  for_lanes(step.lanes, [&](int lane) {
    const u64 offset = step.values<T>(1)[lane] & SHARED_OFFSET, rank = step.values<u32>(2)[lane] + 1;
    step.values<T>(0)[lane] = static_cast<T>(window | rank << RANK_SHIFT | offset);
  });
  return Outcome::Next;
}

template <class T>
Outcome rank_of(Step& step) {
  for_lanes(step.lanes, [&](int lane) {
    const u32 rank = static_cast<u32>(step.values<T>(1)[lane]) >> RANK_SHIFT;
    step.values<u32>(0)[lane] = rank == 0 ? step.block.rank : rank - 1;
  });
  return Outcome::Next;
}

Outcome nothing(Step&) { return Outcome::Next; }

Outcome trap(Step& step) {
  step.report(Check::Trap, "block %u warp %u: a trap or a failed assertion", step.block.index, step.warp.index);
  return Outcome::Fatal;
}

}  // namespace

void add_moves(Registry& registry) {
  add_unary<Same>(registry, "mov", Types<u16, u32, u64>{});
  registry["pack"] = {pack, Nature::Own};
  registry["unpack"] = {unpack, Nature::Own};
  registry["clock.u32"] = {clock<u32>, Nature::Own};
  registry["clock.u64"] = {clock<u64>, Nature::Own};
  add_plain<u64, ToSharedWindow, u64>(registry, "cvta.shared");
  add_plain<u64, FromSharedWindow, u64>(registry, "cvta.to.shared");
  registry["isspacep.global"] = {is_in_space<0>, Nature::Own};
  registry["isspacep.shared"] = {is_in_space<(SHARED_WINDOW >> WINDOW_SHIFT)>, Nature::Own};
  registry["isspacep.local"] = {is_in_space<(LOCAL_WINDOW >> WINDOW_SHIFT)>, Nature::Own};
  registry["isspacep.param"] = {is_in_space<(PARAM_WINDOW >> WINDOW_SHIFT)>, Nature::Own};
  registry["mapa.u32"] = {map_to_rank<u32>, Nature::Plain};
  registry["mapa.u64"] = {map_to_rank<u64>, Nature::Plain};
  registry["getctarank.u32"] = {rank_of<u32>, Nature::Plain};
  registry["getctarank.u64"] = {rank_of<u64>, Nature::Plain};
  registry["nop"] = {nothing, Nature::Plain};
  registry["trap"] = {trap, Nature::Own};
  registry["bra"] = {nothing, Nature::Branch};
  registry["exit"] = {nothing, Nature::Branch};
}

}  // namespace virtual_gpu
