#include "mbarriers.h"

namespace virtual_gpu {
namespace {

constexpr u32 BYTES = 8;
constexpr u8 WHOLE_WORD = 15;

void complete_if_full(Machine& machine, Mbarrier& barrier) {
  if (barrier.pending != 0 || barrier.bytes != 0) return;
  ++barrier.phase;
  barrier.pending = barrier.count;
  barrier.known = barrier.next;
  barrier.proxy_known = barrier.proxy_next;
  ++machine.events;
}

// A use of an mbarrier races with its initialisation like a read with a write.
void observe_use(const Step& step, SharedPlace at, int lane) {
  if (!step.machine.checks.races) return;
  const Observer me = observer_of(step, true);
  for (u32 word = 0; word < BYTES / 4; ++word)
    read_shared(me, *at.owner, at.offset / 4 + word, WHOLE_WORD, static_cast<u32>(lane));
}

SharedPlace place_of(const Step& step, int operand, int lane) {
  return shared_place(step, step.value(operand, lane) + static_cast<u64>(step.instruction.immediates[0]));
}

bool usable(const Step& step, SharedPlace at) {
  if (at.owner != nullptr && at.offset % BYTES == 0 && at.offset + BYTES <= at.owner->shared_bytes) return true;
  step.report(Check::Mbarrier, "no mbarrier can be at 0x%x: block %u warp %u", at.offset, step.block.index,
              step.warp.index);
  return false;
}

template <bool Valid>
Outcome set_validity(Step& step) {
  step.require(0, "an mbarrier's address");
  if (Valid) step.require(1, "an mbarrier's count");
  for_lanes(step.lanes, [&](int lane) {
    const SharedPlace at = place_of(step, 0, lane);
    if (!usable(step, at)) return;
    const Observer me = observer_of(step, false);
    for (u32 word = 0; word < BYTES / 4; ++word) {
      if (step.machine.checks.races)
        write_shared(me, *at.owner, at.offset / 4 + word, WHOLE_WORD, static_cast<u32>(lane), {false, false});
    }
    Mbarrier& barrier = at.owner->mbarriers[at.offset];
    barrier = Mbarrier();
    barrier.valid = Valid;
    barrier.count = barrier.pending = Valid ? static_cast<u32>(step.value(1, lane)) : 0;
    barrier.maker = step.warp.agent;
    barrier.made = step.warp.clock | static_cast<u32>(lane);
  });
  ++step.machine.events;
  return Outcome::Next;
}

enum class Use { Arrive, Expect, ArriveAndExpect };

// Operands: the phase before, the address, a number of arrivals or of bytes.
template <Use How>
Outcome use(Step& step) {
  step.require(1, "an mbarrier's address");
  step.require(2, "an mbarrier's count");
  for_lanes(step.lanes, [&](int lane) {
    const SharedPlace at = place_of(step, 1, lane);
    if (!usable(step, at)) return;
    Mbarrier* barrier = find_mbarrier(step.machine, at, step.place, "an arrival");
    if (barrier == nullptr) return;
    observe_use(step, at, lane);
    if (step.given(0)) step.set_value(0, lane, barrier->phase);
    const u32 number = static_cast<u32>(step.value(2, lane));
    if (How != Use::Arrive) barrier->bytes += number;
    if (How != Use::Expect) arrive(step.machine, at, step.warp, How == Use::Arrive ? number : 1, step.place);
  });
  step.define(0, ALL_LANES);
  ++step.machine.events;
  return Outcome::Next;
}

// Operands: whether the phase has completed, the address, the phase or its parity.
Outcome test(Step& step) {
  step.require(1, "an mbarrier's address");
  step.require(2, "an mbarrier's phase");
  u32 done = 0;
  for_lanes(step.lanes, [&](int lane) {
    const SharedPlace at = place_of(step, 1, lane);
    if (!usable(step, at)) return;
    Mbarrier* barrier = find_mbarrier(step.machine, at, step.place, "a wait");
    if (barrier == nullptr) {
      done |= 1u << lane;
      return;
    }
    observe_use(step, at, lane);
    const u32 wanted = static_cast<u32>(step.value(2, lane));
    const bool parity = step.instruction.immediates[1] != 0;
    const bool completed = parity ? (barrier->phase & 1) != (wanted & 1) : barrier->phase != wanted;
    if (!completed) return;
    done |= 1u << lane;
    acquire(step.warp, barrier->known, barrier->proxy_known);
  });
  step.set_predicate(0, done);
  step.define(0, ALL_LANES);
  if ((step.lanes & ~done) != 0) step.warp.spins = true;
  return Outcome::Next;
}

// fence.mbarrier_init: the mbarriers that this warp has initialised are there for asynchronous operations too.
Outcome fence_initialised(Step& step) {
  for (auto& [offset, barrier] : step.block.mbarriers) barrier.fenced |= barrier.maker == step.warp.agent;
  return Outcome::Next;
}

}  // namespace

SharedPlace shared_place(const Step& step, u64 address) {
  const u32 window = static_cast<u32>(address) >> RANK_SHIFT;
  const Group& group = *step.block.group;
  if (window > group.blocks.size()) return {nullptr, static_cast<u32>(address)};
  return {window == 0 ? &step.block : group.blocks[window - 1], static_cast<u32>(address) & SHARED_OFFSET};
}

Mbarrier* find_mbarrier(Machine& machine, SharedPlace at, i32 place, const char* use) {
  const auto found = at.owner->mbarriers.find(at.offset);
  if (found != at.owner->mbarriers.end() && found->second.valid) return &found->second;
  machine.report(Check::Mbarrier, place,
                 "%s at 0x%x of shared memory, where no mbarrier has been initialised: block %u", use, at.offset,
                 at.owner->index);
  return nullptr;
}

void arrive(Machine& machine, SharedPlace at, Warp& warp, u32 count, i32 place) {
  Mbarrier* barrier = find_mbarrier(machine, at, place, "an arrival");
  if (barrier == nullptr) return;
  if (barrier->pending < count) {
    machine.report(Check::Mbarrier, place, "%u arrivals where %u are awaited, at 0x%x of shared memory: block %u",
                   count, barrier->pending, at.offset, at.owner->index);
    return;
  }
  release(machine, warp, barrier->next, barrier->proxy_next);
  barrier->pending -= count;
  ++machine.events;
  complete_if_full(machine, *barrier);
}

void complete_bytes(Machine& machine, SharedPlace at, u32 bytes, const std::vector<u32>& known,
                    const std::vector<u32>& proxy_known, i32 place) {
  Mbarrier* barrier = find_mbarrier(machine, at, place, "the end of a copy");
  if (barrier == nullptr) return;
  join(barrier->next, known);
  join(barrier->proxy_next, proxy_known);
  barrier->bytes -= bytes;
  ++machine.events;
  complete_if_full(machine, *barrier);
}

void add_mbarriers(Registry& registry) {
  registry["mbarrier.init"] = {set_validity<true>, Nature::Own};
  registry["mbarrier.inval"] = {set_validity<false>, Nature::Own};
  registry["mbarrier.arrive"] = {use<Use::Arrive>, Nature::Own};
  registry["mbarrier.expect"] = {use<Use::Expect>, Nature::Own};
  registry["mbarrier.arrive.expect"] = {use<Use::ArriveAndExpect>, Nature::Own};
  registry["mbarrier.test"] = {test, Nature::Own};
  registry["fence.mbarrier"] = {fence_initialised, Nature::Own};
}

}  // namespace virtual_gpu
