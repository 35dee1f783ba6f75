// What kernels of response-only methods keep in a block's memory: parameters, sums, and the trace of every task.
//
// In numbers of T, one after another, each part starting at a multiple of four: the matrices of a (each too: rows are
// read in vectors of four), gamma, beta; where gradients are asked for two rows of sums and the slots of task_sums.cuh;
// then the cells of the trace, [cell][task]. Gradients of registers overwrite the registers, which nothing needs any
// more by then. Workload W: 128 numbers of parameters, 2 x 120 sums, 288 for slots and 45 x 32 of trace: 8.4 KB beside
// 16.1 KB of tokens.

#pragma once

#include "core/response_gram.h"
#include "cuda/machine/parameters.cuh"
#include "cuda/machine/reduce.cuh"
#include "cuda/thread/task_sums.cuh"

namespace memformer::cuda {

// The trace of the core, kept in place: g_l, u_l, r_l (then its gradient), and s_l where `states` are asked for.
template <class S, class Extent, int Stride>
struct InPlaceTrace {
  core::Cells<S, Stride> cells;
  int layers;
  int heads;
  Extent d;
  bool states;

  MEMFORMER_INLINE core::Cells<S, Stride> residual(int l) const { return cells.at(l * d); }
  MEMFORMER_INLINE core::Cells<S, Stride> update(int l) const { return cells.at((layers + l) * d); }
  MEMFORMER_INLINE core::Cells<S, Stride> memory(int l, int h) const {
    return cells.at((2 * layers + l * heads + h) * d);
  }
  MEMFORMER_INLINE core::Cells<S, Stride> memory_grad(int l, int h) const { return memory(l, h); }
  MEMFORMER_INLINE core::Cells<S, Stride> state(int l) const { return cells.at(((2 + heads) * layers + l) * d); }
  MEMFORMER_INLINE void keep_state(int l, const S* s) const {
    if (!states) return;
    const int count = d;
    MEMFORMER_UNROLL
    for (int c = 0; c < count; ++c) state(l)[c] = s[c];
  }
};

// The same for at most Most layers with one register each, without states: u_l and r_l in registers, and in memory what
// the sums over tasks read, g_l and then the gradients of r_l.
template <class S, class Extent, int Stride, int Most>
struct RegisterTrace {
  core::Cells<S, Stride> cells;
  S* updates;  // Most d numbers each
  S* memories;
  Extent d;

  MEMFORMER_INLINE core::Cells<S, Stride> residual(int l) const { return cells.at(l * d); }
  MEMFORMER_INLINE core::Cells<S> update(int l) const { return {updates + l * d}; }
  MEMFORMER_INLINE core::Cells<S> memory(int l, int) const { return {memories + l * d}; }
  MEMFORMER_INLINE core::Cells<S> memory_grad(int l, int h) const { return memory(l, h); }
  // No states: they are for results and gradients that this trace does not serve.
  MEMFORMER_INLINE core::Cells<S> state(int) const { return {nullptr}; }
  MEMFORMER_INLINE void keep_state(int, const S*) const {}
};

inline int trace_cells(int layers, int heads, int d, bool states) {
  return ((2 + heads) * layers + (states ? layers + 1 : 0)) * d;
}

// Where the parts start.
struct MethodSpace {
  int gamma;
  int beta;
  int sums;  // two rows, `sum_step` apart
  int sum_step;
  int slot_cells;
  int trace;
  int count;  // of all
};

inline int in_fours(int64_t count) { return static_cast<int>(divided_up(count, 4) * 4); }

inline MethodSpace method_space(const Parameters& parameters, int d, int64_t sums, int64_t trace) {
  MethodSpace space{};
  space.gamma = static_cast<int>(parameters.q.count() / (d * d)) * core::FirstOrder<float, 4>::matrix_step(d);
  space.beta = space.gamma + in_fours(parameters.gamma.count());
  space.sums = space.beta + in_fours(parameters.beta.count());
  space.sum_step = in_fours(sums);
  space.slot_cells = space.sums + 2 * space.sum_step;
  space.trace = space.slot_cells + (sums ? slots * slot_pitch : 0);
  space.count = space.trace + static_cast<int>(trace) * warp_threads;
  return space;
}

// Reads the parameters into the block's memory; a barrier must follow.
template <int Most, class T, class Block>
MEMFORMER_DEVICE core::FirstOrder<T, 4, Most> load_method(const Block& block, const Parameters& parameters,
                                                          const MethodSpace& space, int layers, int heads,
                                                          bool diagonal, int d, T* memory) {
  load_parameter(block, parameters.q, memory, d * d, core::FirstOrder<T, 4>::matrix_step(d));
  if (parameters.gamma.present) load_parameter(block, parameters.gamma, memory + space.gamma);
  if (parameters.beta.present) load_parameter(block, parameters.beta, memory + space.beta);
  return {{layers, heads, diagonal, 1, 1, parameters.gamma.present ? memory + space.gamma : nullptr,
           parameters.beta.present ? memory + space.beta : nullptr},
          memory};
}

// Tasks in one warp's turn, a task a lane, and in a unit of a partial sum. Few tasks are spread over the machine: where
// whole warps would leave multiprocessors of an H200 without one, lanes stay idle instead.
constexpr int tile_tasks = warp_threads;
constexpr int machine_blocks = 132;
inline int tasks_of_tile(int64_t tasks) {
  int taken = tile_tasks;
  while (taken > 4 && tasks < int64_t{machine_blocks} * taken) taken /= 2;
  return taken;
}
inline int tasks_of_unit(int64_t tasks, bool sums) {
  return sums && tasks > 32 * block_tasks ? 4 * tile_tasks : tasks_of_tile(tasks);
}

// Both rows of sums of a unit: cleared before it, added up into its partial sum after it.
template <class T, class Block>
MEMFORMER_DEVICE void clear_sums(const Block& block, const MethodSpace& space, T* memory) {
#pragma unroll 1
  for (int k = block.thread(); k < 2 * space.sum_step; k += Block::threads) memory[space.sums + k] = T(0);
  block.sync();
}

template <class T, class Block>
MEMFORMER_DEVICE void write_sums(const Block& block, const MethodSpace& space, const T* memory,
                                 const Partials<T>& partials, int64_t unit) {
  block.sync();
  T* const to = partials.unit(unit);
  const T* const rows = memory + space.sums;
#pragma unroll 1
  for (int k = block.thread(); k < partials.count; k += Block::threads) to[k] = rows[k] + rows[space.sum_step + k];
  block.sync();
}

// body(first task, first of this block's next tile, row of sums) for every tile of the block's units; where there are
// sums, each unit's are written when it is done. A unit is a tile, or whole tiles of 32 tasks.
template <class T, class Block, class Body>
MEMFORMER_DEVICE void each_tile(const Block& block, int64_t tasks, int64_t unit_tasks, const MethodSpace& space,
                                T* memory, const Partials<T>& partials, Body body) {
  const bool sums = partials.count > 0;
  for (int64_t unit = block.index(); unit * unit_tasks < tasks; unit += block.count()) {
    if (sums) clear_sums(block, space, memory);
    const int64_t begin = unit * unit_tasks;
    const int64_t end = begin + unit_tasks < tasks ? begin + unit_tasks : tasks;
#pragma unroll 1
    for (int64_t first = begin; first < end; first += tile_tasks) {
      const int64_t next = first + tile_tasks < end ? first + tile_tasks : begin + block.count() * unit_tasks;
      const int row = static_cast<int>((first - begin) / (2 * tile_tasks));
      body(first, next, memory + space.sums + row * space.sum_step);
    }
    if (sums) write_sums(block, space, memory, partials, unit);
  }
}

// Shared memory that a block may count on everywhere, less what the driver keeps; more than that lies in global memory.
constexpr int64_t most_shared = 96 * 1024;
constexpr int64_t blocks_in_global_memory = 264;

}  // namespace memformer::cuda
