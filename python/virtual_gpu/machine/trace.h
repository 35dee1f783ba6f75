// What the warps of one block ran and touched, in the order in which they did, for a model of time.
#pragma once

#include <unordered_set>
#include <vector>

#include "types.h"

namespace virtual_gpu {

struct TraceEvent {
  u32 warp, place;
  u32 sectors, fresh;  // of global memory; those of them that the block had not touched before
  u32 wavefronts;      // of shared memory
};

class Trace {
 public:
  static constexpr u64 NO_BLOCK = ~u64{0};
  static constexpr u32 SECTOR_BYTES = 32;

  void start(u64 block) {
    block_ = block;
    events_.clear();
    touched_.clear();
  }

  bool follows(u32 block) const { return block == block_; }
  void ran(u32 warp, i32 place) { events_.push_back({warp, static_cast<u32>(place), 0, 0, 0}); }

  // What the last instruction did.
  void moved(u32 sectors) { events_.back().sectors += sectors; }
  void waited(u32 wavefronts) { events_.back().wavefronts += wavefronts; }
  void touched(u64 address, u32 size) {
    for (u64 sector = address / SECTOR_BYTES; sector * SECTOR_BYTES < address + size; ++sector) {
      events_.back().fresh += touched_.insert(sector).second;
    }
  }

  const std::vector<TraceEvent>& events() const { return events_; }

 private:
  u64 block_ = NO_BLOCK;
  std::vector<TraceEvent> events_;
  std::unordered_set<u64> touched_;
};

}  // namespace virtual_gpu
