// Products of matrices that lie in a core's own caches, all of one task: a vector holds neighbours of a row of the
// result.
//
// Rows come four or eight at a time and columns in whole vectors, so that every number that is loaded serves several
// products; matrices with fewer are padded with zeros.

#pragma once

#include <algorithm>

#include "core/matrix.h"
#include "cpu/lanes/simd.h"

namespace memformer::cpu::MEMFORMER_ISA {

constexpr int tile_rows = 4;      // what the rows of a product are a multiple of
constexpr int tile_columns = 16;  // what its columns are a multiple of: whole vectors of every instruction set

constexpr int padded_to(int count, int multiple) { return (count + multiple - 1) / multiple * multiple; }

// A step from row to row, at least `count` numbers, for matrices that are read down their columns: an odd number of
// cache lines, so that rows do not crowd into a few places of a first-level cache.
template <class T>
constexpr int odd_lines(int count) {
  constexpr int line = 64 / static_cast<int>(sizeof(T));
  return ((count + line - 1) / line | 1) * line;
}

// A matrix that is read number by number.
template <class T>
struct Left {
  const T* data;
  int64_t row_step;
  int64_t column_step;

  MEMFORMER_INLINE Left from_row(int64_t row) const { return {data + row * row_step, row_step, column_step}; }
  MEMFORMER_INLINE Left from_column(int64_t column) const {
    return {data + column * column_step, row_step, column_step};
  }
};

// A matrix that is read and written row by row.
template <class T>
struct Rows {
  T* data;
  int64_t step;

  MEMFORMER_INLINE Rows at(int64_t row, int64_t column) const { return {data + row * step + column, step}; }
};

template <class T, int Count, int Vectors, bool Adding>
MEMFORMER_INLINE void product_block(Rows<T> to, Left<T> left, Rows<const T> right, int begin, int end) {
  using S = Lanes<T>;
  S sums[Count][Vectors];
  MEMFORMER_UNROLL_COLUMNS
  for (int i = 0; i < Count; ++i) {
    MEMFORMER_UNROLL_COLUMNS
    for (int v = 0; v < Vectors; ++v) sums[i][v] = Adding ? S::load(to.data + i * to.step + v * S::width) : S(T(0));
  }
  for (int k = begin; k < end; ++k) {
    S row[Vectors];
    MEMFORMER_UNROLL_COLUMNS
    for (int v = 0; v < Vectors; ++v) row[v] = S::load(right.data + k * right.step + v * S::width);
    MEMFORMER_UNROLL_COLUMNS
    for (int i = 0; i < Count; ++i) {
      const S factor(left.data[i * left.row_step + k * left.column_step]);
      MEMFORMER_UNROLL_COLUMNS
      for (int v = 0; v < Vectors; ++v) sums[i][v] += factor * row[v];
    }
  }
  MEMFORMER_UNROLL_COLUMNS
  for (int i = 0; i < Count; ++i) {
    MEMFORMER_UNROLL_COLUMNS
    for (int v = 0; v < Vectors; ++v) sums[i][v].store(to.data + i * to.step + v * S::width);
  }
}

// Which part of the sum a row of a product has: all of it, or that up to or from its own place.
enum class Depth { whole, up_to_row, from_row };

template <class T, int Count, int Vectors, bool Adding, class Meanwhile>
inline void product_rows(Rows<T> to, int rows, Left<T> left, Rows<const T> right, int depth, Depth extent,
                         Meanwhile& meanwhile) {
  for (int row = 0; row + Count <= rows; row += Count) {
    meanwhile();
    const int begin = extent == Depth::from_row ? row : 0;
    const int end = extent == Depth::up_to_row && row + Count < depth ? row + Count : depth;
    product_block<T, Count, Vectors, Adding>(to.at(row, 0), left.from_row(row), right, begin, end);
  }
}

// to (rows x columns) = left right, or += ; the sum is over `depth` products. `meanwhile` is called every few rows.
template <class T, bool Adding, class Meanwhile>
inline void product(Rows<T> to, int rows, int columns, Left<T> left, Rows<const T> right, int depth, Depth extent,
                    Meanwhile& meanwhile) {
  constexpr int width = Lanes<T>::width;
  int column = 0;
  if constexpr (MEMFORMER_VECTOR_BYTES == 64) {
    for (; column + 4 * width <= columns; column += 4 * width) {
      product_rows<T, 4, 4, Adding>(to.at(0, column), rows, left, right.at(0, column), depth, extent, meanwhile);
    }
  }
  if (MEMFORMER_VECTOR_BYTES == 64 && extent == Depth::whole && rows % 8 == 0) {
    for (; column + 2 * width <= columns; column += 2 * width) {
      product_rows<T, 8, 2, Adding>(to.at(0, column), rows, left, right.at(0, column), depth, extent, meanwhile);
    }
  }
  for (; column + 2 * width <= columns; column += 2 * width) {
    product_rows<T, 4, 2, Adding>(to.at(0, column), rows, left, right.at(0, column), depth, extent, meanwhile);
  }
  for (; column < columns; column += width) {
    product_rows<T, 4, 1, Adding>(to.at(0, column), rows, left, right.at(0, column), depth, extent, meanwhile);
  }
}

// Rows of the right matrix that are multiplied in one go: two vectors of each stay in a first-level cache.
constexpr int panel_depth = 256;

// to (rows x columns) = left right, or +=, where the sum is long.
template <class T, bool Adding = false>
inline void deep_product(Rows<T> to, int rows, int columns, Left<T> left, Rows<const T> right, int depth) {
  auto nothing = [] {};
  product<T, Adding>(to, rows, columns, left, right, std::min(depth, panel_depth), Depth::whole, nothing);
  for (int k = panel_depth; k < depth; k += panel_depth) {
    product<T, true>(to, rows, columns, left.from_column(k), right.at(k, 0), std::min(depth - k, panel_depth),
                     Depth::whole, nothing);
  }
}

}  // namespace memformer::cpu::MEMFORMER_ISA
