// Matrices of a task worked on by a few lanes of a warp: the products of core/matrix.h and the loops of core/memory.h,
// core/attention.h and core/layer.h for a width that is spread over lanes.
//
// A team is Grid x Grid lanes with one task, and a warp holds 32 / Grid^2 teams. A lane owns one Tile x Tile tile of
// every D x D product, D <= Tile Grid (tiles i, i + Grid, ... of its column where a product has N rows), and entries
// k, k + Grid^2, ... of every loop over entries. Sums over tasks belong to lanes too: no two lanes ever add to the
// same number. Every function ends with a barrier of the warp, so that what one wrote the next may read.
//
// Cells of a warp's tasks lie as [cell][task] in shared memory: lane = member * tasks + task, so that one cell of all
// tasks is contiguous. A product of two D x D matrices reads 2 Tile numbers for Tile^2 multiply-adds.
//
// The core finds these functions by the type of its extents (argument-dependent lookup); its own serve all other types.

#pragma once

#include "cuda/team/team_product.cuh"

namespace memformer::cuda {

template <class Rows, class Block, int Tile, int Grid, class Body>
MEMFORMER_DEVICE void each_entry(Rows rows, Spread<Block, Tile, Grid> width, Body body) {
  constexpr int members = Grid * Grid;
  const int count = rows * width;
  int row = width.member() / width, column = width.member() % width;
#pragma unroll 1
  for (int k = width.member(); k < count; k += members) {
    body(row, column, k);
    for (column += members; column >= width; column -= width) ++row;
  }
  width.sync();
}

template <class S, int Stride, class Rows, class Block, int Tile, int Grid, int SourceStride>
MEMFORMER_DEVICE void add_weighted(Rows rows, Spread<Block, Tile, Grid> width, Cells<S, Stride> base,
                                   Cells<S, Stride> target, const core::Weighted<S, SourceStride>& weighted) {
  each_entry(rows, width, [&](int row, int column, int k) {
    S sum = base.data ? base[k] : S(0);
    if (weighted.coefficient) {
      weighted.template add<1>(row, column, width, &sum);
    } else {
      sum += weighted.source[k];
    }
    target[k] = sum;
  });
}

// Lane k owns coefficient k, k + 32, ... where rows have their own; where they share it, lane c of C = 8 or 16
// columns, and its equals with c + C, c + 2 C, ... a part of the tasks each.
template <class S, int Stride, int GradStride, class Rows, class Block, int Tile, int Grid, class Add>
MEMFORMER_DEVICE void coefficient_grad(Rows rows, Spread<Block, Tile, Grid> width, Cells<S, Stride> source,
                                       Cells<S, GradStride> grad, int begin, int step, Add add) {
  constexpr int tasks = Spread<Block, Tile, Grid>::tasks;
  const int lane = width.block.lane();
  const S* const left = source.data - width.task();
  const S* const right = grad.data - width.task();
  if (step) {
#pragma unroll 1
    for (int k = lane; k < rows * width; k += warp_threads) {
      S sum = S(0);
      MEMFORMER_UNROLL
      for (int t = 0; t < tasks; ++t) sum += left[k * Stride + t] * right[k * GradStride + t];
      add(begin + k, sum);
    }
  } else {
    constexpr int columns = Tile * Grid > 8 ? 16 : 8, parts = warp_threads / columns, share = tasks / parts;
    const int column = lane % columns, first = lane / columns * share;
    S sum = S(0);
    if (column < width) {
#pragma unroll 2
      for (int i = 0; i < rows; ++i) {
        const int k = i * width + column;
        MEMFORMER_UNROLL
        for (int t = first; t < first + share; ++t) sum += left[k * Stride + t] * right[k * GradStride + t];
      }
    }
    for (int mask = columns; mask < warp_threads; mask *= 2) sum += width.block.shuffle_xor(sum, mask);
    if (lane < width) add(begin + column, sum);
  }
  width.sync();
}

template <class Block, int Tile, int Grid, class View>
MEMFORMER_DEVICE void symmetrise(Spread<Block, Tile, Grid> rows, View gram_grad) {
  each_entry(rows, rows, [&](int i, int c, int) {
    if (c > i) return;
    const auto sum = gram_grad(i, c) + gram_grad(c, i);
    gram_grad(i, c) = sum;
    gram_grad(c, i) = sum;
  });
}

// Rows of tokens from `first` on, zero where they are not labelled.
template <class S, int Stride>
struct LabelledRows {
  Cells<S, Stride> tokens;
  int width;
  int first;
  const core::Labelled<S>& labelled;
  MEMFORMER_DEVICE S operator()(int row, int column) const {
    return labelled.select(first + row, tokens[row * width + column]);
  }
};

// The lower tiles of the sum of z_i z_i^T over rows given as a view; tiles above the diagonal are zero.
template <int Tile, class S, class Block, int Grid, class View>
MEMFORMER_DEVICE void gram_tile(const Spread<Block, Tile, Grid>& spread, int count, const View& rows,
                                S (&sum)[Tile][Tile]) {
  const bool wanted = spread.first_column() <= spread.first_row();
  sum_tile(sum, spread.first_row(), spread, spread.first_column(), spread, wanted ? count : 0,
           core::Transposed<View>{rows}, rows);
}

// Blocks are added pairwise, four at a time.
template <class S, class Block, int Tile, int Grid, int Stride, int ScratchStride, class View>
MEMFORMER_DEVICE void mean_gram(core::Shape<false, Spread<Block, Tile, Grid>> shape, const core::Labelled<S>& labelled,
                                Cells<S, Stride> tokens, Cells<S, ScratchStride>, View gram) {
  const auto spread = shape.rows;
  S sum[Tile][Tile], pair[Tile][Tile], block[Tile][Tile];
  const auto add = [](S(&to)[Tile][Tile], const S(&from)[Tile][Tile]) {
    MEMFORMER_UNROLL
    for (int i = 0; i < Tile; ++i) {
      MEMFORMER_UNROLL
      for (int c = 0; c < Tile; ++c) to[i][c] += from[i][c];
    }
  };
  const auto clear = [](S(&to)[Tile][Tile]) {
    MEMFORMER_UNROLL
    for (int i = 0; i < Tile; ++i) {
      MEMFORMER_UNROLL
      for (int c = 0; c < Tile; ++c) to[i][c] = S(0);
    }
  };
  clear(sum);
  clear(pair);
  for (int first = 0, place = 0; first < labelled.rows; first += core::gram_block, ++place) {
    const int left = labelled.rows - first;
    gram_tile(spread, smaller(left, core::gram_block),
              LabelledRows<S, Stride>{tokens.at(first * spread), spread, first, labelled}, block);
    if (place % 4 < 2) {
      add(sum, block);
    } else {
      add(pair, block);
    }
    if (place % 4 == 3 || left <= core::gram_block) {
      add(sum, pair);
      clear(pair);
    }
  }
  MEMFORMER_UNROLL
  for (int i = 0; i < Tile; ++i) {
    MEMFORMER_UNROLL
    for (int c = 0; c < Tile; ++c) sum[i][c] = sum[i][c] * labelled.inverse;
  }
  put_tile(spread, sum, spread.first_row(), spread, Lower<core::Mirrored<View>>{core::Mirrored<View>{gram}});
  spread.sync();
}

}  // namespace memformer::cuda
