// What comes before what: knowledge of others' accesses, handed on by barriers, fences and atomics.
#pragma once

#include "access.h"

namespace virtual_gpu {

// The later of each stamp.
void join(std::vector<u32>& known, const std::vector<u32>& other);

// What a warp knows, its own accesses up to now included, joined into what others will acquire; its later accesses come
// after.
void release(Machine&, Warp&, std::vector<u32>& known, std::vector<u32>& proxy_known);
// What another knows of the warp itself comes before all that its lanes do from now on.
void acquire(Warp&, const std::vector<u32>& known, const std::vector<u32>& proxy_known);

// The least stamp that a warp knows of the others, and its lanes of each other: accesses after it need to be looked at.
void find_floor(Warp&);

// Lanes of a warp have synchronised: what each did comes before what any does from now on.
inline void synchronise_lanes(Machine& machine, Warp& warp) {
  warp.together = machine.time | LANE_MASK;
  warp.clock = machine.next_time();
}

// Between groups, knowledge is a group's as a whole: a fence by one of its threads publishes what any has done.
void fence_grid(Machine&, Group&);
// Strong accesses hand on what fences have published, or with acquire and release what they order themselves.
void acquire_at(const Access&);
void release_at(const Access&);

}  // namespace virtual_gpu
