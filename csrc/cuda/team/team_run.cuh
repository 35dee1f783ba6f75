// Teams on all tasks: units of tasks to blocks of one warp, their sums of gradients, and the memory they work in.
//
// A block owns a unit of 4 to 1024 tasks at a time, 32 / members of them at once; its sums of K numbers lie in
// shared memory while they are few, else in the unit's own place in device memory. A task's cells lie in shared
// memory, or where they are too many in a block's own part of device memory; kernels that are compiled for the first
// alone (`InShared`) read them with the shorter instructions of shared memory.

#pragma once

#include "core/parameter_sums.h"
#include "cuda/machine/reduce.cuh"
#include "cuda/team/team_io.cuh"

namespace memformer::cuda {

// Blocks of a multiprocessor that registers allow: about as many as cells of usual sizes leave room for.
template <class T, int Tile, int Grid>
constexpr int team_blocks = sizeof(T) == 8 || Grid == 4 ? 8 : 10;

// What every kernel of teams is told.
template <class T>
struct TeamPlan {
  int64_t tasks;
  int unit_tasks;
  int cells;  // of a task
  bool shared_sums;
  bool wants_sums;
  int64_t block_cells;  // of a block in `work`
  T* work;              // null where cells are in shared memory
  Partials<T> partials;
  core::ParameterCounts counts;
};

// What a network's kernels are told; the pointers to parameters in `network` are not used.
template <class T>
struct TeamNetwork {
  Network<T> network;
  core::Parameters<T> parameters;
  TeamPlan<T> plan;
  T error_scale;  // from an error to the gradient of the loss
};

template <class T>
MEMFORMER_INLINE bool is_backward(const Network<T>& network) {
  return network.pass == Pass::backward || network.pass == Pass::loss_backward;
}
template <class T>
MEMFORMER_INLINE bool is_loss(const Network<T>& network) {
  return network.pass == Pass::loss || network.pass == Pass::loss_backward;
}

// Grids of a network's trace (core/memory.h).
template <class T>
int64_t trace_grids(const Network<T>& network, const Parameters& parameters) {
  const bool backward = is_backward(network);
  const bool registers = backward || !(network.diagonal || !parameters.gamma.present);
  return (backward ? network.layers + 1 : 1) +
         ((registers ? network.layers : 1) + (backward ? 1 : 0)) * static_cast<int64_t>(network.kept);
}

// Runs body(task, cells, sums, squared) for all tasks of the units that are this block's.
template <bool InShared, class T, class Team, class Body>
MEMFORMER_DEVICE void run_units(const Team& team, const TeamPlan<T>& plan, Body body) {
  const auto& block = team.block;
  const int count = plan.wants_sums ? plan.partials.count : 0;
  T* const shared = reinterpret_cast<T*>(block.shared());
  T* cells = shared + (plan.shared_sums ? count : 0);
  if constexpr (!InShared) {
    if (plan.work) cells = plan.work + block.index() * plan.block_cells;
  }
  if (plan.wants_sums && block.index() == 0 && block.thread() == 0) *plan.partials.arrivals = 0;
  const int64_t units = (plan.tasks + plan.unit_tasks - 1) / plan.unit_tasks;
  for (int64_t unit = block.index(); unit < units; unit += block.count()) {
    T* const partial = plan.wants_sums ? plan.partials.unit(unit) : nullptr;
    T* const sums = plan.shared_sums ? shared : partial;
    for (int k = block.lane(); k < count; k += warp_threads) sums[k] = T(0);
    block.sync();
    T squared = T(0);
    for (int first = 0; first < plan.unit_tasks; first += Team::tasks) {
      const int64_t index = unit * plan.unit_tasks + first + team.task();
      if (index - team.task() >= plan.tasks) break;
      body(Task{index, index < plan.tasks && first + team.task() < plan.unit_tasks},
           Cells<T, Team::tasks>{cells + team.task()}, sums, &squared);
      block.sync();
    }
    if (!plan.wants_sums) continue;
    for (int mask = 1; mask < warp_threads; mask *= 2) squared += block.shuffle_xor(squared, mask);
    if (block.lane() == 0) sums[count - 1] = squared;
    block.sync();
    if (plan.shared_sums) {
      for (int k = block.lane(); k < count; k += warp_threads) partial[k] = sums[k];
      block.sync();
    }
  }
}

}  // namespace memformer::cuda
