// Products of the small matrices of one task: views of where a matrix lies, and one product that serves them all.
//
// A view gives entries by (row, column); a target takes them by put(row, column, value). One row of a product is summed
// in registers, a few columns at a time, and then put. Nothing here owns memory.

#pragma once

#include "core/extent.h"
#include "core/scalar.h"

// Two kinds of loops. Those over the columns in registers and the products they add up have compile-time bounds, and
// become straight code everywhere. Those over rows become straight code only where a GPU thread keeps its matrices in
// registers, so that every index must be a constant; on a CPU matrices lie in its first cache, and straight code would
// only be long.
#if defined(__CUDACC__)
#define MEMFORMER_UNROLL_COLUMNS _Pragma("unroll")
#define MEMFORMER_UNROLL_ROWS _Pragma("unroll")
#define MEMFORMER_ONCE MEMFORMER_INLINE
#elif defined(__clang__)
#define MEMFORMER_UNROLL_COLUMNS _Pragma("clang loop unroll(full)")
#define MEMFORMER_UNROLL_ROWS _Pragma("clang loop unroll(disable)")
#define MEMFORMER_ONCE __attribute__((noinline))
#else
#define MEMFORMER_UNROLL_COLUMNS _Pragma("GCC unroll 32")
#define MEMFORMER_UNROLL_ROWS _Pragma("GCC unroll 1")
#define MEMFORMER_ONCE __attribute__((noinline))
#endif

namespace memformer::core {

template <class Count>
inline constexpr bool is_fixed = false;
template <int Size>
inline constexpr bool is_fixed<Fixed<Size>> = true;

// A matrix in memory, row by row; as a target it is overwritten.
template <class S, int Stride>
struct Matrix {
  Cells<S, Stride> cells;
  int width;
  MEMFORMER_INLINE S& operator()(int row, int column) const { return cells[row * width + column]; }
  MEMFORMER_INLINE void put(int row, int column, S value) const { (*this)(row, column) = value; }
};
template <class S, int Stride>
Matrix(Cells<S, Stride>, int) -> Matrix<S, Stride>;

// Parameters, the same for every task, row by row.
template <class S>
struct Parameter {
  const ValueOf<S>* data;
  int width;
  MEMFORMER_INLINE S operator()(int row, int column) const { return S(data[row * width + column]); }
};

template <class View>
struct Transposed {
  View view;
  MEMFORMER_INLINE auto operator()(int row, int column) const { return view(column, row); }
};
template <class View>
Transposed(View) -> Transposed<View>;

// A symmetric matrix of which the packed lower triangle is kept.
template <class S, int Stride>
struct Symmetric {
  Cells<S, Stride> cells;
  MEMFORMER_INLINE S& operator()(int row, int column) const { return cells[packed(row, column)]; }
};
template <class S, int Stride>
Symmetric(Cells<S, Stride>) -> Symmetric<S, Stride>;

// A target that adds to what is there.
template <class View>
struct Adding {
  View view;
  template <class S>
  MEMFORMER_INLINE void put(int row, int column, S value) const {
    view(row, column) += value;
  }
};
template <class View>
Adding(View) -> Adding<View>;

// A target for the lower triangle of a symmetric matrix that fills in the upper one.
template <class View>
struct Mirrored {
  View view;
  template <class S>
  MEMFORMER_INLINE void put(int row, int column, S value) const {
    view(row, column) = value;
    view(column, row) = value;
  }
};
template <class View>
Mirrored(View) -> Mirrored<View>;

// Columns [first, first + Tile) of one row of left * right.
template <class S, int Tile, class Inner, class Target, class Left, class Right>
MEMFORMER_INLINE void product_tile(int row, int first, Inner inner, Target target, Left left, Right right) {
  S sum[Tile];
  const S factor = left(row, 0);
  MEMFORMER_UNROLL_COLUMNS
  for (int t = 0; t < Tile; ++t) sum[t] = right(0, first + t) * factor;
  const auto step = [&](int k) {
    const S next = left(row, k);
    MEMFORMER_UNROLL_COLUMNS
    for (int t = 0; t < Tile; ++t) sum[t] += right(k, first + t) * next;
  };
  if constexpr (is_fixed<Inner>) {
    MEMFORMER_UNROLL_COLUMNS
    for (int k = 1; k < Inner::limit; ++k) step(k);
  } else {
    const int count = inner;
    for (int k = 1; k < count; ++k) step(k);
  }
  MEMFORMER_UNROLL_COLUMNS
  for (int t = 0; t < Tile; ++t) target.put(row, first + t, sum[t]);
}

// The first `columns` entries of one row of left * right, a few at a time.
template <class S, class Target, class Left, class Right>
MEMFORMER_INLINE void product_row(int row, int inner, int columns, Target target, Left left, Right right) {
  int first = 0;
  for (; first + 4 <= columns; first += 4) product_tile<S, 4>(row, first, inner, target, left, right);
  if (first + 2 <= columns) {
    product_tile<S, 2>(row, first, inner, target, left, right);
    first += 2;
  }
  if (first < columns) product_tile<S, 1>(row, first, inner, target, left, right);
}

// Products of run-time sizes: functions of their own, so that the compiler sees each once.
template <class S, class Target, class Left, class Right>
MEMFORMER_ONCE void product_of_any_size(int rows, int inner, int columns, Target target, Left left, Right right) {
  for (int row = 0; row < rows; ++row) product_row<S>(row, inner, columns, target, left, right);
}

template <class S, class Target, class Left, class Right>
MEMFORMER_ONCE void lower_product_of_any_size(int rows, int inner, Target target, Left left, Right right) {
  for (int row = 0; row < rows; ++row) product_row<S>(row, inner, row + 1, target, left, right);
}

// left (rows x inner) times right (inner x columns); inner >= 1.
template <class S, class Rows, class Inner, class Columns, class Target, class Left, class Right>
MEMFORMER_INLINE void product(Rows rows, Inner inner, Columns columns, Target target, Left left, Right right) {
  if constexpr (is_fixed<Columns>) {
    const int count = rows;
    MEMFORMER_UNROLL_ROWS
    for (int row = 0; row < count; ++row) product_tile<S, Columns::limit>(row, 0, inner, target, left, right);
  } else {
    product_of_any_size<S>(rows, inner, columns, target, left, right);
  }
}

// The lower triangle (column <= row) of left * right, for rows [Row, rows).
template <class S, int Row = 0, class Rows, class Inner, class Target, class Left, class Right>
MEMFORMER_INLINE void lower_product(Rows rows, Inner inner, Target target, Left left, Right right) {
  if constexpr (is_fixed<Rows>) {
    if constexpr (Row < Rows::limit) {
      product_tile<S, Row + 1>(Row, 0, inner, target, left, right);
      lower_product<S, Row + 1>(rows, inner, target, left, right);
    }
  } else {
    lower_product_of_any_size<S>(rows, inner, target, left, right);
  }
}

}  // namespace memformer::core
