// Data races: each access is compared with those that the words' shadows remember, and remembered there.
#pragma once

#include "machine.h"

namespace virtual_gpu {

constexpr u32 NOBODY = ~0u, ALWAYS = ~0u;

// Who makes an access, and what it knows to come before.
struct Observer {
  Machine& machine;
  const Group& group;
  u32 agent;        // in its group: a warp, or the last one for asynchronous copies
  u32 block, warp;  // for reports
  u32 clock, floor;
  const u32* known;
  const u32* proxy_known;
  i32 place;
  bool atomic, asynchronous;
  u32 issuer;    // the agent whose lane makes the access or has asked for it, or NOBODY for all lanes alike
  u32 together;  // what other lanes of the issuer did up to this stamp comes before
  u32 issued;    // and what that lane did up to this one: what it does after an issue comes beside it
};

// A warp's own access by the instruction at a place.
inline Observer observer_of(Machine& machine, const Warp& warp, i32 place, bool atomic) {
  return {machine,
          *warp.block->group,
          warp.agent,
          warp.block->index,
          warp.index,
          warp.clock,
          warp.floor,
          warp.known.data(),
          warp.proxy_known.data(),
          place,
          atomic,
          false,
          warp.agent,
          warp.together,
          ALWAYS};
}

inline Observer observer_of(const Step& step, bool atomic) {
  return observer_of(step.machine, step.warp, step.place, atomic);
}

// A mask of the bytes [first, first + size) of a word.
inline u8 byte_mask(u32 first, u32 size) { return static_cast<u8>(((1u << size) - 1) << first); }

// Whether a write leaves the bits as they were before its instruction, and as all its lanes leave them: a race of such
// writes has a name of its own.
struct Sameness {
  bool before, after;
};

// An access of bytes of a word of a block's shared memory, or of global memory. What is found is reported.
inline void read_shared(const Observer&, Block& owner, u32 index, u8 bytes, u32 lane);
inline void write_shared(const Observer&, Block& owner, u32 index, u8 bytes, u32 lane, Sameness same);

void read_global(const Observer&, GlobalWord&, u64 address, u8 bytes, u32 lane);
void write_global(const Observer&, GlobalWord&, u64 address, u8 bytes, u32 lane, Sameness same);

// What is to be looked at where the accesses that a word remembers may be unordered with the observer's.
void check_shared_read(const Observer&, const SharedWord&, u32 index, u8 bytes, u32 lane);
void check_shared_write(const Observer&, const Block& owner, const SharedWord&, u32 index, u8 bytes, u32 lane,
                        Sameness same);

constexpr u8 UNDER_WAY = COPY_UNDER_WAY | READ_UNDER_WAY;

inline void read_shared(const Observer& me, Block& owner, u32 index, u8 bytes, u32 lane) {
  SharedWord& word = owner.words[index];
  const bool settled = word.write <= me.floor && !(word.flags & UNDER_WAY) && !me.asynchronous;
  if (!settled) check_shared_read(me, word, index, bytes, lane);
  // Bytes that all readers have read: a later write of others of the word is no race with them for certain.
  const bool first = word.read <= me.floor;
  word.read_bytes = first ? bytes : word.read_bytes & bytes;
  const u8 plain = first ? 0 : word.flags & READ_PLAINLY;
  word.flags = static_cast<u8>((word.flags & ~READ_PLAINLY) | (me.atomic ? plain : u8{READ_PLAINLY}));
  u32& last = owner.reads[static_cast<size_t>(index) * me.group.agents + me.agent];
  const bool again = last > me.together && (last & LANE_MASK) != lane;
  last = me.clock | (again ? SEVERAL_LANES : lane);
  if (me.clock >= time_of(word.read)) word.read = me.clock | lane;
  word.read_place = me.place;
}

inline void write_shared(const Observer& me, Block& owner, u32 index, u8 bytes, u32 lane, Sameness same) {
  SharedWord& word = owner.words[index];
  const bool settled = word.write <= me.floor && word.read <= me.floor && !(word.flags & UNDER_WAY) && !me.asynchronous;
  if (!settled) check_shared_write(me, owner, word, index, bytes, lane, same);
  word.write = me.clock | lane;
  word.write_place = me.place;
  word.writer = static_cast<u16>(me.agent);
  word.written_bytes = bytes;
  word.read = 0;
  word.flags = static_cast<u8>((word.flags & UNDER_WAY) | (me.atomic ? WRITTEN_ATOMICALLY : 0) |
                               (me.asynchronous ? WRITTEN_BY_COPY : 0));
}

}  // namespace virtual_gpu
