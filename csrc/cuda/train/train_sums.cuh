// The sums of a step over one unit of tasks: made, worked through and added up by one block.
//
// One task a lane, a tile of 32 tasks a warp. A task is made in registers, the method runs forward and backward as in
// response_gram.cuh, and the warp adds up what its tasks hand out (task_sums.cuh). The block then adds its warps'
// tiles, pairwise, into the unit's partial sums. Lanes without a task run on zeros. Bytes per task: none but those of a
// given task, and 4 K / 128 of partial sums. Operations of workload W, drawn as statistics with the query integrated
// out: those of train_tasks.cuh, 230 multiply-adds forward, 325 backward, 100 for the sums of A. Of sm_90's code about
// 4150 instructions run for a warp's 32 tasks, 2500 of them to make the tasks.

#pragma once

#include <type_traits>

#include "cuda/train/train_plan.cuh"
#include "cuda/train/train_tasks.cuh"

namespace memformer::cuda {

template <class Extent>
MEMFORMER_INLINE Extent extent_of(int size) {
  if constexpr (core::is_fixed<Extent>) {
    return {};
  } else {
    return {size};
  }
}

// Task: StatisticsTask or TokenTask. Most: at most so many layers with one register each, traces in registers; 0: any.
template <class Extent, int Most, template <class> class Task>
struct UnitSums {
  using Cells = core::Cells<float, warp_threads>;
  using Trace = std::conditional_t<Most != 0, RegisterTrace<float, Extent, warp_threads, Most>,
                                   InPlaceTrace<float, Extent, warp_threads>>;

  // Cells of a task's trace.
  static int trace_cells(const TrainedNetwork<float>& network, int d) {
    return Most ? 2 * network.layers * d : ::memformer::cuda::trace_cells(network.layers, network.kept, d, false);
  }

  // `to` gets the unit's K sums.
  template <class Block>
  static MEMFORMER_DEVICE void run(const TrainPlan& plan, const Block& block, float* memory, const StepTasks& tasks,
                                   int64_t unit, float* to) {
    const TrainSpace& space = plan.space;
    float* const totals = memory + space.totals;
    float* const own_totals = totals + block.warp() * space.sum_step;
    for (int k = block.lane(); k < plan.sum_count(); k += warp_threads) own_totals[k] = 0.0f;
    block.sync_warp();
    tile(plan, block, memory, tasks, unit * train_unit + block.thread());
    block.sync();
    for (int k = block.thread(); k < plan.sum_count(); k += Block::threads) {
      const float* const of = totals + k;
      to[k] = (of[0] + of[space.sum_step]) + (of[2 * space.sum_step] + of[3 * space.sum_step]);
    }
    block.sync();
  }

 private:
  template <class Block>
  static MEMFORMER_DEVICE void tile(const TrainPlan& plan, const Block& block, float* memory, const StepTasks& tasks,
                                    int64_t index) {
    const TrainedNetwork<float>& network = plan.call.network;
    const TrainSpace& space = plan.space;
    const Extent extent = extent_of<Extent>(tasks.source.features);
    const int d = extent, layers = network.layers, heads = network.kept;
    float* const own = memory + space.warps + block.warp() * space.warp_step;
    const Cells cells{own + slots * slot_pitch + block.lane()};

    core::SymmetricQuadratic<float, Extent> quadratic;
    quadratic.extent = extent;
    const bool real = index < tasks.source.tasks;
    Task<Extent> task(tasks, extent, real ? index : 0);  // lanes past the last task look up one that is there
    if (real) {
      task.make(quadratic, cells);
    } else {
      MEMFORMER_UNROLL
      for (int k = 0; k < core::packed_size(d); ++k) quadratic.h[k] = 0.0f;
      MEMFORMER_UNROLL
      for (int c = 0; c < d; ++c) quadratic.b[c] = 0.0f;
    }

    [[maybe_unused]] float updates[Most ? Most * Extent::limit : 1], memories[Most ? Most * Extent::limit : 1];
    const Trace trace = [&] {
      if constexpr (Most) {
        return Trace{cells, updates, memories, extent};
      } else {
        return Trace{cells, layers, heads, extent, false};
      }
    }();
    const core::FirstOrder<float, 4, Most> method{
        {layers, heads, network.diagonal, 1, 1, network.gamma_count ? memory + space.gamma : nullptr,
         network.beta_count ? memory + space.beta : nullptr},
        memory + space.dense};
    float s[Extent::limit], grad[Extent::limit];
    MEMFORMER_UNROLL
    for (int c = 0; c < d; ++c) s[c] = grad[c] = 0.0f;
    core::response_forward<false>(quadratic, method, s, trace);
    const float squares = real ? task.errors(s, grad) : 0.0f;

    TaskSums<float, Extent, Block> sums{block,
                                        extent,
                                        heads,
                                        layers * heads,
                                        network.q_count,
                                        network.q_count + network.gamma_count,
                                        plan.dense,
                                        memory + space.totals + block.warp() * space.sum_step,
                                        own,
                                        cells.at((Most ? 1 : 2) * layers * d),
                                        trace.residual(0)};
    sums.squared_error(squares);
    core::response_backward<false>(
        quadratic, method, trace,
        [&](int l, float* ds) {
          if (l + 1 < layers) return;
          MEMFORMER_UNROLL
          for (int c = 0; c < d; ++c) ds[c] += grad[c];
        },
        sums, s, static_cast<core::SymmetricQuadratic<float, Extent>*>(nullptr));
    sums.finish();
  }
};

}  // namespace memformer::cuda
