// What a request costs: sectors of global memory, wavefronts of the banks of shared memory.

#include <algorithm>

#include "access.h"

namespace virtual_gpu {
namespace {

constexpr u32 SECTOR = 32, BANKS = 32, WORD = 4;

// Lanes whose words the banks may serve at once: those of 128 bytes.
int lanes_of_wavefront(u32 size) { return size <= WORD ? WARP : size == 8 ? WARP / 2 : WARP / 4; }

u32 count_wavefronts(const Access& access) {
  const int lanes_of_part = lanes_of_wavefront(access.size);
  u32 waves = 0;
  for (int first = 0; first < WARP; first += lanes_of_part) {
    u32 words[BANKS * 2];
    u32 count = 0;
    u8 depth[BANKS] = {};
    u32 most = 0;
    for (int lane = first; lane < first + lanes_of_part; ++lane) {
      if (!(access.lanes >> lane & 1)) continue;
      for (u32 k = 0; k < std::max(1u, access.size / WORD); ++k) {
        const u32 word = static_cast<u32>(access.address[lane] / WORD) + k;
        bool seen = count != 0 && words[count - 1] == word;
        if (!seen && depth[word % BANKS] != 0) seen = std::find(words, words + count, word) != words + count;
        if (seen) continue;
        words[count++] = word;
        most = std::max<u32>(most, ++depth[word % BANKS]);
      }
    }
    waves += most;
  }
  return waves;
}

u32 count_sectors(const Access& access) {
  if (access.side_by_side || access.alike) {
    const u64 first = access.address[first_lane(access.lanes)];
    const u64 last = first + (access.alike ? 1 : WARP) * access.size - 1;
    return static_cast<u32>(last / SECTOR - first / SECTOR) + 1;
  }
  u64 sectors[WARP * 2];
  u32 count = 0;
  bool sorted = true;
  for_lanes(access.lanes, [&](int lane) {
    const u64 first = access.address[lane] / SECTOR, last = (access.address[lane] + access.size - 1) / SECTOR;
    for (u64 sector = first; sector <= last; ++sector) {
      if (count != 0 && sectors[count - 1] == sector) continue;
      sorted &= count == 0 || sectors[count - 1] < sector;
      sectors[count++] = sector;
    }
  });
  if (!sorted) {
    std::sort(sectors, sectors + count);
    count = static_cast<u32>(std::unique(sectors, sectors + count) - sectors);
  }
  return count;
}

void count_global(Step& step, u32 bytes, u32 sectors, bool writes) {
  Counters& counters = step.machine.counters;
  Profile& profile = step.machine.profile[step.place];
  const u32 ideal = std::min(sectors, (bytes + SECTOR - 1) / SECTOR);
  ++counters.global_requests;
  counters.global_sectors += sectors;
  counters.global_ideal_sectors += ideal;
  (writes ? counters.global_bytes_written : counters.global_bytes_read) += bytes;
  ++profile.requests;
  profile.taken += sectors;
  profile.ideal += ideal;
  if (step.machine.trace.follows(step.block.index)) step.machine.trace.moved(sectors);
}

}  // namespace

void count_request(const Access& access, bool writes) {
  Counters& counters = access.step.machine.counters;
  Profile& profile = access.step.machine.profile[access.step.place];
  Trace& trace = access.step.machine.trace;
  const bool traced = trace.follows(access.step.block.index);
  if (access.space == GLOBAL) {
    const u32 bytes = static_cast<u32>(count_lanes(access.lanes)) * access.size;
    count_global(access.step, bytes, count_sectors(access), writes);
    if (traced) for_lanes(access.lanes, [&](int lane) { trace.touched(access.address[lane], access.size); });
  } else if (access.space == SHARED) {
    const int lanes_of_part = lanes_of_wavefront(access.size);
    u32 ideal = 0;
    for (int first = 0; first < WARP; first += lanes_of_part) {
      const u32 part = lanes_of_part == WARP ? ALL_LANES : ((1u << lanes_of_part) - 1) << first;
      ideal += (access.lanes & part) != 0;
    }
    const bool simple = access.alike || (access.side_by_side && access.size >= WORD);
    const u32 waves = simple ? ideal : count_wavefronts(access);
    ++counters.shared_requests;
    counters.shared_wavefronts += waves;
    counters.shared_ideal_wavefronts += ideal;
    ++profile.requests;
    profile.taken += waves;
    if (traced) trace.waited(waves);
    profile.ideal += ideal;
  }
}

void count_bulk(Step& step, u64 address, u32 bytes, bool writes) {
  const u32 sectors = bytes == 0 ? 0 : static_cast<u32>((address + bytes - 1) / SECTOR - address / SECTOR) + 1;
  count_global(step, bytes, sectors, writes);
  if (step.machine.trace.follows(step.block.index)) step.machine.trace.touched(address, bytes);
}

}  // namespace virtual_gpu
