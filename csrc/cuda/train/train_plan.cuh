// What the trainer's kernels know of a call: its numbers, where they lie in device memory, and a block's own memory.
//
// Device memory of a call, one after another: progress of every model, Adam's corrections of every step, sums of groups
// of blocks of tasks (replay alone), partial sums, tables, and the blocks' own memory where it does not fit in shared
// memory. Tables are the links between flat and dense numbers, sorted both ways, and the ends of the clipped groups.

#pragma once

#include <vector>

#include "core/optimizer.h"
#include "core/philox.h"
#include "cuda/thread/first_order.cuh"
#include "cuda/train.h"

namespace memformer::cuda {

// A unit of tasks is one turn of a block: a tile for each of its warps.
constexpr int train_warps = 4;
constexpr int train_threads = train_warps * warp_threads;
constexpr int train_unit = train_warps * tile_tasks;

// Blocks of a multiprocessor that registers must allow: what keeps the hot instance free of spills.
MEMFORMER_INLINE constexpr int train_blocks_of_multiprocessor(int capability) { return capability < 90 ? 2 : 3; }

// Hyperparameters of a model.
constexpr int hyper_count = 6;

// Of a model in a call.
struct Progress {
  int done;  // steps, skipped ones included
  int taken;
  unsigned arrivals;  // at the barrier of its blocks
};

// A block's own memory, in floats from its start; every part starts at a multiple of four.
struct TrainSpace {
  int sums;  // K doubles: of a step, in the dense form
  int keys;
  int skipped;  // one int64: steps skipped before this launch
  int hyper;    // doubles
  int wrong;    // whether an update came out not finite
  int now;      // flat: the parameters, first and second moments, `step` apart
  int next;     // the same, for those that a step makes; the two change places
  int step;
  int grad;
  int trained;  // 1 or 0
  int dense;    // the parameters as kernels read them: a, gamma, beta
  int gamma;
  int beta;
  int tables;
  int totals;  // of two units: sums of each warp's tile, `sum_step` apart
  int sum_step;
  int warps;  // slots, so many, and traces of each warp, `warp_step` apart
  int slots;
  int warp_step;
  int count;
};

// Where a part starts: for the compiler a multiple of four too, so that it reads vectors of four there.
MEMFORMER_DEVICE float* part_of(float* memory, int begin) { return memory + (begin & ~3); }

struct TrainPlan {
  Train call;
  TrainSpace space;
  int dense;  // numbers of the dense form; sums are one more
  int group;  // blocks a model
  bool makes_sums;
  bool updates;
  int64_t units;  // a step's, of `train_unit` tasks
  double share;   // of a squared error in the loss
  Progress* progress;
  core::BiasCorrections* corrections;  // (M, steps), of the steps that are taken
  double* groups;                      // (M, groups, K), or null: added up by the block that needs them
  float* cells;                        // (M, 2, units, K) partial sums; of even and of odd steps
  int* tables;
  float* memory;  // null: in shared memory

  MEMFORMER_INLINE int sum_count() const { return dense + 1; }
  MEMFORMER_INLINE int64_t blocks() const { return (units * train_unit + block_tasks - 1) / block_tasks; }
  MEMFORMER_INLINE int64_t group_count() const { return (blocks() + group_blocks - 1) / group_blocks; }
};

// The links sorted by their dense numbers, and by their flat ones: first where each number's begin, then what they join
// it to; then where the clipped groups end, and where in a block's memory each dense number goes.
struct TrainTables {
  int dense_links;
  int flat_begins;
  int flat_links;
  int clip_ends;
  int places;
  int count;
};

MEMFORMER_INLINE TrainTables train_tables(const TrainPlan& plan) {
  const int links = plan.call.network.links;
  TrainTables tables{};
  tables.dense_links = plan.dense + 1;
  tables.flat_begins = tables.dense_links + links;
  tables.flat_links = tables.flat_begins + plan.call.flat + 1;
  tables.clip_ends = tables.flat_links + links;
  tables.places = tables.clip_ends + plan.call.clip_groups;
  tables.count = tables.places + plan.dense;
  return tables;
}

inline std::vector<int> fill_tables(const TrainPlan& plan) {
  const TrainTables at = train_tables(plan);
  const TrainedNetwork<float>& network = plan.call.network;
  std::vector<int> tables(static_cast<std::size_t>(at.count));
  const auto sort = [&](const int* by, const int* other, int numbers, int begins, int links) {
    int next = 0;
    for (int number = 0; number < numbers; ++number) {
      tables[static_cast<std::size_t>(begins + number)] = next;
      for (int k = 0; k < network.links; ++k) {
        if (by[k] == number) tables[static_cast<std::size_t>(links + next++)] = other[k];
      }
    }
    tables[static_cast<std::size_t>(begins + numbers)] = next;
  };
  sort(network.link_dense, network.link_flat, plan.dense, 0, at.dense_links);
  sort(network.link_flat, network.link_dense, plan.call.flat, at.flat_begins, at.flat_links);
  for (int k = 0; k < plan.call.clip_groups; ++k) {
    tables[static_cast<std::size_t>(at.clip_ends + k)] = plan.call.clip_ends[k];
  }
  const int d = plan.call.source.features, matrix = d * d, step = core::FirstOrder<float, 4>::matrix_step(d);
  for (int k = 0; k < plan.dense; ++k) {
    const int coefficient = k - network.q_count;
    tables[static_cast<std::size_t>(at.places + k)] =
        coefficient < 0                     ? plan.space.dense + k / matrix * step + k % matrix
        : coefficient < network.gamma_count ? plan.space.gamma + coefficient
                                            : plan.space.beta + coefficient - network.gamma_count;
  }
  return tables;
}

// `trace`: cells of every task; `used_slots`: of every warp.
inline TrainSpace train_space(const TrainPlan& plan, int trace, int used_slots) {
  const TrainedNetwork<float>& network = plan.call.network;
  const int d = plan.call.source.features, flat = in_fours(plan.call.flat);
  TrainSpace space{};
  const auto part = [&](int64_t count) {
    const int begin = space.count;
    space.count += in_fours(count);
    return begin;
  };
  space.sums = part(2 * plan.sum_count());
  space.keys = part(sizeof(core::PhiloxKeys) / sizeof(float));
  space.skipped = part(2);
  space.hyper = part(2 * hyper_count);
  space.wrong = part(1);
  space.now = part(3 * flat);
  space.next = part(3 * flat);
  space.step = flat;
  space.grad = part(flat);
  space.trained = part(flat);
  space.dense = part(network.q_count / (d * d) * core::FirstOrder<float, 4>::matrix_step(d));
  space.gamma = part(network.gamma_count);
  space.beta = part(network.beta_count);
  space.tables = part(train_tables(plan).count);
  space.sum_step = in_fours(plan.sum_count());
  space.totals = part(2 * train_warps * space.sum_step);
  space.slots = used_slots;
  space.warp_step = used_slots * slot_pitch + trace * warp_threads;
  space.warps = part(train_warps * space.warp_step);
  return space;
}

}  // namespace memformer::cuda
