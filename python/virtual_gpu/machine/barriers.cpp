#include "barriers.h"

#include <algorithm>

#include "ordering.h"

namespace virtual_gpu {
namespace {

constexpr u32 NO_THREADS = 0;

// What a barrier's reduction gives; the order is that of ptx/warp.py.
enum : i64 { COUNTS, ALL, ANY };

void write_vote(Machine& machine, Warp& warp, const Path& path, const Barrier& barrier) {
  const Instruction& instruction = machine.program->code[path.place - 1];
  if (instruction.results == 0) return;
  Step step{machine, *warp.block, warp, instruction, path.at_collective, path.place - 1, 0};
  if (instruction.immediates[1] == COUNTS) {
    for_lanes(step.lanes, [&](int lane) { step.values<u32>(0)[lane] = barrier.votes; });
  } else {
    const bool holds = instruction.immediates[1] == ALL ? barrier.votes_all != 0 : barrier.votes_any != 0;
    step.set_predicate(0, holds ? ALL_LANES : 0);
  }
  step.define(0, ALL_LANES);
}

void release_if_full(Machine& machine, Block& block, u32 number) {
  Barrier& barrier = block.barriers[number];
  const u32 expected = barrier.counted ? barrier.expected : block.live;
  if (barrier.arrived == 0 || barrier.arrived < expected) return;
  // All who arrived have nothing under way: what they did up to now comes before what they do next.
  const u32 now = machine.time | LANE_MASK, clock = machine.next_time();
  for (Warp& warp : block.warps) {
    if (barrier.known.empty() || barrier.known[warp.agent] == 0) continue;
    if (time_of(barrier.known[warp.agent]) == warp.clock) barrier.known[warp.agent] = now;
  }
  for (Warp& warp : block.warps) {
    bool waited = false;
    for (Path& path : warp.paths) {
      if (path.state != PathState::AtBarrier || path.barrier != number) continue;
      write_vote(machine, warp, path, barrier);
      path.state = PathState::Ready;
      waited = true;
    }
    if (!waited) continue;
    warp.clock = clock;
    acquire(warp, barrier.known, barrier.proxy_known);
  }
  barrier = Barrier();
  ++machine.events;
  ++machine.counters.barriers;
}

// Operands: for a reduction its result first; the barrier, the number of threads, a reduction's predicate.
enum class Arrival { Waits, Arrives, Reduces };

template <Arrival How>
Outcome arrive(Step& step) {
  constexpr int first = How == Arrival::Reduces ? 1 : 0;
  step.require(first, "a barrier's number");
  const int lane = first_lane(step.lanes);
  const u32 number = static_cast<u32>(step.value(first, lane)) & 15;
  const u32 count = static_cast<u32>(step.value(first + 1, lane));
  Block& block = step.block;
  Warp& warp = step.warp;
  Barrier& barrier = block.barriers[number];
  const bool aligned = step.instruction.immediates[0] != 0;
  if (aligned && step.lanes != warp.alive) {
    step.report(Check::DivergentBarrier, "lanes 0x%x of 0x%x reach the barrier: block %u warp %u", step.lanes,
                warp.alive, block.index, warp.index);
  }
  if (count % WARP != 0 || count > block.warps.size() * WARP) {
    step.report(Check::BarrierCount, "barrier %u of %u threads, in a block of %u", number, count, block.threads);
  }
  if (barrier.arrived != 0 && (barrier.counted != (count != NO_THREADS) || barrier.expected != count)) {
    step.report(Check::BarrierCount, "barrier %u of %u threads, which others reached as one of %u", number, count,
                barrier.expected);
  }
  barrier.counted = count != NO_THREADS;
  barrier.expected = count;
  // A warp counts whole where a number is given, also where some of its threads have ended.
  const bool whole = barrier.counted && step.lanes == warp.alive;
  barrier.arrived += whole ? WARP : static_cast<u32>(count_lanes(step.lanes));
  warp.known[warp.agent] = warp.clock | LANE_MASK;
  join(barrier.known, warp.known);
  join(barrier.proxy_known, warp.proxy_known);
  if (How == Arrival::Reduces) {
    step.require(3, "a barrier's vote");
    const u32 yes = step.predicate(3) & step.lanes;
    barrier.votes += static_cast<u32>(count_lanes(yes));
    barrier.votes_any |= yes;
    barrier.votes_all &= static_cast<u32>(yes == step.lanes);
  }
  ++step.machine.events;
  if (How == Arrival::Arrives) {
    warp.clock = step.machine.next_time();
    release_if_full(step.machine, block, number);
    return Outcome::Next;
  }
  Path& path = warp.paths[step.path];
  path.state = PathState::AtBarrier;
  path.barrier = static_cast<u8>(number);
  path.place = step.place + 1;
  path.at_collective = step.lanes;
  release_if_full(step.machine, block, number);
  return Outcome::Wait;
}

Outcome synchronise_warp(Step& step) {
  synchronise_lanes(step.machine, step.warp);
  find_floor(step.warp);
  return Outcome::Next;
}

Outcome arrive_at_cluster(Step& step) {
  Group& group = *step.block.group;
  const bool relaxed = step.instruction.immediates[0] != 0;
  if (const u32 twice = step.warp.at_cluster & step.lanes) {
    step.report(Check::BarrierCount,
                "lanes 0x%x arrive at the cluster's barrier again and have not waited: block %u warp %u", twice,
                step.block.index, step.warp.index);
  }
  step.warp.at_cluster |= step.lanes;
  group.cluster_arrived += static_cast<u32>(count_lanes(step.lanes));
  step.warp.cluster_phase = group.cluster_phase;
  if (!relaxed) release(step.machine, step.warp, group.cluster_known, group.cluster_proxy_known);
  ++step.machine.events;
  release_full_cluster(step.machine, group);
  return Outcome::Next;
}

Outcome wait_for_cluster(Step& step) {
  Group& group = *step.block.group;
  if (const u32 absent = step.lanes & ~step.warp.at_cluster) {
    step.report(Check::BarrierCount, "lanes 0x%x wait at the cluster's barrier and have not arrived: block %u warp %u",
                absent, step.block.index, step.warp.index);
  }
  step.warp.at_cluster &= ~step.lanes;
  if (step.warp.cluster_phase != group.cluster_phase) {
    acquire(step.warp, group.cluster_released, group.cluster_proxy_released);
    return Outcome::Next;
  }
  Path& path = step.warp.paths[step.path];
  path.state = PathState::AtCluster;
  path.place = step.place + 1;
  return Outcome::Wait;
}

Outcome fence(Step& step) {
  fence_grid(step.machine, *step.block.group);
  return Outcome::Next;
}

// What the warp knows, its own writes included, is visible to asynchronous operations that come after.
Outcome fence_proxies(Step& step) {
  Warp& warp = step.warp;
  warp.known[warp.agent] = warp.clock | LANE_MASK;
  join(warp.proxy_known, warp.known);
  warp.clock = step.machine.next_time();
  return Outcome::Next;
}

}  // namespace

void release_full_barriers(Machine& machine, Block& block) {
  for (u32 number = 0; number < block.barriers.size(); ++number) release_if_full(machine, block, number);
}

void release_full_cluster(Machine& machine, Group& group) {
  u32 live = 0;
  for (const Block* block : group.blocks) live += block->live;
  if (group.cluster_arrived == 0 || group.cluster_arrived < live) return;
  group.cluster_arrived = 0;
  ++group.cluster_phase;
  group.cluster_released = std::move(group.cluster_known);
  group.cluster_proxy_released = std::move(group.cluster_proxy_known);
  group.cluster_known.clear();
  group.cluster_proxy_known.clear();
  for (Block* block : group.blocks) {
    for (Warp& warp : block->warps) {
      for (Path& path : warp.paths) {
        if (path.state != PathState::AtCluster) continue;
        path.state = PathState::Ready;
        acquire(warp, group.cluster_released, group.cluster_proxy_released);
      }
    }
  }
  ++machine.events;
  ++machine.counters.barriers;
}

void add_barriers(Registry& registry) {
  registry["bar.sync"] = {arrive<Arrival::Waits>, Nature::Own};
  registry["bar.arrive"] = {arrive<Arrival::Arrives>, Nature::Own};
  registry["bar.red"] = {arrive<Arrival::Reduces>, Nature::Own};
  registry["bar.warp"] = {synchronise_warp, Nature::CollectiveOfMask};
  registry["bar.cluster.arrive"] = {arrive_at_cluster, Nature::Own};
  registry["bar.cluster.wait"] = {wait_for_cluster, Nature::Own};
  registry["fence.grid"] = {fence, Nature::Own};
  registry["fence.proxy"] = {fence_proxies, Nature::Own};
}

}  // namespace virtual_gpu
