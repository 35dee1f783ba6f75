// Barriers of blocks and clusters, as the interpreter and the launch see them.
#pragma once

#include "machine.h"

namespace virtual_gpu {

// Lets the waiting paths of a block's barriers go on where enough threads have arrived: to be asked when threads end.
void release_full_barriers(Machine&, Block&);

// The same of the barrier of a cluster.
void release_full_cluster(Machine&, Group&);

}  // namespace virtual_gpu
