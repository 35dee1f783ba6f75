// What kernels run on: torch's threads.

#pragma once

#include <torch/csrc/stable/c/shim.h>
#include <torch/headeronly/util/Exception.h>

#include "cpu/threads.h"

namespace memformer::binding {

// torch's own pool of threads, which torch.set_num_threads sizes: a second one would fight it for the cores.
inline void torch_pool(int64_t count, cpu::Body body, void* context) {
  TORCH_ERROR_CODE_CHECK(torch_parallel_for(0, count, 1, body, context));
}

inline void parallel_for(int64_t count, cpu::Body body, void* context) {
  cpu::run_on_threads(&torch_pool, count, body, context);
}

}  // namespace memformer::binding
