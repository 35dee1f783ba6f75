// Runs the instructions of warps.
#pragma once

#include "machine.h"

namespace virtual_gpu {

// Runs the ready paths of a warp until each waits, has ended or gives way. False where the launch must end.
bool run_warp(Machine&, Warp&);

// Sets a warp up at the first instruction.
void start_paths(Warp&);

}  // namespace virtual_gpu
