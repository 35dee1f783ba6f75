// The tasks of a tile and the passes over their tokens: one task a lane, rows as they come (stage.cuh).
//
// A tile stays for all passes where it is resident; else every pass brings rows in chunks through the same buffer.

#pragma once

#include "core/gram.h"
#include "cuda/machine/stage.cuh"
#include "cuda/thread/first_order.cuh"

namespace memformer::cuda {

// Call: has tasks, unit_tasks, tokens, context, lengths, z, layout and resident.
template <class T, class Call, class Block>
struct TileTasks {
  const Call& call;
  const Block& block;
  Tile<Block> tile;

  // Of the tile at work.
  int64_t first_task = 0;
  int64_t task = 0;
  int tasks = 0;
  int labelled = 0;  // rows of this lane's context; 0 for a lane without a task
  bool real = false;

  // Lets the tile of the tasks from `first` on come in, if there are any.
  MEMFORMER_DEVICE void start(int64_t first) {
    if (first < call.tasks) tile.start(call.z, first, tasks_from(first), 0, call.tokens);
  }
  MEMFORMER_DEVICE int tasks_from(int64_t first) const {
    const int most = call.unit_tasks < tile_tasks ? call.unit_tasks : tile_tasks;
    return call.tasks - first < most ? static_cast<int>(call.tasks - first) : most;
  }

  // The tile of the tasks from `first` on is the one at work; returns the length that a context of this lane is
  // divided by.
  MEMFORMER_DEVICE int begin(int64_t first) {
    first_task = first;
    tasks = tasks_from(first);
    real = block.thread() < tasks;
    task = first + block.thread();
    const int context = call.lengths && real ? static_cast<int>(call.lengths[task]) : call.context;
    labelled = real ? context : 0;
    return context;
  }

  // A resident tile is left by all; the next one comes in.
  MEMFORMER_DEVICE void leave(int64_t next) {
    if (!call.resident) return;
    block.sync();
    start(next);
  }

  // body(this lane's rows, index of the first, count) for rows [first, last), as they come.
  template <class Body>
  MEMFORMER_DEVICE void each_chunk(int first, int last, Body body) {
    const int step = call.resident ? last - first : call.layout.rows;
#pragma unroll 1
    for (int row = first; row < last; row += step) {
      const int count = last - row < step ? last - row : step;
      if (!call.resident) {
        block.sync();
        tile.start(call.z, first_task, tasks, row, count);
        tile.wait();
      }
      body(tile.task() + (call.resident ? row * call.layout.row_bytes : 0), row, count);
    }
  }

  // The packed sum of z z^T over this lane's context, without the last entry unless `Last`. Blocks of 32 rows are added
  // pairwise: those that wait for their pair do so in `waiting`.
  template <bool Last, class Width, class Cells>
  MEMFORMER_DEVICE void sum_context(Width width, T* sums, Cells waiting) {
    const int entries = core::packed_size(width) - (Last ? 0 : 1);
    int blocks = 0;
#pragma unroll 1
    for (int first = 0; first < call.context; first += core::gram_block) {
      const int last = call.context - first < core::gram_block ? call.context : first + core::gram_block;
      MEMFORMER_UNROLL
      for (int k = 0; k < entries; ++k) sums[k] = T(0);
      each_chunk(first, last, [&](const char* rows, int row, int count) {
        const int mine = labelled - row < count ? labelled - row : count;
        with_storage<T>(call.z.storage, [&](auto number) {
#pragma unroll(sizeof(typename decltype(number)::Bits) == 2 ? 1 : 4)
          for (int i = 0; i < mine; ++i) {
            T values[Width::limit];
            read_row(number, rows + i * call.layout.row_bytes, width, values);
            core::add_gram_row<Last>(values, width, sums);
          }
        });
      });
      int level = 0;
#pragma unroll 1
      for (int carry = blocks; carry & 1; carry >>= 1, ++level) add_waiting(waiting, level, entries, sums);
      ++blocks;
      if (last < call.context) {
        MEMFORMER_UNROLL
        for (int k = 0; k < entries; ++k) waiting[level * entries + k] = sums[k];
      } else {
#pragma unroll 1
        for (int carry = blocks >> (level + 1), place = level + 1; carry; carry >>= 1, ++place) {
          if (carry & 1) add_waiting(waiting, place, entries, sums);
        }
      }
    }
  }

  template <class Cells>
  static MEMFORMER_DEVICE void add_waiting(Cells waiting, int level, int entries, T* sums) {
    MEMFORMER_UNROLL
    for (int k = 0; k < entries; ++k) sums[k] = waiting[level * entries + k] + sums[k];
  }
};

}  // namespace memformer::cuda
