// Products of matrices of a task by a team of lanes (team.cuh).
//
// A matrix is a place in memory and two steps: a step of a product is 2 Tile reads, as many additions to addresses and
// Tile^2 multiply-adds. Kernels of large tiles hold that code once and call it; with small ones, calls would cost more
// than the products, and spill. What is packed, or goes to a target of another kind, has code of its own.

#pragma once

#include "core/attention.h"
#include "core/layer.h"
#include "cuda/machine/execution.cuh"

namespace memformer::cuda {

using core::Adding;
using core::Cells;

// A width of at most Tile * Grid whose matrices belong to a team.
template <class Block, int Tile, int Grid>
struct Spread {
  static constexpr int limit = Tile * Grid;
  static constexpr int tile = Tile;
  static constexpr int grid = Grid;
  static constexpr int members = Grid * Grid;
  static constexpr int tasks = warp_threads / members;

  Block block;
  int size;

  MEMFORMER_INLINE operator int() const { return size; }
  MEMFORMER_DEVICE int task() const { return block.lane() % tasks; }
  MEMFORMER_DEVICE int member() const { return block.lane() / tasks; }
  MEMFORMER_DEVICE int first_row() const { return member() / Grid * Tile; }
  MEMFORMER_DEVICE int first_column() const { return member() % Grid * Tile; }
  MEMFORMER_DEVICE void sync() const { block.sync_warp(); }
};

// Entry (row, column) is data[row * row_step + column * column_step].
template <class S>
struct Strided {
  S* data;
  int row_step;
  int column_step;
};

template <class S, int Stride>
MEMFORMER_DEVICE Strided<const S> strided(const core::Matrix<S, Stride>& view) {
  return {view.cells.data, view.width * Stride, Stride};
}
template <class S>
MEMFORMER_DEVICE Strided<const S> strided(const core::Parameter<S>& view) {
  return {view.data, view.width, 1};
}
template <class View>
MEMFORMER_DEVICE auto strided(const core::Transposed<View>& view) {
  const auto given = strided(view.view);
  return decltype(given){given.data, given.column_step, given.row_step};
}

template <class View>
constexpr bool is_strided = false;
template <class S, int Stride>
constexpr bool is_strided<core::Matrix<S, Stride>> = true;
template <class S>
constexpr bool is_strided<core::Parameter<S>> = true;
template <class View>
constexpr bool is_strided<core::Transposed<View>> = is_strided<View>;

// Whether a view reads cells, which lie in shared memory where the block says so.
template <class View>
constexpr bool reads_cells = true;
template <class S>
constexpr bool reads_cells<core::Parameter<S>> = false;
template <class View>
constexpr bool reads_cells<core::Transposed<View>> = reads_cells<View>;

// A block whose teams have all their cells in shared memory (InShared), and may read them with its shorter
// instructions, or wherever they fit.
template <class Block, bool InShared>
struct CellsOf : Block {};
template <class Block>
constexpr bool cells_in_shared = false;
template <class Block>
constexpr bool cells_in_shared<CellsOf<Block, true>> = true;

MEMFORMER_INLINE int smaller(int a, int b) { return a < b ? a : b; }

// sum = the tile of left * right that starts at (row, column); what lies outside of rows x columns repeats the last
// ones.
template <int Tile, class S, class Left, class Right>
MEMFORMER_DEVICE void sum_tile(S (&sum)[Tile][Tile], int row, int rows, int column, int columns, int inner,
                               const Left& left, const Right& right) {
  int row_of[Tile], column_of[Tile];
  MEMFORMER_UNROLL
  for (int t = 0; t < Tile; ++t) {
    row_of[t] = smaller(row + t, rows - 1);
    column_of[t] = smaller(column + t, columns - 1);
  }
  MEMFORMER_UNROLL
  for (int i = 0; i < Tile; ++i) {
    MEMFORMER_UNROLL
    for (int c = 0; c < Tile; ++c) sum[i][c] = S(0);
  }
#pragma unroll(sizeof(S) == 8 ? 1 : 2)
  for (int k = 0; k < inner; ++k) {
    S a[Tile], b[Tile];
    MEMFORMER_UNROLL
    for (int t = 0; t < Tile; ++t) {
      a[t] = left(row_of[t], k);
      b[t] = right(k, column_of[t]);
    }
    MEMFORMER_UNROLL
    for (int i = 0; i < Tile; ++i) {
      MEMFORMER_UNROLL
      for (int c = 0; c < Tile; ++c) sum[i][c] += a[i] * b[c];
    }
  }
}

// Adds the Count numbers of every lane over a warp's tasks, each lane ending with Count / tasks of the sums: lanes
// trade halves of what they hold. Returns the index of the first.
template <int Count, int Mask, class Block, class S>
MEMFORMER_DEVICE int scatter_sums(const Block& block, int task, S* values) {
  if constexpr (Mask == 0) {
    return 0;
  } else {
    constexpr int half = Count / 2;
    const bool upper = task & Mask;
    MEMFORMER_UNROLL
    for (int k = 0; k < half; ++k) {
      const S send = upper ? values[k] : values[half + k];
      const S keep = upper ? values[half + k] : values[k];
      values[k] = keep + block.shuffle_xor(send, Mask);
    }
    return (upper ? half : 0) + scatter_sums<half, Mask / 2>(block, task, values);
  }
}

// Gives the entries of a tile, added over tasks, to the D x D sums of a parameter's gradient.
template <class S, class Block, int Tile, int Grid>
MEMFORMER_DEVICE void put_sums(const Spread<Block, Tile, Grid>& spread, const S (&sum)[Tile][Tile], S* to) {
  constexpr int tasks = Spread<Block, Tile, Grid>::tasks;
  constexpr int count = (Tile * Tile + tasks - 1) / tasks * tasks;
  S values[count];
  MEMFORMER_UNROLL
  for (int k = 0; k < count; ++k) values[k] = k < Tile * Tile ? sum[k / Tile % Tile][k % Tile] : S(0);
  const int first = scatter_sums<count, tasks / 2>(spread.block, spread.task(), values);
  MEMFORMER_UNROLL
  for (int k = 0; k < count / tasks; ++k) {
    const int row = spread.first_row() + (first + k) / Tile, column = spread.first_column() + (first + k) % Tile;
    if (first + k < Tile * Tile && row < spread.size && column < spread.size)
      to[row * spread.size + column] += values[k];
  }
}

template <class S, class Block, int Tile, int Grid, class Target>
MEMFORMER_DEVICE void put_tile(const Spread<Block, Tile, Grid>& spread, const S (&sum)[Tile][Tile], int row, int rows,
                               const Target& target) {
  MEMFORMER_UNROLL
  for (int i = 0; i < Tile; ++i) {
    MEMFORMER_UNROLL
    for (int c = 0; c < Tile; ++c) {
      const int column = spread.first_column() + c;
      if (row + i < rows && column < spread.size) target.put(row + i, column, sum[i][c]);
    }
  }
}

template <class S, class Block, int Tile, int Grid, class Target, class Left, class Right>
MEMFORMER_DEVICE void spread_product_of_any(const Spread<Block, Tile, Grid>& spread, int rows, int inner,
                                            const Target& target, const Left& left, const Right& right) {
  int row = spread.first_row();
  do {
    S sum[Tile][Tile];
    sum_tile(sum, row, rows, spread.first_column(), spread.size, inner, left, right);
    put_tile(spread, sum, row, rows, target);
    row += Tile * Grid;
  } while (row < rows);
  spread.sync();
}

// The tile of left * right that starts at (row, column), of rows x columns; what lies outside repeats the last ones.
template <int Tile, class S>
MEMFORMER_DEVICE void sum_strided(S (&sum)[Tile][Tile], int row, int rows, int column, int columns, int inner,
                                  Strided<const S> left, Strided<const S> right) {
  const S* lefts[Tile];
  const S* rights[Tile];
  MEMFORMER_UNROLL
  for (int t = 0; t < Tile; ++t) {
    lefts[t] = left.data + smaller(row + t, rows - 1) * left.row_step;
    rights[t] = right.data + smaller(column + t, columns - 1) * right.column_step;
  }
  MEMFORMER_UNROLL
  for (int i = 0; i < Tile; ++i) {
    MEMFORMER_UNROLL
    for (int c = 0; c < Tile; ++c) sum[i][c] = S(0);
  }
#pragma unroll 1
  for (int k = 0; k < inner; ++k) {
    S a[Tile], b[Tile];
    MEMFORMER_UNROLL
    for (int t = 0; t < Tile; ++t) {
      a[t] = *lefts[t];
      b[t] = *rights[t];
      lefts[t] += left.column_step;
      rights[t] += right.row_step;
    }
    MEMFORMER_UNROLL
    for (int i = 0; i < Tile; ++i) {
      MEMFORMER_UNROLL
      for (int c = 0; c < Tile; ++c) sum[i][c] += a[i] * b[c];
    }
  }
}

// How entries go to their target.
enum class Put {
  over,
  add,
  mirror  // the lower triangle, to both
};

template <bool LeftShared, bool RightShared, bool TargetShared, class S, class Block, int Tile, int Grid>
MEMFORMER_DEVICE void strided_product(Spread<Block, Tile, Grid> spread, int rows, int inner, Strided<S> target, Put put,
                                      Strided<const S> left, Strided<const S> right) {
  if constexpr (LeftShared) left.data = spread.block.in_shared(left.data);
  if constexpr (RightShared) right.data = spread.block.in_shared(right.data);
  if constexpr (TargetShared) target.data = spread.block.in_shared(target.data);
  int row = spread.first_row();
  do {
    S sum[Tile][Tile];
    sum_strided(sum, row, rows, spread.first_column(), spread.size, inner, left, right);
    MEMFORMER_UNROLL
    for (int i = 0; i < Tile; ++i) {
      MEMFORMER_UNROLL
      for (int c = 0; c < Tile; ++c) {
        const int r = row + i, column = spread.first_column() + c;
        if (r >= rows || column >= spread.size) continue;
        S* const to = target.data + r * target.row_step + column * target.column_step;
        if (put == Put::add) {
          *to += sum[i][c];
        } else if (put == Put::over) {
          *to = sum[i][c];
        } else if (column <= r) {
          *to = sum[i][c];
          target.data[column * target.row_step + r * target.column_step] = sum[i][c];
        }
      }
    }
    row += Tile * Grid;
  } while (row < rows);
  spread.sync();
}

template <bool LeftShared, bool RightShared, bool TargetShared, class S, class Block, int Tile, int Grid>
MEMFORMER_CALL void called_product(Spread<Block, Tile, Grid> spread, int rows, int inner, Strided<S> target, Put put,
                                   Strided<const S> left, Strided<const S> right) {
  strided_product<LeftShared, RightShared, TargetShared>(spread, rows, inner, target, put, left, right);
}

// The same, added over tasks to `to` (D x D), which belongs to all of them.
template <bool Shared, class S, class Block, int Tile, int Grid>
MEMFORMER_DEVICE void add_product_sums(Spread<Block, Tile, Grid> spread, int inner, S* to, Strided<const S> left,
                                       Strided<const S> right) {
  if constexpr (Shared) {
    left.data = spread.block.in_shared(left.data);
    right.data = spread.block.in_shared(right.data);
  }
  S sum[Tile][Tile];
  sum_strided(sum, spread.first_row(), spread.size, spread.first_column(), spread.size, inner, left, right);
  put_sums(spread, sum, to);
  spread.sync();
}

template <class S, class Block, int Tile, int Grid, class Left, class Right>
MEMFORMER_DEVICE void put_product(const Spread<Block, Tile, Grid>& spread, int rows, int inner,
                                  const core::Matrix<S, Spread<Block, Tile, Grid>::tasks>& target, Put put,
                                  const Left& left, const Right& right) {
  constexpr bool shared = cells_in_shared<Block>;
  constexpr int stride = Spread<Block, Tile, Grid>::tasks;
  constexpr bool shared_left = shared && reads_cells<Left>, shared_right = shared && reads_cells<Right>;
  const Strided<S> to{target.cells.data, target.width * stride, stride};
  if constexpr (Tile > 3) {
    called_product<shared_left, shared_right, shared>(spread, rows, inner, to, put, strided(left), strided(right));
  } else {
    strided_product<shared_left, shared_right, shared>(spread, rows, inner, to, put, strided(left), strided(right));
  }
}

// Products by the kind of their target.
template <class S, class Block, int Tile, int Grid, class Left, class Right, int Stride>
MEMFORMER_DEVICE void spread_product(const Spread<Block, Tile, Grid>& spread, int rows, int inner,
                                     const core::Matrix<S, Stride>& target, const Left& left, const Right& right) {
  if constexpr (is_strided<Left> && is_strided<Right>) {
    put_product(spread, rows, inner, target, Put::over, left, right);
  } else {
    spread_product_of_any<S>(spread, rows, inner, target, left, right);
  }
}
template <class S, class Block, int Tile, int Grid, class Left, class Right, int Stride>
MEMFORMER_DEVICE void spread_product(const Spread<Block, Tile, Grid>& spread, int rows, int inner,
                                     const Adding<core::Matrix<S, Stride>>& target, const Left& left,
                                     const Right& right) {
  put_product(spread, rows, inner, target.view, Put::add, left, right);
}
template <class S, class Block, int Tile, int Grid, class Left, class Right, int Stride>
MEMFORMER_DEVICE void spread_product(const Spread<Block, Tile, Grid>& spread, int rows, int inner,
                                     const core::Remembering<S, Stride>& target, const Left& left, const Right& right) {
  const auto& view = target.view;
  each_entry(rows, spread, [&](int row, int column, int k) {
    view.cells[k] = target.before[k] * target.beta[row * target.row_step + column];
  });
  put_product(spread, rows, inner, view, Put::add, left, right);
}
template <class S, class Block, int Tile, int Grid, class Left, class Right, class Sink>
MEMFORMER_DEVICE void spread_product(const Spread<Block, Tile, Grid>& spread, int, int inner,
                                     const core::QGrad<Sink>& target, const Left& left, const Right& right) {
  add_product_sums<cells_in_shared<Block>>(spread, inner, target.sink.q_ + target.begin, strided(left), strided(right));
}
template <class S, class Block, int Tile, int Grid, class Left, class Right, class Sink>
MEMFORMER_DEVICE void spread_product(const Spread<Block, Tile, Grid>& spread, int, int inner,
                                     const core::PGrad<Sink>& target, const Left& left, const Right& right) {
  add_product_sums<cells_in_shared<Block>>(spread, inner, target.sink.p_ + target.begin, strided(left), strided(right));
}
template <class S, class Block, int Tile, int Grid, class Target, class Left, class Right>
MEMFORMER_DEVICE void spread_product(const Spread<Block, Tile, Grid>& spread, int rows, int inner, const Target& target,
                                     const Left& left, const Right& right) {
  spread_product_of_any<S>(spread, rows, inner, target, left, right);
}

template <class S, class Block, int Tile, int Grid, class Target, class Left, class Right>
MEMFORMER_DEVICE void product(Spread<Block, Tile, Grid> rows, Spread<Block, Tile, Grid> inner,
                              Spread<Block, Tile, Grid>, Target target, Left left, Right right) {
  spread_product<S>(rows, rows, inner, target, left, right);
}
template <class S, class Block, int Tile, int Grid, class Target, class Left, class Right>
MEMFORMER_DEVICE void product(int rows, Spread<Block, Tile, Grid> inner, Spread<Block, Tile, Grid>, Target target,
                              Left left, Right right) {
  spread_product<S>(inner, rows, inner, target, left, right);
}
template <class S, class Block, int Tile, int Grid, class Target, class Left, class Right>
MEMFORMER_DEVICE void product(Spread<Block, Tile, Grid> rows, int inner, Spread<Block, Tile, Grid>, Target target,
                              Left left, Right right) {
  spread_product<S>(rows, rows, inner, target, left, right);
}

// A target of which only the lower triangle is put.
template <class Target>
struct Lower {
  Target target;
  template <class S>
  MEMFORMER_DEVICE void put(int row, int column, S value) const {
    if (column <= row) target.put(row, column, value);
  }
};

template <class Target>
constexpr bool is_mirrored = false;
template <class S, int Stride>
constexpr bool is_mirrored<core::Mirrored<core::Matrix<S, Stride>>> = true;

template <class S, class Block, int Tile, int Grid, class Target, class Left, class Right>
MEMFORMER_DEVICE void lower_product(Spread<Block, Tile, Grid> rows, Spread<Block, Tile, Grid> inner, Target target,
                                    Left left, Right right) {
  if constexpr (is_mirrored<Target> && is_strided<Left> && is_strided<Right>) {
    put_product(rows, rows, inner, target.view, Put::mirror, left, right);
    return;
  }
  if (rows.first_column() <= rows.first_row()) {
    S sum[Tile][Tile];
    sum_tile(sum, rows.first_row(), rows, rows.first_column(), rows, inner, left, right);
    put_tile(rows, sum, rows.first_row(), rows, Lower<Target>{target});
  }
  rows.sync();
}

}  // namespace memformer::cuda
