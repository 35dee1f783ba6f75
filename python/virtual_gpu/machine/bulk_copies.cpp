// Bulk copies, by the asynchronous proxy: into shared memory, where they end by an mbarrier, and out of it, where they
// are awaited in groups. Each is performed as late as may be.

#include "access.h"
#include "copies.h"
#include "copying.h"

namespace virtual_gpu {
namespace {

constexpr u32 BULK_UNIT = 16;

void perform_bulk(Machine& machine, BulkCopy& bulk) {
  Group& group = *bulk.owner->group;
  const u32 agent = group.agents - 1;
  const u32 clock = machine.next_time();
  bulk.known[agent] = std::max(bulk.known[agent], group.asynchronous_last);
  const Observer me{machine,
                    group,
                    agent,
                    bulk.owner->index,
                    bulk.warp,
                    clock,
                    0,
                    bulk.known.data(),
                    bulk.proxy_known.data(),
                    bulk.place,
                    false,
                    true,
                    bulk.issuer,
                    bulk.together,
                    bulk.known[bulk.issuer]};
  group.asynchronous_last = clock | LANE_MASK;
  Allocation* allocation = machine.memory.find(bulk.global);
  char* shared = bulk.owner->shared.get() + bulk.shared;
  if (bulk.loads) {
    observe_source(me, *allocation, bulk.global, bulk.size, bulk.lane);
    end_write(me, *bulk.owner, bulk.shared, reinterpret_cast<const char*>(bulk.global), bulk.size, bulk.size,
              defined_map(*allocation, bulk.global), bulk.lane);
    bulk.known[agent] = clock | LANE_MASK;
    bulk.proxy_known[agent] = clock | LANE_MASK;
    complete_bytes(machine, {bulk.barrier_owner, bulk.barrier}, bulk.size, bulk.known, bulk.proxy_known, bulk.place);
  } else {
    for_each_word(bulk.shared, bulk.size, [&](u32 index, u8 bytes) {
      bulk.owner->words[index].flags &= static_cast<u8>(~READ_UNDER_WAY);
      if (machine.checks.races) read_shared(me, *bulk.owner, index, bytes, bulk.lane);
    });
    for (u32 at = 0; machine.checks.races && at < bulk.size; at += WORD_BYTES) {
      const bool same = std::memcmp(reinterpret_cast<const char*>(bulk.global) + at, shared + at, WORD_BYTES) == 0;
      write_global(me, *allocation->word(bulk.global + at), bulk.global + at, byte_mask(0, WORD_BYTES), bulk.lane,
                   {same, same});
    }
    std::memcpy(reinterpret_cast<char*>(bulk.global), shared, bulk.size);
  }
  ++machine.events;
}

// Operands: the target, the source, the size, and for a load the mbarrier.
template <bool Loads>
Outcome bulk(Step& step) {
  for (int k = 0; k < step.instruction.count; ++k) step.require(k, "an operand of a bulk copy");
  Machine& machine = step.machine;
  for_lanes(step.lanes, [&](int lane) {
    const SharedPlace shared = shared_place(step, step.value(Loads ? 0 : 1, lane));
    const u64 global = step.value(Loads ? 1 : 0, lane);
    const u32 size = static_cast<u32>(step.value(2, lane));
    if (shared.offset % BULK_UNIT != 0 || global % BULK_UNIT != 0 || size % BULK_UNIT != 0) {
      step.report(Check::Misaligned, "a bulk copy of %u bytes between 0x%llx and 0x%x: block %u warp %u", size,
                  static_cast<unsigned long long>(global), shared.offset, step.block.index, step.warp.index);
      return;
    }
    if (!target_in_bounds(step, shared, size, lane) || !source_in_bounds(step, global, size, lane)) return;
    BulkCopy made{global,
                  shared.owner,
                  shared.offset,
                  size,
                  Loads,
                  nullptr,
                  0,
                  step.warp.index,
                  step.warp.bulk_committed[static_cast<size_t>(lane)],
                  step.place,
                  step.warp.known,
                  step.warp.proxy_known,
                  step.warp.agent,
                  static_cast<u32>(lane),
                  step.warp.together};
    made.known[step.warp.agent] = step.warp.clock | LANE_MASK;
    const u32 agent = step.block.group->agents - 1;
    made.known[agent] = made.proxy_known[agent] = step.block.group->asynchronous_last;
    const Observer me{machine,
                      *step.block.group,
                      agent,
                      step.block.index,
                      step.warp.index,
                      machine.next_time(),
                      0,
                      made.known.data(),
                      made.proxy_known.data(),
                      step.place,
                      false,
                      true,
                      made.issuer,
                      made.together,
                      made.known[made.issuer]};
    if (Loads) {
      const SharedPlace barrier =
          shared_place(step, step.value(3, lane) + static_cast<u64>(step.instruction.immediates[0]));
      if (barrier.owner == nullptr) return;
      const Mbarrier* found = find_mbarrier(machine, barrier, step.place, "a bulk copy");
      if (found == nullptr) return;
      if (!found->fenced && found->made > step.warp.proxy_known[found->maker]) {
        step.report(Check::ProxyFence, "an mbarrier at 0x%x, initialised without a fence before this: block %u warp %u",
                    barrier.offset, step.block.index, step.warp.index);
      }
      made.barrier_owner = barrier.owner;
      made.barrier = barrier.offset;
      begin_write(me, *shared.owner, shared.offset, size, made.lane);
      step.block.group->asynchronous_last = me.clock | LANE_MASK;
    } else {
      for_each_word(shared.offset, size, [&](u32 index, u8) { shared.owner->words[index].flags |= READ_UNDER_WAY; });
    }
    step.warp.clock = machine.next_time();  // what the lanes do from now on does not come before the copy
    count_bulk(step, global, size, !Loads);
    step.block.bulk_copies.push_back(std::move(made));
  });
  ++machine.events;
  return Outcome::Next;
}

Outcome commit_bulk(Step& step) {
  for_lanes(step.lanes, [&](int lane) { ++step.warp.bulk_committed[static_cast<size_t>(lane)]; });
  return Outcome::Next;
}

// Each lane waits for what it has committed itself; that the stores are done is then known to the warp.
Outcome wait_for_bulk(Step& step) {
  Warp& warp = step.warp;
  const auto awaited = [&](const BulkCopy& copy) {
    if (copy.loads || copy.warp != warp.index || !(step.lanes >> copy.lane & 1)) return false;
    return copy.group < warp.bulk_committed[copy.lane] - static_cast<i32>(step.instruction.immediates[0]);
  };
  auto& copies = step.block.bulk_copies;
  for (auto copy = std::find_if(copies.begin(), copies.end(), awaited); copy != copies.end();
       copy = std::find_if(copies.begin(), copies.end(), awaited)) {
    BulkCopy taken = std::move(*copy);
    copies.erase(copy);
    perform_bulk(step.machine, taken);
    warp.known[step.block.group->agents - 1] = step.block.group->asynchronous_last;
  }
  find_floor(warp);
  return Outcome::Next;
}

}  // namespace

bool perform_load(Machine& machine, Block& block) {
  const auto load =
      std::find_if(block.bulk_copies.begin(), block.bulk_copies.end(), [](const BulkCopy& copy) { return copy.loads; });
  if (load == block.bulk_copies.end()) return false;
  BulkCopy taken = std::move(*load);
  block.bulk_copies.erase(load);
  perform_bulk(machine, taken);
  return true;
}

void end_bulk_copies(Machine& machine, Block& block) {
  for (const BulkCopy& copy : block.bulk_copies) {
    machine.report(Check::CopyNotAwaited, copy.place, "the block %u ends while a bulk copy is under way", block.index);
  }
  block.bulk_copies.clear();
}

void add_bulk_copies(Registry& registry) {
  registry["bulk.load"] = {bulk<true>, Nature::Own};
  registry["bulk.store"] = {bulk<false>, Nature::Own};
  registry["bulk.commit"] = {commit_bulk, Nature::Own};
  registry["bulk.wait"] = {wait_for_bulk, Nature::Own};
}

}  // namespace virtual_gpu
