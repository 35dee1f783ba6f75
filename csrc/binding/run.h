// What all calls share: torch's threads, the compute type, and how many registers a layer keeps.

#pragma once

#include <torch/csrc/stable/c/shim.h>

#include "binding/tensors.h"
#include "cpu/threads.h"

namespace memformer::binding {

// On torch's own pool of threads, which torch.set_num_threads sizes: a second one would fight it for the cores.
inline void parallel_for(int64_t count, cpu::Body body, void* context) {
  TORCH_ERROR_CODE_CHECK(torch_parallel_for(0, count, 1, body, context));
}

// Calls body with a double for float64 tokens, else with a float.
template <class Body>
void with_compute_type(const Tensor& z, Body body) {
  if (storage_of(z) == Storage::float64) {
    body(double{});
  } else {
    body(float{});
  }
}

// One register a head where a coefficient has a head axis, else one for the sum over heads.
inline int kept_heads(int heads, const MaybeTensor& gamma, const MaybeTensor& beta) {
  const auto per_head = [](const MaybeTensor& x) { return x && x->dim() >= 3 && x->size(x->dim() - 3) > 1; };
  return per_head(gamma) || per_head(beta) ? heads : 1;
}

}  // namespace memformer::binding
