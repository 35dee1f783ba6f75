// The sums of a step over one unit of tasks: made, worked through and added up by one block.
//
// One task a lane, a tile of 32 tasks a warp. A task is made in registers, the method runs forward and backward as in
// response_gram.cuh, and the warp adds up what its tasks hand out (task_sums.cuh). The block then adds its warps'
// tiles, pairwise, into the unit's partial sums. Lanes without a task run on zeros. A unit is drawn before what it is
// worked through with is known. Bytes per task: none but those of a
// given task, and 4 K / 128 of partial sums. Operations of workload W, drawn as statistics with the query integrated
// out: those of train_tasks.cuh, 230 multiply-adds forward, 325 backward, 100 for the sums of A. Of sm_90's code
// 2607 instructions are issued for a warp's 32 tasks.

#pragma once

#include <type_traits>

#include "cuda/train/train_plan.cuh"
#include "cuda/train/train_statistics.cuh"
#include "cuda/train/train_tokens.cuh"

namespace memformer::cuda {

template <class Extent>
MEMFORMER_INLINE Extent extent_of(int size) {
  if constexpr (core::is_fixed<Extent>) {
    return {};
  } else {
    return {size};
  }
}

// A unit of tasks in the hands of a block: drawn, and later worked through. Task: StatisticsTask or TokenTask. Layers:
// so many with one register each, gamma in full and no beta, traces in registers; 0: any network.
template <class Extent, int Layers, template <class> class Task>
class UnitSums {
  using Cells = core::Cells<float, warp_threads>;
  using Trace = std::conditional_t<Layers != 0, RegisterTrace<float, Extent, warp_threads, Layers>,
                                   InPlaceTrace<float, Extent, warp_threads>>;

 public:
  static constexpr int used_slots = Layers ? layer_slots<Layers> : slots;

  // Cells of a task's trace.
  static int trace_cells(const TrainedNetwork<float>& network, int d) {
    return Layers ? 2 * Layers * d : ::memformer::cuda::trace_cells(network.layers, network.kept, d, false);
  }

  // Where sums are put and not added up, those that stay zero; a barrier must follow.
  template <class Block>
  MEMFORMER_DEVICE void begin(const TrainPlan& plan, const Block& block, float* memory) const {
    if constexpr (Layers != 0) {
      const int count = 2 * train_warps * plan.space.sum_step;
      for (int k = block.thread(); k < count; k += Block::threads) memory[plan.space.totals + k] = 0.0f;
    }
  }

  // This lane's task, which takes nothing of the parameters.
  template <class Block>
  MEMFORMER_DEVICE void draw(const TrainPlan& plan, const Block& block, float* memory, const StepTasks& tasks,
                             int64_t unit) {
    const Extent extent = extent_of<Extent>(tasks.source.features);
    const int d = extent;
    quadratic_.extent = extent;
    const int64_t index = unit * train_unit + block.thread();
    real_ = index < tasks.source.tasks;
    task_index_ = static_cast<uint32_t>(index);
    if (real_) {
      task_.make(tasks, extent, task_index_, quadratic_, cells_of(plan, block, memory));
    } else {
      MEMFORMER_UNROLL
      for (int k = 0; k < core::packed_size(d); ++k) quadratic_.h[k] = 0.0f;
      MEMFORMER_UNROLL
      for (int c = 0; c < d; ++c) quadratic_.b[c] = 0.0f;
    }
  }

  // `to` gets the K sums of the unit that was drawn. Threads meet once: two units' sums of tiles have room.
  template <class Block>
  MEMFORMER_DEVICE void add_up(const TrainPlan& plan, const Block& block, float* memory, const StepTasks& tasks,
                               float* to) {
    const TrainSpace& space = plan.space;
    float* const totals = memory + space.totals + turn_ * train_warps * space.sum_step;
    turn_ = 1 - turn_;
    float* const own_totals = totals + block.warp() * space.sum_step;
    if constexpr (Layers == 0) {
      for (int k = block.lane(); k < plan.sum_count(); k += warp_threads) own_totals[k] = 0.0f;
      block.sync_warp();
    }
    work(plan, block, memory, tasks, own_totals);
    block.sync();
    for (int k = block.thread(); k < plan.sum_count(); k += Block::threads) {
      const float* const of = totals + k;
      to[k] = (of[0] + of[space.sum_step]) + (of[2 * space.sum_step] + of[3 * space.sum_step]);
    }
  }

 private:
  template <class Block>
  static MEMFORMER_DEVICE float* own_memory(const TrainPlan& plan, const Block& block, float* memory) {
    return memory + plan.space.warps + block.warp() * plan.space.warp_step;
  }
  template <class Block>
  static MEMFORMER_DEVICE Cells cells_of(const TrainPlan& plan, const Block& block, float* memory) {
    return {own_memory(plan, block, memory) + plan.space.slots * slot_pitch + block.lane()};
  }

  template <class Block>
  MEMFORMER_DEVICE void work(const TrainPlan& plan, const Block& block, float* memory, const StepTasks& tasks,
                             float* totals) {
    const TrainedNetwork<float>& network = plan.call.network;
    const TrainSpace& space = plan.space;
    const Extent extent = quadratic_.extent;
    const int d = extent, layers = Layers ? Layers : network.layers, heads = Layers ? 1 : network.kept;
    const Cells cells = cells_of(plan, block, memory);

    [[maybe_unused]] float updates[Layers ? Layers * Extent::limit : 1];
    [[maybe_unused]] float memories[Layers ? Layers * Extent::limit : 1];
    const Trace trace = [&] {
      if constexpr (Layers) {
        return Trace{cells, updates, memories, extent};
      } else {
        return Trace{cells, layers, heads, extent, false};
      }
    }();
    const float* const gamma = Layers || network.gamma_count ? memory + space.gamma : nullptr;
    const float* const beta = !Layers && network.beta_count ? memory + space.beta : nullptr;
    const core::FirstOrder<float, 4, Layers> method{{layers, heads, !Layers && network.diagonal, 1, 1, gamma, beta},
                                                    part_of(memory, space.dense)};
    float s[Extent::limit], grad[Extent::limit];
    MEMFORMER_UNROLL
    for (int c = 0; c < d; ++c) s[c] = grad[c] = 0.0f;
    core::response_forward<false>(quadratic_, method, s, trace);
    const float squares = real_ ? task_.errors(tasks, extent, task_index_, s, grad) : 0.0f;

    const TaskSums<float, Extent, Block, Layers != 0> of_tile{block,
                                                              extent,
                                                              heads,
                                                              layers * heads,
                                                              network.q_count,
                                                              network.q_count + network.gamma_count,
                                                              plan.dense,
                                                              totals,
                                                              own_memory(plan, block, memory),
                                                              cells.at((Layers ? 1 : 2) * layers * d),
                                                              trace.residual(0)};
    using Sink =
        std::conditional_t<Layers != 0, LayerSums<float, Extent, Block, Layers>, TaskSums<float, Extent, Block>>;
    Sink sums{of_tile};
    sums.squared_error(squares);
    core::response_backward<false>(
        quadratic_, method, trace,
        [&](int l, float* ds) {
          if (l + 1 < layers) return;
          MEMFORMER_UNROLL
          for (int c = 0; c < d; ++c) ds[c] += grad[c];
        },
        sums, s, static_cast<core::SymmetricQuadratic<float, Extent>*>(nullptr));
    sums.finish();
  }

  Task<Extent> task_;
  core::SymmetricQuadratic<float, Extent> quadratic_;
  uint32_t task_index_;
  bool real_;
  int turn_ = 0;
};

}  // namespace memformer::cuda
