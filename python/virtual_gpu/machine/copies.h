// Asynchronous copies, as others see them.
#pragma once

#include "machine.h"

namespace virtual_gpu {

// Lanes end: copies that they never waited for are reported.
void end_copies(Machine&, Warp&, u32 lanes);

// Performs one operation of the block's that is under way and that a waiting warp may depend on: a bulk load, or a copy
// before an arrival on an mbarrier. Whether there was one.
bool perform_load(Machine&, Block&);
bool perform_arrival(Machine&, Block&);

// At the end of a launch: reports bulk copies that nothing waited for.
void end_bulk_copies(Machine&, Block&);

}  // namespace virtual_gpu
