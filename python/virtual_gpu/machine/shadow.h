// What is known of each word of memory: who wrote and read it last, and which of its bytes hold a value.
//
// Time is counted in the machine's events. A stamp is the time of a warp's last ordering event, with the lane in its
// low bits; an access is ordered before a warp if the warp knows of a time of the other that is no earlier than its
// stamp.
#pragma once

#include "types.h"

namespace virtual_gpu {

constexpr u32 LANE_BITS = 6;
constexpr u32 SEVERAL_LANES = 32;
constexpr u32 LANE_MASK = (1u << LANE_BITS) - 1;
constexpr u32 ONE_TIME = 1u << LANE_BITS;

inline u32 time_of(u32 stamp) { return stamp & ~LANE_MASK; }

enum WordFlags : u8 {
  WRITTEN_ATOMICALLY = 1,
  COPY_UNDER_WAY = 2,   // an asynchronous copy will write here
  READ_UNDER_WAY = 4,   // an asynchronous operation will read here
  WRITTEN_BY_COPY = 8,  // by the asynchronous proxy: no fence is needed before it reads
  READ_PLAINLY = 16,    // not each read since the last write was atomic
};

// Four bytes of shared memory. Times of reads by each warp are kept beside, in Group.
struct SharedWord {
  u32 write;  // stamp of the last write
  u32 read;   // the latest stamp of the reads since, or 0
  i32 write_place, read_place;
  u16 writer;        // index of the warp in its group
  u8 written_bytes;  // by the last write
  u8 read_bytes;     // by all reads since
  u8 defined;        // a bit for each byte
  u8 flags;
};

// Four bytes of global memory.
struct GlobalWord {
  u32 write, write_group;
  u32 read[2], read_group[2];  // the latest reads by two warps since the last write
  i32 write_place, read_place;
  u16 writer, reader[2];
  u8 written_bytes, read_bytes, flags;
};

}  // namespace virtual_gpu
