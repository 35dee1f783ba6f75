// Paths of a warp: how lanes part at branches, and come together again.
#pragma once

#include "machine.h"

namespace virtual_gpu {

constexpr i32 NOWHERE = -1;

inline i32 free_path(Warp& warp) {
  for (size_t k = 0; k < warp.paths.size(); ++k) {
    if (warp.paths[k].state == PathState::Free) return static_cast<i32>(k);
  }
  warp.paths.push_back(Path{});
  warp.paths.back().state = PathState::Free;
  return static_cast<i32>(warp.paths.size()) - 1;
}

inline i32 add_path(Warp& warp, i32 parent, i32 place, i32 reconverge, u32 lanes) {
  const i32 path = free_path(warp);
  warp.paths[path] = {place, reconverge, parent, 0, lanes, 0, 0, PathState::Ready, 0};
  if (parent >= 0) ++warp.paths[parent].children;
  return path;
}

// A path is over; lanes that have not ended go on with its parent, once all its parent's other paths are over too.
inline void end_path(Warp& warp, i32 path) {
  for (;;) {
    Path& ended = warp.paths[path];
    const i32 parent = ended.parent;
    const u32 arrived = ended.lanes;
    ended.state = PathState::Free;
    if (parent < 0) return;
    Path& above = warp.paths[parent];
    above.arrived |= arrived;
    if (--above.children != 0) return;
    above.lanes = above.arrived & warp.alive;
    above.arrived = 0;
    above.state = PathState::Ready;
    if (above.lanes != 0) return;
    path = parent;
  }
}

// Parts a path at a branch that only the lanes `taken` take. `other_first` orders the two.
inline void part_path(Warp& warp, i32 path, i32 target, i32 next, i32 reconverge, u32 taken, bool other_first) {
  const Path parted = warp.paths[path];
  const u32 rest = parted.lanes & ~taken;
  i32 parent = path;
  if (reconverge == parted.reconverge) {
    // Both sides come together where the path itself ends.
    parent = parted.parent;
    warp.paths[path].state = PathState::Free;
    if (parent >= 0) --warp.paths[parent].children;
  } else {
    warp.paths[path].state = PathState::Parted;
    warp.paths[path].place = reconverge;
    warp.paths[path].arrived = 0;
  }
  const auto add_side = [&](i32 place, u32 lanes) {
    if (place == reconverge) {
      warp.paths[parent].arrived |= lanes;
    } else {
      add_path(warp, parent, place, reconverge, lanes);
    }
  };
  if (other_first) add_side(next, rest);
  add_side(target, taken);
  if (!other_first) add_side(next, rest);
}

}  // namespace virtual_gpu
