#include "copying.h"

namespace virtual_gpu {

void begin_write(const Observer& me, Block& owner, u32 offset, u32 size, u32 lane) {
  for_each_word(offset, size, [&](u32 index, u8 bytes) {
    SharedWord& word = owner.words[index];
    if (word.flags & COPY_UNDER_WAY) {
      me.machine.report(Check::CopyNotAwaited, me.place,
                        "a copy to 0x%x of shared memory, where another is under way: block %u warp %u",
                        index * WORD_BYTES, me.block, me.warp);
    }
    if (me.machine.checks.races) write_shared(me, owner, index, bytes, lane, {false, false});
    word.flags |= COPY_UNDER_WAY;
    word.defined &= static_cast<u8>(~bytes);
  });
  std::memset(owner.shared.get() + offset, 0xff, size);
}

void end_write(const Observer& me, Block& owner, u32 offset, const char* source, u32 taken, u32 size, const u8* defined,
               u32 lane) {
  for_each_word(offset, size, [&](u32 index, u8 bytes) {
    owner.words[index].flags &= static_cast<u8>(~COPY_UNDER_WAY);
    if (me.machine.checks.races) write_shared(me, owner, index, bytes, lane, {false, false});
  });
  char* target = owner.shared.get() + offset;
  std::memcpy(target, source, taken);
  std::memset(target + taken, 0, size - taken);
  for (u32 k = 0; k < size; ++k) {
    const bool known = k >= taken || defined == nullptr || defined[k] != 0;
    u8& bits = owner.words[(offset + k) / WORD_BYTES].defined;
    const u8 bit = byte_mask((offset + k) % WORD_BYTES, 1);
    bits = known ? bits | bit : bits & static_cast<u8>(~bit);
  }
}

const u8* defined_map(const Allocation& allocation, u64 address) {
  return allocation.defined ? allocation.defined->get() + (address - allocation.first) : nullptr;
}

void observe_source(const Observer& me, Allocation& allocation, u64 address, u32 size, u32 lane) {
  if (!me.machine.checks.races || !allocation.writable || size == 0) return;
  for (u64 at = address; at < address + size;) {
    const u32 within = at % WORD_BYTES,
              part = static_cast<u32>(std::min<u64>(WORD_BYTES - within, address + size - at));
    read_global(me, *allocation.word(at), at, byte_mask(within, part), lane);
    at += part;
  }
}

bool source_in_bounds(const Step& step, u64 source, u32 taken, int lane) {
  if (taken == 0) return true;
  const Allocation* allocation = step.machine.memory.find(source);
  if (allocation != nullptr && source + taken <= allocation->end) return true;
  step.report(Check::OutOfBounds, "a copy of %u bytes from 0x%llx: block %u warp %u lane %d", taken,
              static_cast<unsigned long long>(source), step.block.index, step.warp.index, lane);
  return false;
}

bool target_in_bounds(const Step& step, SharedPlace target, u32 size, int lane) {
  if (target.owner != nullptr && target.offset + size <= target.owner->shared_bytes) return true;
  step.report(Check::OutOfBounds, "a copy of %u bytes at 0x%x of shared memory: block %u warp %u lane %d", size,
              target.offset, step.block.index, step.warp.index, lane);
  return false;
}

}  // namespace virtual_gpu
