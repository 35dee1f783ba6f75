// Whole optimiser steps on a GPU: sample tasks, gradients, update, for every model of an ensemble.
//
// A model has `group` blocks of four warps. Each takes units of 128 tasks by index and leaves their sums in device
// memory; then one update is made from all of them. Run persistently, a launch takes every step of a call: a model's
// blocks meet at one barrier a step, and each makes the same update in its own memory from the same sums, so that
// nothing has to be sent back; while they wait for each other they draw the next step's tasks. Run by replay, sums,
// groups of sums and updates are launches of their own, and the state lies in its tensors between them. Sums and
// updates are the same code on the same numbers: the traces are the same bits.
//
// Bytes: none of tasks but given ones; 4 K / 128 a task of partial sums, written and read from the second cache.
// Operations: those of train_sums.cuh for a task and of train_update.cuh for a step.

#pragma once

#include <cmath>

#include "cuda/train/train_sums.cuh"
#include "cuda/train/train_update.cuh"

namespace memformer::cuda {

#ifdef __CUDACC__
// A meeting of all blocks of a group: who has waited sees what the others had written to global memory when they
// arrived. From 9.0 on they are a cluster, with a barrier of its own; before, they count arrivals in global memory, and
// `turn` says which meeting it is.
template <int Threads>
MEMFORMER_DEVICE void arrive(const DeviceBlock<Threads>& block, [[maybe_unused]] unsigned* arrivals, int group) {
  if (group == 1) return;
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile("barrier.cluster.arrive.release.aligned;" ::: "memory");
#else
  __threadfence();
  block.sync();
  if (block.thread() == 0) atomicAdd(arrivals, 1u);
#endif
}

template <int Threads>
MEMFORMER_DEVICE void wait(const DeviceBlock<Threads>& block, [[maybe_unused]] unsigned* arrivals, int group,
                           [[maybe_unused]] int turn) {
  if (group == 1) return block.sync();
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile("barrier.cluster.wait.acquire.aligned;" ::: "memory");
#else
  if (block.thread() == 0) {
    const unsigned all = static_cast<unsigned>(group * (turn + 1));
    while (*static_cast<volatile unsigned*>(arrivals) < all) {
    }
    __threadfence();
  }
  block.sync();
#endif
}
#endif

template <class Extent, int Layers, template <class> class Task>
struct TrainSteps {
  using Arguments = TrainPlan;
  using Sums = UnitSums<Extent, Layers, Task>;
  static constexpr int threads = train_threads;
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 900
  static constexpr int blocks_of_multiprocessor = train_blocks_of_multiprocessor(80);
#else
  static constexpr int blocks_of_multiprocessor = train_blocks_of_multiprocessor(90);
#endif

  template <class Block>
  static MEMFORMER_DEVICE void run(const TrainPlan& plan, const Block& block) {
    const Train& call = plan.call;
    const int model = static_cast<int>(block.index() / plan.group), rank = static_cast<int>(block.index() % plan.group);
    const int units = static_cast<int>(plan.units);
    float* memory = reinterpret_cast<float*>(block.shared());
    if constexpr (!core::is_fixed<Extent>) {
      if (plan.memory) memory = plan.memory + block.index() * plan.space.count;
    }
    TrainedModel<Block> trained(plan, block, model, memory);
    Progress& progress = plan.progress[model];
    const bool persistent = plan.makes_sums && plan.updates;
    const int first = progress.done, steps = persistent ? call.steps : 1, group = persistent ? plan.group : 1;
    const uint32_t stream = static_cast<uint32_t>(call.source.streams[model]);
    const auto draw_of = [&](int step) {
      const int64_t number = call.step + first + step;
      return call.resample_every == 1 ? number : number / call.resample_every;
    };
    const auto tasks_of = [&](int64_t draw) {
      return StepTasks{call.source, *reinterpret_cast<const core::PhiloxKeys*>(memory + plan.space.keys), stream, draw,
                       model};
    };
    trained.load(draw_of(0));
    Sums sums;
    sums.begin(plan, block, memory);
    const int64_t skipped = *reinterpret_cast<const int64_t*>(memory + plan.space.skipped);
    int taken = progress.taken;
    const int taken_before = taken;
    const auto is_active = [&](int step) {
      return call.max_skipped < 0 || skipped + step - (taken - taken_before) < call.max_skipped;
    };
    // None may finish and write what another has not read yet. Replayed, one block alone writes, and reads before it.
    arrive(block, &progress.arrivals, group);
    wait(block, &progress.arrivals, group, 0);

    // Units come one after another, step after step. The next one takes nothing of the parameters: it is drawn while a
    // step's blocks wait for each other.
    const int64_t step_cells = plan.units * plan.sum_count();
    float* const model_cells = plan.cells + 2 * model * step_cells;
    bool active = is_active(0);
    int step = plan.makes_sums ? -1 : 0, done = 0;
    int unit = units;
    int64_t draw = 0;
    while (active) {
      float* const cells = model_cells + (persistent && step % 2 ? step_cells : 0);
      if (plan.makes_sums && step >= 0) {
        sums.add_up(plan, block, memory, tasks_of(draw), cells + static_cast<int64_t>(unit) * plan.sum_count());
      }
      const bool ends = unit + plan.group >= units, updates = plan.updates && ends && step >= 0;
      typename TrainedModel<Block>::Rates rates{};
      if (updates) rates = trained.rates(first + step, taken);
      if (updates && persistent) arrive(block, &progress.arrivals, group);
      const int next_step = ends ? step + 1 : step;
      const int next_unit = ends ? rank : unit + plan.group;
      if (plan.makes_sums && next_step < steps) {
        if (ends) {
          draw = draw_of(next_step);
          // Its upper half has changed, and so do the keys.
          if (next_step > 0 && static_cast<uint32_t>(draw) == 0) {
            trained.set_keys(draw);
            block.sync();
          }
        }
        sums.draw(plan, block, memory, tasks_of(draw), next_unit);
      }
      if (updates) {
        const auto scalars = trained.scalars(rates);
        if (persistent) wait(block, &progress.arrivals, group, step + 1);
        double loss;
        if (trained.update(cells, scalars, loss)) ++taken;
        if (rank == 0 && block.thread() == 0) {
          call.losses[static_cast<int64_t>(first + step) * call.source.models + model] = loss;
        }
        active = is_active(++done);
      }
      if (next_step >= steps) break;
      step = next_step;
      unit = next_unit;
    }

    if (!plan.updates || rank > 0) return;
    trained.store();
    if (block.thread() == 0) {
      for (; done < steps; ++done) call.losses[static_cast<int64_t>(first + done) * call.source.models + model] = NAN;
      call.skipped[model] = skipped + steps - (taken - taken_before);
      progress.done = first + steps;
      progress.taken = taken;
    }
  }
};

// Sums of 16 blocks of 1024 tasks, each by one block of threads: what a replayed step adds up before its update.
struct TrainGroups {
  using Arguments = TrainPlan;
  static constexpr int threads = train_threads;
  static constexpr int blocks_of_multiprocessor = 2;

  template <class Block>
  static MEMFORMER_DEVICE void run(const TrainPlan& plan, const Block& block) {
    const int64_t count = plan.group_count(), model = block.index() / count;
    const float* const cells = plan.cells + 2 * model * plan.units * plan.sum_count();
    for (int k = block.thread(); k < plan.sum_count(); k += Block::threads) {
      plan.groups[block.index() * plan.sum_count() + k] = sum_of_group(plan, cells, block.index() % count, k);
    }
  }
};

// What a call's first launch leaves to the others: no progress yet, and the corrections of all steps it can take.
struct TrainStart {
  using Arguments = TrainPlan;
  static constexpr int threads = train_threads;
  static constexpr int blocks_of_multiprocessor = 4;

  template <class Block>
  static MEMFORMER_DEVICE void run(const TrainPlan& plan, const Block& block) {
    const Train& call = plan.call;
    const int64_t self = block.index() * Block::threads + block.thread(), all = block.count() * Block::threads;
    for (int64_t model = self; model < call.source.models; model += all) plan.progress[model] = {0, 0, 0};
    if (!plan.corrections) return;
    for (int64_t k = self; k < call.source.models * call.steps; k += all) {
      const int64_t model = k / call.steps, before = call.step - call.skipped[model];
      plan.corrections[k] = core::bias_corrections(call.hyper + 6 * model, before + k % call.steps + 1);
    }
  }
};

}  // namespace memformer::cuda
