// The Gram matrix of a context of any length, by a team: blocks of at most 32 rows, added pairwise.

#pragma once

#include "cuda/team/team_io.cuh"

namespace memformer::cuda {

MEMFORMER_INLINE int64_t packed_cells(int width) { return core::packed_size(width); }

// Sums that wait for their pair at one time.
MEMFORMER_INLINE int64_t waiting_levels(int rows) {
  int levels = 0;
  for (int blocks = (rows + core::gram_block - 1) / core::gram_block; blocks > 1; blocks = (blocks + 1) / 2) ++levels;
  return levels;
}

// Calls body(value of the tile, cell) for the entries of a lane's tile that are in the lower triangle.
template <class S, class Block, int Tile, int Grid, class Body>
MEMFORMER_DEVICE void each_lower(const Spread<Block, Tile, Grid>& team, S (&tile)[Tile][Tile], Body body) {
  MEMFORMER_UNROLL
  for (int i = 0; i < Tile; ++i) {
    MEMFORMER_UNROLL
    for (int c = 0; c < Tile; ++c) {
      const int row = team.first_row() + i, column = team.first_column() + c;
      if (row < team.size && column <= row) body(tile[i][c], core::packed(row, column));
    }
  }
}

// matrix (packed) = the sum over labelled rows [begin, end) of z_i z_i^T, times labelled.inverse. `space` takes a
// block of rows and behind it the sums that wait: those of 1, 2, 4, ... blocks in their own places, as the binary
// digits of the blocks so far.
template <class T, class Block, int Tile, int Grid>
MEMFORMER_DEVICE void sum_context(const Spread<Block, Tile, Grid>& team, const Array& z, Task task,
                                  const core::Labelled<T>& labelled, int begin, int end,
                                  Cells<T, Spread<Block, Tile, Grid>::tasks> space,
                                  Cells<T, Spread<Block, Tile, Grid>::tasks> matrix) {
  constexpr int tasks = Spread<Block, Tile, Grid>::tasks;
  using TaskCells = Cells<T, tasks>;
  const int width = team, entries = core::packed_size(width);
  const TaskCells waiting = space.at(smaller(end - begin, core::gram_block) * width);
  const auto waiting_at = [&](int level) { return waiting.at(level * entries); };
  T sum[Tile][Tile];
  int blocks = 0;
  for (int first = begin; first < end; first += core::gram_block) {
    const int count = smaller(end - first, core::gram_block);
    load_rows(team, z, task, first, count, width, space);
    gram_tile(team, count, LabelledRows<T, tasks>{space, width, first, labelled}, sum);
    int level = 0;
    for (int carry = blocks; carry & 1; carry >>= 1, ++level) {
      each_lower(team, sum, [&](T& value, int k) { value += waiting_at(level)[k]; });
    }
    ++blocks;
    if (first + count < end) {
      each_lower(team, sum, [&](T& value, int k) { waiting_at(level)[k] = value; });
    } else {
      for (int carry = blocks >> (level + 1), place = level + 1; carry; carry >>= 1, ++place) {
        if (carry & 1) each_lower(team, sum, [&](T& value, int k) { value += waiting_at(place)[k]; });
      }
    }
    team.sync();
  }
  each_lower(team, sum, [&](T& value, int k) { matrix[k] = value * labelled.inverse; });
  team.sync();
}

}  // namespace memformer::cuda
