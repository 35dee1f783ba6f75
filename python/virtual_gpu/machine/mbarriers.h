// mbarriers: counters of arrivals and of bytes in shared memory, whose phases others wait for.
#pragma once

#include "ordering.h"

namespace virtual_gpu {

// A place in the shared memory of a block of the cluster.
struct SharedPlace {
  Block* owner;
  u32 offset;
};

SharedPlace shared_place(const Step&, u64 address);

// The mbarrier there, or null, which is reported as a misuse by the instruction at `place`.
Mbarrier* find_mbarrier(Machine&, SharedPlace, i32 place, const char* use);

// Arrivals of threads, with what their warp has done until now; and bytes that a copy has written.
void arrive(Machine&, SharedPlace, Warp&, u32 count, i32 place);
void complete_bytes(Machine&, SharedPlace, u32 bytes, const std::vector<u32>& known,
                    const std::vector<u32>& proxy_known, i32 place);

}  // namespace virtual_gpu
