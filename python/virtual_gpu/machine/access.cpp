#include "access.h"

#include <algorithm>

namespace virtual_gpu {
namespace {

constexpr u32 WORD = 4;
constexpr u8 WHOLE_WORD = 15;

void report_bounds(const Step& step, u64 address, u32 size, int lane, bool writes) {
  const Allocation* before = step.machine.memory.at_or_before(address);
  const char* name = before != nullptr ? before->name.c_str() : "nothing";
  step.report(Check::OutOfBounds,
              "a %s of %u bytes at 0x%llx, %lld bytes from the start of %s (%llu bytes): block %u warp %u lane %d",
              writes ? "write" : "read", size, static_cast<unsigned long long>(address),
              before != nullptr ? static_cast<long long>(address - before->first) : 0ll, name,
              before != nullptr ? static_cast<unsigned long long>(before->size()) : 0ull, step.block.index,
              step.warp.index, lane);
}

void report_bounds_of(const Step& step, const char* space, u64 offset, u64 limit, u32 size, int lane) {
  step.report(Check::OutOfBounds, "%u bytes at %llu of %llu of %s memory: block %u warp %u lane %d", size,
              static_cast<unsigned long long>(offset), static_cast<unsigned long long>(limit), space, step.block.index,
              step.warp.index, lane);
}

// The space that a lane's address lies in, by its window.
i32 space_of(const Step& step, u64 address) {
  if (step.instruction.space == SHARED) return SHARED;
  switch (address >> WINDOW_SHIFT) {
    case SHARED_WINDOW >> WINDOW_SHIFT: return SHARED;
    case LOCAL_WINDOW >> WINDOW_SHIFT: return LOCAL;
    case PARAM_WINDOW >> WINDOW_SHIFT: return PARAM;
    default: return GLOBAL;
  }
}

u32 lanes_within(const u64 (&address)[WARP], u64 first, u64 end, u32 size) {
  u32 out = 0;
  const u64 room = end - first - size;
  for (int lane = 0; lane < WARP; ++lane) out |= static_cast<u32>(address[lane] - first <= room) << lane;
  return out;
}

// Each of these takes the lanes that share the first one's place; none means that the first one is refused.
u32 take_global(Access& access, const u64 (&address)[WARP], bool writes, u32 remaining) {
  const int first = first_lane(remaining);
  Allocation* allocation = access.step.machine.memory.find(address[first]);
  if (allocation == nullptr || address[first] + access.size > allocation->end) {
    report_bounds(access.step, address[first], access.size, first, writes);
    return 0;
  }
  if (writes && !allocation->writable) {
    access.step.report(Check::ReadOnly, "a write to %s, which is read-only: block %u warp %u lane %d",
                       allocation->name.c_str(), access.step.block.index, access.step.warp.index, first);
    return 0;
  }
  access.allocation = allocation;
  const u32 lanes = remaining & lanes_within(address, allocation->first, allocation->end, access.size);
  for (int lane = 0; lane < WARP; ++lane) {
    access.address[lane] = address[lane];
    access.bytes[lane] = reinterpret_cast<char*>(address[lane]);
  }
  return lanes;
}

u32 take_shared(Access& access, const u64 (&address)[WARP], u32 remaining) {
  const int first = first_lane(remaining);
  const u32 window = static_cast<u32>(address[first]) >> RANK_SHIFT;
  Step& step = access.step;
  Group& group = *step.block.group;
  if (window > group.blocks.size()) {
    report_bounds_of(step, "a cluster's shared", address[first] & 0xffffffff, group.blocks.size(), access.size, first);
    return 0;
  }
  access.owner = window == 0 ? &step.block : group.blocks[window - 1];
  const u32 limit = access.owner->shared_bytes;
  const u32 offset = static_cast<u32>(address[first]) & SHARED_OFFSET;
  if (offset + access.size > limit) {
    report_bounds_of(step, "shared", offset, limit, access.size, first);
    return 0;
  }
  u32 lanes = 0;
  const u32 start = window << RANK_SHIFT, room = limit - access.size;
  for (int lane = 0; lane < WARP; ++lane) {
    const u32 at = static_cast<u32>(address[lane]) - start;
    lanes |= static_cast<u32>(at <= room) << lane;
    access.address[lane] = at;
    access.bytes[lane] = access.owner->shared.get() + at;
  }
  return lanes & remaining;
}

u32 take_local(Access& access, const u64 (&address)[WARP], u32 remaining) {
  Step& step = access.step;
  const u64 limit = step.machine.program->local_bytes;
  u32 lanes = 0;
  for_lanes(remaining, [&](int lane) {
    const u64 offset = address[lane] & (LOCAL_WINDOW - 1);
    if (address[lane] >> WINDOW_SHIFT != LOCAL_WINDOW >> WINDOW_SHIFT || offset + access.size > limit) return;
    access.address[lane] = (step.warp.index * WARP + lane) * limit + offset;
    access.bytes[lane] = step.block.local.get() + access.address[lane];
    lanes |= 1u << lane;
  });
  const int first = first_lane(remaining);
  if (!(lanes >> first & 1)) {
    report_bounds_of(step, "local", address[first] & (LOCAL_WINDOW - 1), limit, access.size, first);
    return 0;
  }
  return lanes;
}

// Addresses that need no search: one for all lanes, or one behind the other.
void find_pattern(Access& access) {
  const u64 origin = access.address[first_lane(access.lanes)];
  u32 same = 0, next = 0;
  for (int lane = 0; lane < WARP; ++lane) {
    same |= static_cast<u32>(access.address[lane] == origin) << lane;
    next |= static_cast<u32>(access.address[lane] == origin + static_cast<u64>(lane) * access.size) << lane;
  }
  access.alike = (access.lanes & ~same) == 0;
  access.side_by_side = access.lanes == ALL_LANES && next == ALL_LANES;
}

u32 take_parameters(Access& access, const u64 (&address)[WARP], bool writes, u32 remaining) {
  Step& step = access.step;
  u32 lanes = 0;
  for_lanes(remaining, [&](int lane) {
    const u64 offset = address[lane] - PARAM_WINDOW;
    if (writes || offset + access.size > step.machine.parameter_bytes) return;
    access.address[lane] = offset;
    access.bytes[lane] = const_cast<char*>(step.machine.parameters) + offset;
    lanes |= 1u << lane;
  });
  const int first = first_lane(remaining);
  if (!(lanes >> first & 1)) {
    report_bounds_of(step, "parameter", address[first] - PARAM_WINDOW, step.machine.parameter_bytes, access.size,
                     first);
    return 0;
  }
  return lanes;
}

}  // namespace

void read_addresses(const Step& step, int operand, i64 offset, u64 (&address)[WARP]) {
  if (step.operand(operand).width == 8) {
    const u64* base = step.values<u64>(operand);
    for (int lane = 0; lane < WARP; ++lane) address[lane] = base[lane] + static_cast<u64>(offset);
  } else {
    const u32* base = step.values<u32>(operand);
    for (int lane = 0; lane < WARP; ++lane) address[lane] = static_cast<u32>(base[lane] + static_cast<u32>(offset));
  }
}

bool next_access(Access& access, const u64 (&address)[WARP], bool writes, u32& remaining) {
  Step& step = access.step;
  while (remaining != 0) {
    const int first = first_lane(remaining);
    access.space = space_of(step, address[first]);
    u32 taken = remaining;
    if (step.instruction.space == GENERIC) {
      u32 alike = 0;
      const u64 window = address[first] >> WINDOW_SHIFT;
      for (int lane = 0; lane < WARP; ++lane)
        alike |= static_cast<u32>(address[lane] >> WINDOW_SHIFT == window) << lane;
      taken &= alike;
    }
    switch (access.space) {
      case GLOBAL: taken = take_global(access, address, writes, taken); break;
      case SHARED: taken = take_shared(access, address, taken); break;
      case LOCAL: taken = take_local(access, address, taken); break;
      default: taken = take_parameters(access, address, writes, taken); break;
    }
    if (taken == 0) {
      remaining &= remaining - 1;
      continue;
    }
    remaining &= ~taken;
    u32 crooked = 0;
    for (int lane = 0; lane < WARP; ++lane)
      crooked |= static_cast<u32>((access.address[lane] & (access.size - 1)) != 0) << lane;
    crooked &= taken;
    if (crooked != 0) {
      const int lane = first_lane(crooked);
      step.report(Check::Misaligned, "%u bytes at 0x%llx: block %u warp %u lane %d", access.size,
                  static_cast<unsigned long long>(access.address[lane]), step.block.index, step.warp.index, lane);
      taken &= ~crooked;
      if (taken == 0) continue;
    }
    access.lanes = taken;
    find_pattern(access);
    return true;
  }
  return false;
}

namespace {

// A word's bytes are aligned to their size, so that they lie in one word or fill several.
bool word_defined(const SharedWord* words, u32 at, u32 size) {
  if (size < WORD) {
    const u8 mask = byte_mask(at % WORD, size);
    return (words[at / WORD].defined & mask) == mask;
  }
  u8 all = WHOLE_WORD;
  for (u32 word = 0; word < size / WORD; ++word) all &= words[at / WORD + word].defined;
  return all == WHOLE_WORD;
}

u32 defined_bytes_of(const Access& access, u32 lanes, u32 offset, u32 size) {
  u32 known = 0;
  if (access.space == SHARED) {
    const SharedWord* words = access.owner->words.data();
    for_lanes(lanes, [&](int lane) {
      known |= static_cast<u32>(word_defined(words, static_cast<u32>(access.address[lane]) + offset, size)) << lane;
    });
    return known;
  }
  const u8* map = nullptr;
  u64 base = 0;
  if (access.space == GLOBAL && access.allocation->defined) {
    map = access.allocation->defined->get();
    base = access.allocation->first;
  } else if (access.space == LOCAL) {
    map = access.step.block.local_defined.data();
  }
  if (map == nullptr) return lanes;
  for_lanes(lanes, [&](int lane) {
    const u8* at = map + (access.address[lane] - base) + offset;
    bool all = true;
    for (u32 k = 0; k < size; ++k) all &= at[k] != 0;
    known |= static_cast<u32>(all) << lane;
  });
  return known;
}

}  // namespace

u32 defined_bytes(const Access& access, u32 offset, u32 size) {
  const u32 lanes = access.alike ? access.lanes & -access.lanes : access.lanes;
  const u32 known = defined_bytes_of(access, lanes, offset, size);
  return access.alike ? (known != 0 ? access.lanes : 0) : known;
}

void define_bytes(const Access& access, u32 offset, u32 size, u32 known) {
  if (access.space == SHARED) {
    SharedWord* words = access.owner->words.data();
    for_lanes(access.lanes, [&](int lane) {
      const u32 at = static_cast<u32>(access.address[lane]) + offset;
      for (u32 done = 0; done < size; done += WORD) {
        const u8 mask = byte_mask((at + done) % WORD, std::min(size, WORD));
        u8& defined = words[(at + done) / WORD].defined;
        defined = known >> lane & 1 ? defined | mask : defined & ~mask;
      }
    });
    return;
  }
  if (access.space == GLOBAL && !access.allocation->defined) {
    const u32 missing = access.lanes & ~known;
    if (missing != 0 && access.step.machine.checks.initialised)
      access.step.report_undefined(missing, "a value stored to global memory");
    return;
  }
  u8* map = access.space == GLOBAL ? access.allocation->defined->get() : access.step.block.local_defined.data();
  const u64 base = access.space == GLOBAL ? access.allocation->first : 0;
  for_lanes(access.lanes, [&](int lane) {
    std::memset(map + (access.address[lane] - base) + offset, static_cast<int>(known >> lane & 1), size);
  });
}

namespace {

// Calls `body` with each lane's words, and the bytes of each; where all lanes read one place, once for all.
template <class Body>
void for_each_word(const Access& access, bool once, Body body) {
  const bool joined = once && access.alike && (access.lanes & (access.lanes - 1));
  for_lanes(joined ? access.lanes & -access.lanes : access.lanes, [&](int lane) {
    const u32 who = joined ? SEVERAL_LANES : static_cast<u32>(lane);
    const u64 first = access.address[lane];
    if (access.size < WORD) {
      body(who, first, byte_mask(first % WORD, access.size));
      return;
    }
    for (u64 at = first; at < first + access.size; at += WORD) body(who, at, WHOLE_WORD);
  });
}

}  // namespace

void observe_reads(const Access& access, const Observer& me) {
  if (!me.machine.checks.races) return;
  if (access.space == SHARED) {
    for_each_word(access, true, [&](u32 lane, u64 at, u8 bytes) {
      read_shared(me, *access.owner, static_cast<u32>(at / WORD), bytes, lane);
    });
  } else if (access.space == GLOBAL && access.allocation->writable) {
    access.allocation->word(access.address[first_lane(access.lanes)]);
    GlobalWord* words = access.allocation->words->get();
    const u64 base = access.allocation->first / WORD;
    for_each_word(access, true,
                  [&](u32 lane, u64 at, u8 bytes) { read_global(me, words[at / WORD - base], at, bytes, lane); });
  }
}

void observe_writes(const Access& access, const Observer& me, u32 same_before, u32 same_after) {
  if (!me.machine.checks.races) return;
  if (access.space == SHARED) {
    for_each_word(access, false, [&](u32 lane, u64 at, u8 bytes) {
      write_shared(me, *access.owner, static_cast<u32>(at / WORD), bytes, lane,
                   {bool(same_before >> lane & 1), bool(same_after >> lane & 1)});
    });
  } else if (access.space == GLOBAL) {
    access.allocation->word(access.address[first_lane(access.lanes)]);
    GlobalWord* words = access.allocation->words->get();
    const u64 base = access.allocation->first / WORD;
    for_each_word(access, false, [&](u32 lane, u64 at, u8 bytes) {
      write_global(me, words[at / WORD - base], at, bytes, lane,
                   {bool(same_before >> lane & 1), bool(same_after >> lane & 1)});
    });
  }
}

}  // namespace virtual_gpu
