// Whole optimiser steps on a GPU: sample tasks, gradients, update, for every model of an ensemble.
//
// A model has `group` blocks of four warps. Each takes units of 128 tasks by index and leaves their sums in device
// memory; then one update is made from all of them. Run persistently, a launch takes every step of a call: a model's
// blocks meet at one barrier a step, and each makes the same update in its own memory from the same sums, so that
// nothing has to be sent back. Run by replay, sums, groups of sums and updates are launches of their own, and the
// state lies in its tensors between them. Sums and updates are the same code on the same numbers: the traces are the
// same bits.
//
// Bytes: none of tasks but given ones; 4 K / 128 a task of partial sums, written and read from the second cache.
// Operations: those of train_sums.cuh for a task and of train_update.cuh for a step.

#pragma once

#include <cmath>

#include "cuda/train/train_sums.cuh"
#include "cuda/train/train_update.cuh"

namespace memformer::cuda {

#ifdef __CUDACC__
// All blocks of a group have arrived and see what the others have written to global memory. From 9.0 on they are a
// cluster, with a barrier of its own; before, they count arrivals in global memory, and `turn` says which meeting it
// is.
template <int Threads>
MEMFORMER_DEVICE void meet(const DeviceBlock<Threads>& block, unsigned* arrivals, int group, int turn) {
  if (group == 1) return block.sync();
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile("barrier.cluster.arrive.release.aligned;\nbarrier.cluster.wait.acquire.aligned;" ::: "memory");
#else
  __threadfence();
  block.sync();
  if (block.thread() == 0) {
    const unsigned all = static_cast<unsigned>(group * (turn + 1));
    atomicAdd(arrivals, 1u);
    while (*static_cast<volatile unsigned*>(arrivals) < all) {
    }
    __threadfence();
  }
  block.sync();
#endif
}
#endif

template <class Extent, int Most, template <class> class Task>
struct TrainSteps {
  using Arguments = TrainPlan;
  using Sums = UnitSums<Extent, Most, Task>;
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
    float* memory = reinterpret_cast<float*>(block.shared());
    if constexpr (!core::is_fixed<Extent>) {
      if (plan.memory) memory = plan.memory + block.index() * plan.space.count;
    }
    TrainedModel<Block> trained(plan, block, model, memory);
    Progress& progress = plan.progress[model];
    const bool persistent = plan.makes_sums && plan.updates;
    const int first = progress.done, steps = persistent ? call.steps : 1;
    const auto draw_of = [&](int step) {
      const int64_t number = call.step + first + step;
      return call.resample_every == 1 ? number : number / call.resample_every;
    };
    trained.load(draw_of(0));
    const int64_t skipped = *reinterpret_cast<const int64_t*>(memory + plan.space.skipped);
    int taken = progress.taken;
    const int taken_before = taken;
    // None may finish and write what another has not read yet. Replayed, one block alone writes, and reads before it.
    meet(block, &progress.arrivals, persistent ? plan.group : 1, 0);

    for (int step = 0; step < steps; ++step) {
      const bool active = call.max_skipped < 0 || skipped + step - (taken - taken_before) < call.max_skipped;
      const int64_t half = persistent ? step % 2 : 0;
      float* const cells = plan.cells + (2 * model + half) * plan.units * plan.sum_count();
      if (active && plan.makes_sums) {
        const int64_t draw = draw_of(step);
        // The draw's upper half has changed, and so do the keys.
        if (step > 0 && static_cast<uint32_t>(draw) == 0) {
          block.sync();
          trained.set_keys(draw);
          block.sync();
        }
        const StepTasks tasks{call.source, *reinterpret_cast<const core::PhiloxKeys*>(memory + plan.space.keys), draw,
                              model};
        for (int64_t unit = rank; unit < plan.units; unit += plan.group) {
          Sums::run(plan, block, memory, tasks, unit, cells + unit * plan.sum_count());
        }
      }
      if (active && persistent) meet(block, &progress.arrivals, plan.group, step + 1);
      if (!plan.updates) continue;
      double loss = NAN;
      if (active && trained.update(cells, first + step, taken, loss)) ++taken;
      if (rank == 0 && block.thread() == 0) {
        call.losses[static_cast<int64_t>(first + step) * call.source.models + model] = loss;
      }
    }

    if (!plan.updates || rank > 0) return;
    trained.store();
    if (block.thread() == 0) {
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
