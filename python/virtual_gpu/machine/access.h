// A request to memory by the lanes of a warp: where each lane's bytes are, whether it may touch them, what it costs.
#pragma once

#include "races.h"

namespace virtual_gpu {

// Lanes of a request whose bytes lie in one space, and there in one allocation or one block's shared memory.
struct Access {
  Step& step;
  i32 space;
  u32 lanes;
  u32 size;           // bytes of each lane
  u64 address[WARP];  // on the host, or from the start of the space
  char* bytes[WARP];
  bool alike;         // all lanes have one address
  bool side_by_side;  // all lanes of the warp take part, each behind the one before it
  Block* owner;
  Allocation* allocation;
};

// The generic or the space's address of each lane, from the register and the offset of the instruction.
void read_addresses(const Step& step, int operand, i64 offset, u64 (&address)[WARP]);

// Fills `access` with lanes of `remaining`, which loses them and those that must not go on, which are reported.
// False when none are left.
bool next_access(Access& access, const u64 (&address)[WARP], bool writes, u32& remaining);

// Lanes whose `size` bytes at `offset` from their address hold values.
u32 defined_bytes(const Access& access, u32 offset, u32 size);
void define_bytes(const Access& access, u32 offset, u32 size, u32 known);

// Compares the access with others and remembers it. A write's lanes are told apart by whether memory held their bits
// before the instruction, and whether it holds them after.
void observe_reads(const Access& access, const Observer& me);
void observe_writes(const Access& access, const Observer& me, u32 same_before, u32 same_after);

// Adds a request to the counters: sectors of 32 bytes of global memory, wavefronts of the banks of shared memory.
void count_request(const Access& access, bool writes);

// The same of a copy of bytes side by side, which the lane that asks for it does not carry itself.
void count_bulk(Step& step, u64 address, u32 bytes, bool writes);

// Calls `body` with each access that the request of an instruction is made of. Lanes that must not touch their bytes
// have been left out; they are returned.
template <class Body>
u32 for_each_access(Step& step, int operand, u32 size, bool writes, Body body) {
  Access access{step, 0, 0, size, {}, {}, false, false, nullptr, nullptr};
  u64 address[WARP];
  step.require(operand, "an address");
  read_addresses(step, operand, step.instruction.immediates[0], address);
  u32 remaining = step.lanes, served = 0;
  while (next_access(access, address, writes, remaining)) {
    served |= access.lanes;
    count_request(access, writes);
    body(access);
  }
  return step.lanes & ~served;
}

}  // namespace virtual_gpu
