#include "ordering.h"

#include <algorithm>

namespace virtual_gpu {

void join(std::vector<u32>& known, const std::vector<u32>& other) {
  if (known.size() < other.size()) known.resize(other.size(), 0);
  for (size_t k = 0; k < other.size(); ++k) known[k] = std::max(known[k], other[k]);
}

void release(Machine& machine, Warp& warp, std::vector<u32>& known, std::vector<u32>& proxy_known) {
  warp.known[warp.agent] = warp.clock | LANE_MASK;
  join(known, warp.known);
  join(proxy_known, warp.proxy_known);
  warp.clock = machine.next_time();
}

void acquire(Warp& warp, const std::vector<u32>& known, const std::vector<u32>& proxy_known) {
  join(warp.known, known);
  join(warp.proxy_known, proxy_known);
  if (warp.agent < known.size()) warp.together = std::max(warp.together, known[warp.agent]);
  find_floor(warp);
}

void find_floor(Warp& warp) {
  const Group& group = *warp.block->group;
  const u32 asynchronous = group.agents - 1;
  u32 floor = ALL_LANES;
  for (u32 agent = 0; agent < group.agents; ++agent) {
    const bool idle = agent == asynchronous && warp.known[agent] >= group.asynchronous_last;
    if (agent != warp.agent && !idle) floor = std::min(floor, warp.known[agent]);
  }
  warp.floor = std::min(floor, warp.together);
}

void fence_grid(Machine& machine, Group& group) {
  if (group.known.size() < machine.groups) group.known.resize(machine.groups, 0);
  join(group.known, group.pending);
  group.known[group.index] = machine.time | LANE_MASK;
  group.fenced = group.known;
  const u32 clock = machine.next_time();
  for (Block* block : group.blocks) {
    for (Warp& warp : block->warps) warp.clock = clock;
  }
}

namespace {

// Whether an access orders others itself, beyond its block.
bool orders(const Access& access, u16 how) {
  const u16 flags = access.step.instruction.flags;
  return (flags & how) && (flags & WHOLE_GRID);
}

}  // namespace

void acquire_at(const Access& access) {
  Machine& machine = access.step.machine;
  Group& group = *access.step.block.group;
  for_lanes(access.lanes, [&](int lane) {
    const auto found = machine.released.find(access.address[lane]);
    if (found == machine.released.end()) return;
    join(group.pending, found->second);
    if (orders(access, ACQUIRE)) join(group.known, found->second);
  });
}

void release_at(const Access& access) {
  Machine& machine = access.step.machine;
  Group& group = *access.step.block.group;
  if (orders(access, RELEASE)) fence_grid(machine, group);
  for_lanes(access.lanes, [&](int lane) { machine.released[access.address[lane]] = group.fenced; });
}

}  // namespace virtual_gpu
