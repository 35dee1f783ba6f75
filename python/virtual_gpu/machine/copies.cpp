// cp.async: copies of a few bytes by each thread. Each is performed as late as its wait lets it be, so that a wait that
// is missing shows.

#include "copies.h"

#include "copying.h"

namespace virtual_gpu {
namespace {

// The copy as it ends: it writes with what its warp knows now, and reads what it knew at the issue.
void perform(Machine& machine, Warp& warp, int lane, const Copy& copy) {
  ++machine.events;
  if (!copy.issue) {
    arrive(machine, {warp.block, static_cast<u32>(copy.target)}, warp, 1, copy.place);
    return;
  }
  const Observer writer = observer_of(machine, warp, copy.place, false);
  Observer reader = writer;
  reader.floor = 0;
  reader.known = copy.issue->known.data();
  reader.together = copy.issue->together;
  reader.issued = copy.issue->known[warp.agent];
  Allocation* allocation = copy.taken != 0 ? machine.memory.find(copy.source) : nullptr;
  if (allocation != nullptr) observe_source(reader, *allocation, copy.source, copy.taken, static_cast<u32>(lane));
  const u8* defined = allocation != nullptr ? defined_map(*allocation, copy.source) : nullptr;
  end_write(writer, *warp.block, static_cast<u32>(copy.target), reinterpret_cast<const char*>(copy.source), copy.taken,
            copy.size, defined, static_cast<u32>(lane));
}

void perform_groups_before(Machine& machine, Warp& warp, int lane, i32 group) {
  auto& copies = warp.copies[static_cast<size_t>(lane)];
  while (!copies.empty() && copies.front().group < group) {
    const Copy copy = copies.front();
    copies.pop_front();
    perform(machine, warp, lane, copy);
  }
}

// Lanes that copy nothing, and fill with zeros, read nothing.
void count_source(Step& step, u32 size) {
  Access access{step, GLOBAL, 0, size, {}, {}, false, false, nullptr, nullptr};
  for_lanes(step.lanes, [&](int lane) {
    access.address[lane] = step.value(1, lane);
    if (step.value(2, lane) != 0) access.lanes |= u32{1} << lane;
  });
  if (access.lanes != 0) count_request(access, false);
}

Outcome copy(Step& step) {
  step.require(0, "an address");
  step.require(1, "an address");
  step.require(2, "a copy's size");
  const u32 size = static_cast<u32>(step.instruction.immediates[0]);
  count_source(step, size);
  const Observer me = observer_of(step, false);
  Issue issue{step.warp.known, step.warp.together};
  issue.known[step.warp.agent] = step.warp.clock | LANE_MASK;
  const auto issued = std::make_shared<const Issue>(std::move(issue));
  for_lanes(step.lanes, [&](int lane) {
    const SharedPlace target = shared_place(step, step.value(0, lane));
    const u64 source = step.value(1, lane);
    const u32 taken = std::min(static_cast<u32>(step.value(2, lane)), size);
    if (!target_in_bounds(step, target, size, lane)) return;
    if (target.offset % size != 0 || (taken != 0 && source % size != 0)) {
      step.report(Check::Misaligned, "a copy of %u bytes from 0x%llx to 0x%x: block %u warp %u lane %d", size,
                  static_cast<unsigned long long>(source), target.offset, step.block.index, step.warp.index, lane);
      return;
    }
    const u32 legal = source_in_bounds(step, source, taken, lane) ? taken : 0;
    begin_write(me, *target.owner, target.offset, size, static_cast<u32>(lane));
    step.warp.copies[static_cast<size_t>(lane)].push_back(
        {target.offset, source, size, legal, step.warp.committed[static_cast<size_t>(lane)], step.place, issued});
  });
  step.warp.clock = step.machine.next_time();  // what the lanes do from now on does not come before the copies
  return Outcome::Next;
}

Outcome commit(Step& step) {
  for_lanes(step.lanes, [&](int lane) { ++step.warp.committed[static_cast<size_t>(lane)]; });
  return Outcome::Next;
}

Outcome wait(Step& step) {
  const i64 left = step.instruction.immediates[0];
  for_lanes(step.lanes, [&](int lane) {
    i32& committed = step.warp.committed[static_cast<size_t>(lane)];
    if (left < 0) ++committed;
    perform_groups_before(step.machine, step.warp, lane, committed - static_cast<i32>(std::max<i64>(left, 0)));
  });
  return Outcome::Next;
}

// cp.async.mbarrier.arrive: an arrival once the thread's copies before it are done.
Outcome arrive_after_copies(Step& step) {
  for_lanes(step.lanes, [&](int lane) {
    const SharedPlace at = shared_place(step, step.value(0, lane) + static_cast<u64>(step.instruction.immediates[0]));
    Mbarrier* barrier = at.owner != nullptr ? find_mbarrier(step.machine, at, step.place, "an arrival") : nullptr;
    if (barrier == nullptr) return;
    const bool counted_already = step.instruction.immediates[1] != 0;
    if (!counted_already) ++barrier->pending;
    step.warp.copies[static_cast<size_t>(lane)].push_back(
        {at.offset, 0, 0, 0, step.warp.committed[static_cast<size_t>(lane)], step.place, nullptr});
  });
  ++step.machine.events;
  return Outcome::Next;
}

}  // namespace

void end_copies(Machine& machine, Warp& warp, u32 lanes) {
  if (!warp.products.empty()) {
    machine.report(Check::CopyNotAwaited, warp.products.front().place,
                   "a warp ends while its wgmma is under way: block %u warp %u", warp.block->index, warp.index);
    warp.products.clear();
  }
  for_lanes(lanes, [&](int lane) {
    auto& copies = warp.copies[static_cast<size_t>(lane)];
    const bool arrives = std::any_of(copies.begin(), copies.end(), [](const Copy& copy) { return !copy.issue; });
    if (copies.empty() || arrives) return;
    machine.report(Check::CopyNotAwaited, copies.front().place,
                   "a thread ends while its copies are under way: block %u warp %u", warp.block->index, warp.index);
    copies.clear();
  });
}

bool perform_arrival(Machine& machine, Block& block) {
  for (Warp& warp : block.warps) {
    for (int lane = 0; lane < WARP; ++lane) {
      auto& copies = warp.copies[static_cast<size_t>(lane)];
      // Only where an arrival comes behind: other copies wait for their own wait.
      if (std::none_of(copies.begin(), copies.end(), [](const Copy& copy) { return !copy.issue; })) continue;
      const Copy taken = copies.front();
      copies.pop_front();
      perform(machine, warp, lane, taken);
      return true;
    }
  }
  return false;
}

void add_copies(Registry& registry) {
  registry["cp.async"] = {copy, Nature::Own};
  registry["cp.commit"] = {commit, Nature::Own};
  registry["cp.wait"] = {wait, Nature::Own};
  registry["cp.arrive"] = {arrive_after_copies, Nature::Own};
}

}  // namespace virtual_gpu
