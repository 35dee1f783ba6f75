// A launch: blocks one group after the other, their warps in turns, until all have ended.

#include "launch.h"

#include <algorithm>
#include <numeric>

#include "barriers.h"
#include "copies.h"
#include "interpreter.h"

namespace virtual_gpu {
namespace {

constexpr int PATIENCE = 50;  // turns in which nothing happens until the warps that wait are said to wait for ever
constexpr u32 LATE = 1u << 31;

// The order of ptx/assembler.py's SPECIAL.
enum Special : u32 {
  TID_X,
  TID_Y,
  TID_Z,
  NTID_X,
  NTID_Y,
  NTID_Z,
  CTAID_X,
  CTAID_Y,
  CTAID_Z,
  NCTAID_X,
  NCTAID_Y,
  NCTAID_Z,
  LANEID,
  WARPID,
  NWARPID,
  LANEMASK_EQ,
  LANEMASK_LE,
  LANEMASK_LT,
  LANEMASK_GE,
  LANEMASK_GT,
  CLUSTERID_X,
  CLUSTERID_Y,
  CLUSTERID_Z,
  NCLUSTERID_X,
  NCLUSTERID_Y,
  NCLUSTERID_Z,
  CLUSTER_CTAID_X,
  CLUSTER_CTAID_Y,
  CLUSTER_CTAID_Z,
  CLUSTER_NCTAID_X,
  CLUSTER_NCTAID_Y,
  CLUSTER_NCTAID_Z,
  CLUSTER_CTARANK,
  CLUSTER_NCTARANK,
  DYNAMIC_SMEM_SIZE,
  TOTAL_SMEM_SIZE,
  SMID,
  NSMID
};

u32 special_value(const Machine& machine, const Block& block, const Warp& warp, u32 which, u32 lane) {
  const Dimensions& size = machine.dimensions;
  const u32 thread = warp.index * WARP + lane, bit = 1u << lane;
  switch (which) {
    case TID_X: return thread % size.block[0];
    case TID_Y: return thread / size.block[0] % size.block[1];
    case TID_Z: return thread / size.block[0] / size.block[1];
    case NTID_X:
    case NTID_Y:
    case NTID_Z: return size.block[which - NTID_X];
    case CTAID_X:
    case CTAID_Y:
    case CTAID_Z: return block.place[which - CTAID_X];
    case NCTAID_X:
    case NCTAID_Y:
    case NCTAID_Z: return size.grid[which - NCTAID_X];
    case LANEID: return lane;
    case WARPID: return warp.index;
    case NWARPID: return static_cast<u32>(block.warps.size());
    case LANEMASK_EQ: return bit;
    case LANEMASK_LE: return bit | (bit - 1);
    case LANEMASK_LT: return bit - 1;
    case LANEMASK_GE: return ~(bit - 1);
    case LANEMASK_GT: return ~(bit | (bit - 1));
    case CLUSTERID_X:
    case CLUSTERID_Y:
    case CLUSTERID_Z: return block.place[which - CLUSTERID_X] / size.cluster[which - CLUSTERID_X];
    case NCLUSTERID_X:
    case NCLUSTERID_Y:
    case NCLUSTERID_Z: return size.grid[which - NCLUSTERID_X] / size.cluster[which - NCLUSTERID_X];
    case CLUSTER_CTAID_X:
    case CLUSTER_CTAID_Y:
    case CLUSTER_CTAID_Z: return block.place[which - CLUSTER_CTAID_X] % size.cluster[which - CLUSTER_CTAID_X];
    case CLUSTER_NCTAID_X:
    case CLUSTER_NCTAID_Y:
    case CLUSTER_NCTAID_Z: return size.cluster[which - CLUSTER_NCTAID_X];
    case CLUSTER_CTARANK: return block.rank;
    case CLUSTER_NCTARANK: return size.cluster[0] * size.cluster[1] * size.cluster[2];
    case DYNAMIC_SMEM_SIZE: return machine.dynamic_shared;
    case TOTAL_SMEM_SIZE: return block.shared_bytes;
    case SMID: return block.index % machine.multiprocessors;
    case NSMID: return machine.multiprocessors;
    default: return 0;
  }
}

void start_warp(Machine& machine, Block& block, Warp& warp, u32 index, u32 agent, u32 start) {
  const Program& program = *machine.program;
  warp.block = &block;
  warp.index = index;
  warp.agent = agent;
  const u32 threads = std::min<u32>(WARP, block.threads - index * WARP);
  warp.alive = threads == WARP ? ALL_LANES : (1u << threads) - 1;
  if (!warp.registers) warp.registers = aligned_bytes(program.register_bytes);
  std::memset(warp.registers.get(), 0xcd, program.register_bytes);
  warp.defined.assign(program.registers, 0);
  warp.defined[0] = ALL_LANES;
  for (const SpecialRegister& special : program.special) {
    u32* out = reinterpret_cast<u32*>(warp.registers.get() + special.offset);
    for (u32 lane = 0; lane < WARP; ++lane) out[lane] = special_value(machine, block, warp, special.which, lane);
    warp.defined[special.slot] = ALL_LANES;
  }
  warp.known.assign(block.group->agents, start);
  warp.proxy_known.assign(block.group->agents, start);
  warp.clock = machine.next_time();
  warp.floor = warp.together = start;
  warp.at_cluster = 0;
  warp.spins = false;
  for (auto& copies : warp.copies) copies.clear();
  warp.committed.fill(0);
  warp.bulk_committed.fill(0);
  warp.products.clear();
  warp.pending_registers.assign(program.registers, 0);
  warp.product_groups = 0;
  start_paths(warp);
}

// The block's place in the grid. Blocks of a cluster follow each other in `index`.
void place_block(const Machine& machine, Block& block) {
  const Dimensions& size = machine.dimensions;
  const u32 of_cluster = size.cluster[0] * size.cluster[1] * size.cluster[2];
  const u32 cluster = block.index / of_cluster;
  block.rank = block.index % of_cluster;
  const u32 clusters_x = size.grid[0] / size.cluster[0], clusters_y = size.grid[1] / size.cluster[1];
  block.place[0] = cluster % clusters_x * size.cluster[0] + block.rank % size.cluster[0];
  block.place[1] = cluster / clusters_x % clusters_y * size.cluster[1] + block.rank / size.cluster[0] % size.cluster[1];
  block.place[2] = cluster / clusters_x / clusters_y * size.cluster[2] + block.rank / size.cluster[0] / size.cluster[1];
}

void start_block(Machine& machine, Block& block, Group& group, u32 index, u32 first_agent, u32 start) {
  const Program& program = *machine.program;
  block.group = &group;
  block.index = index;
  place_block(machine, block);
  block.threads = machine.dimensions.block[0] * machine.dimensions.block[1] * machine.dimensions.block[2];
  block.live = block.threads;
  const u32 warps = (block.threads + WARP - 1) / WARP;
  block.shared_bytes = program.static_shared + machine.dynamic_shared;
  if (!block.shared) block.shared = aligned_bytes(block.shared_bytes);
  std::memset(block.shared.get(), 0xff, block.shared_bytes);
  block.words.assign(block.shared_bytes / 4 + 1, SharedWord{});
  if (machine.checks.races) block.reads.resize(block.words.size() * group.agents, 0);
  const size_t local_bytes = static_cast<size_t>(program.local_bytes) * warps * WARP;
  if (!block.local) block.local = aligned_bytes(local_bytes);
  block.local_defined.assign(local_bytes, 0);
  block.barriers.fill(Barrier());
  block.mbarriers.clear();
  block.bulk_copies.clear();
  block.warps.resize(warps);
  for (u32 k = 0; k < warps; ++k) start_warp(machine, block, block.warps[k], k, first_agent + k, start);
}

void shuffle(Machine& machine, std::vector<u32>& order) {
  if (machine.order == 1) std::reverse(order.begin(), order.end());
  if (machine.order < 2) return;
  for (size_t k = order.size(); k > 1; --k) std::swap(order[k - 1], order[machine.next_random() % k]);
}

const char* state_name(PathState state) {
  switch (state) {
    case PathState::AtCollective: return "at an instruction of the whole warp";
    case PathState::AtBarrier: return "at a barrier of the block";
    case PathState::AtCluster: return "at the barrier of the cluster";
    default: return "polling";
  }
}

void report_deadlock(Machine& machine, const std::vector<Block*>& blocks) {
  for (const Block* block : blocks) {
    for (const Warp& warp : block->warps) {
      for (const Path& path : warp.paths) {
        if (path.state == PathState::Free || path.state == PathState::Parted) continue;
        const bool before = path.state == PathState::AtBarrier || path.state == PathState::AtCluster;
        machine.report(Check::Deadlock, before ? path.place - 1 : path.place,
                       "block %u warp %u lanes 0x%x wait for ever, %s", block->index, warp.index, path.lanes,
                       state_name(path.state));
      }
    }
  }
}

// Runs blocks that are on the device together. False where the launch must end.
bool run_together(Machine& machine, const std::vector<Block*>& blocks) {
  std::vector<Warp*> warps;
  for (Block* block : blocks) {
    for (Warp& warp : block->warps) warps.push_back(&warp);
  }
  std::vector<u32> order(warps.size());
  int still = 0;
  for (;;) {
    const u64 events = machine.events;
    std::iota(order.begin(), order.end(), 0u);
    shuffle(machine, order);
    bool alive = false;
    for (const u32 k : order) {
      if (warps[k]->alive == 0) continue;
      if (!run_warp(machine, *warps[k])) return false;
      alive |= warps[k]->alive != 0;
    }
    if (!alive) break;
    if (machine.events != events) {
      still = 0;
      continue;
    }
    const bool performed = std::any_of(blocks.begin(), blocks.end(), [&](Block* block) {
      return perform_load(machine, *block) || perform_arrival(machine, *block);
    });
    if (performed) {
      still = 0;
    } else if (++still > PATIENCE) {
      report_deadlock(machine, blocks);
      return false;
    }
  }
  for (Block* block : blocks) end_bulk_copies(machine, *block);
  return true;
}

}  // namespace

bool run_launch(Machine& machine, bool together) {
  const Dimensions& size = machine.dimensions;
  const u32 blocks = size.grid[0] * size.grid[1] * size.grid[2];
  const u32 of_group = size.cluster[0] * size.cluster[1] * size.cluster[2];
  machine.groups = blocks / of_group;
  if (machine.time > LATE) {
    machine.memory.forget_accesses();
    machine.time = ONE_TIME;
  }
  machine.launched = machine.time | LANE_MASK;
  machine.next_time();
  machine.released.clear();
  machine.profile.assign(machine.program->code.size(), Profile{});
  machine.counters = Counters{};
  machine.random = machine.order * 0x9e3779b97f4a7c15ull + 1;

  const u32 groups_at_once = together ? machine.groups : 1;
  const u32 warps = (size.block[0] * size.block[1] * size.block[2] + WARP - 1) / WARP;
  std::vector<Group> groups(groups_at_once);
  std::vector<Block> storage(static_cast<size_t>(groups_at_once) * of_group);
  std::vector<u32> order(machine.groups / groups_at_once);
  std::iota(order.begin(), order.end(), 0u);
  shuffle(machine, order);
  for (const u32 first : order) {
    const u32 start = machine.time | LANE_MASK;
    machine.next_time();
    std::vector<Block*> resident;
    for (u32 g = 0; g < groups_at_once; ++g) {
      Group& group = groups[g];
      group = Group();
      group.index = first * groups_at_once + g;
      group.agents = warps * of_group + 1;
      for (u32 rank = 0; rank < of_group; ++rank) {
        group.blocks.push_back(&storage[static_cast<size_t>(g) * of_group + rank]);
        start_block(machine, *group.blocks.back(), group, group.index * of_group + rank, rank * warps, start);
        resident.push_back(group.blocks.back());
      }
    }
    if (!run_together(machine, resident)) return false;
  }
  return true;
}

}  // namespace virtual_gpu
