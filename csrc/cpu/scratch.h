// Memory of a thread that outlives a call, so that no task and no call allocates.

#pragma once

#include <cstddef>

namespace memformer::cpu {

// At least `bytes` bytes of the calling thread, aligned to 64; what an earlier call of the same thread got is gone.
// Throws std::bad_alloc.
void* thread_scratch(std::size_t bytes);

// Partial sums of a call, of the thread that makes it: memory apart from `thread_scratch`.
void* call_scratch(std::size_t bytes);

}  // namespace memformer::cpu
