// Which instance of a kernel with one task a thread serves a size: response-only networks of d weights have one for
// each small d in float and one for all other sizes, other networks one for each of three D, Gram matrices of short
// contexts one for each of eight.

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

// Returns run(width) for 4 <= D <= 6.
template <class Run>
int with_small_width(int width, Run run) {
  switch (width) {
    case 4: return run(core::Fixed<4>{});
    case 5: return run(core::Fixed<5>{});
    default: return run(core::Fixed<6>{});
  }
}

// Returns run(width) for 2 <= D <= 9.
template <class Run>
int with_context_width(int width, Run run) {
  switch (width) {
    case 2: return run(core::Fixed<2>{});
    case 3: return run(core::Fixed<3>{});
    case 4: return run(core::Fixed<4>{});
    case 5: return run(core::Fixed<5>{});
    case 6: return run(core::Fixed<6>{});
    case 7: return run(core::Fixed<7>{});
    case 8: return run(core::Fixed<8>{});
    default: return run(core::Fixed<9>{});
  }
}

}  // namespace memformer::cuda
