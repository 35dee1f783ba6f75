// Which instance of a response-only kernel serves a task of d weights: one for each small d in float, one for all other sizes.

#pragma once

#include "core/extent.h"

namespace memformer::cuda {

// Returns run(extent). `small`: whether a task fits in shared memory, as the small instances demand.
template <class T, class Run>
int with_weights(int d, bool small, Run run) {
  if constexpr (sizeof(T) == 4) {
    if (small) {
      switch (d) {
        case 1: return run(core::Fixed<1>{});
        case 2: return run(core::Fixed<2>{});
        case 3: return run(core::Fixed<3>{});
        case 4: return run(core::Fixed<4>{});
        case 5: return run(core::Fixed<5>{});
        case 6: return run(core::Fixed<6>{});
        case 7: return run(core::Fixed<7>{});
        case 8: return run(core::Fixed<8>{});
      }
    }
  }
  return run(core::UpTo<16>{d});
}

}  // namespace memformer::cuda
