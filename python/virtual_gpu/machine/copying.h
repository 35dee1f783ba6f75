// What copies of every kind do to memory: begin and end their writes of shared memory, read global memory.
#pragma once

#include <algorithm>

#include "mbarriers.h"

namespace virtual_gpu {

constexpr u32 WORD_BYTES = 4;

// Bytes of shared memory as words and the bytes within each.
template <class Body>
void for_each_word(u32 offset, u32 size, Body body) {
  for (u32 at = offset; at < offset + size;) {
    const u32 within = at % WORD_BYTES, part = std::min(WORD_BYTES - within, offset + size - at);
    body(at / WORD_BYTES, byte_mask(within, part));
    at += part;
  }
}

// The bytes that a copy will write: they hold nothing until it has.
void begin_write(const Observer& me, Block& owner, u32 offset, u32 size, u32 lane);

// The write itself. `defined` tells for each byte of the source whether it holds a value, or is null.
void end_write(const Observer& me, Block& owner, u32 offset, const char* source, u32 taken, u32 size, const u8* defined,
               u32 lane);

// Which bytes of an allocation hold values, from an address on, or null where all do.
const u8* defined_map(const Allocation& allocation, u64 address);
void observe_source(const Observer& me, Allocation& allocation, u64 address, u32 size, u32 lane);

// Whether a copy may touch its bytes: where it may not, that is reported.
bool source_in_bounds(const Step& step, u64 source, u32 taken, int lane);
bool target_in_bounds(const Step& step, SharedPlace target, u32 size, int lane);

}  // namespace virtual_gpu
