// Products of the columns of two matrices, sum_k left_k right_k^T: Gram matrices over tokens, gradients over tasks.
//
// A tile of the result stays in registers while the sum runs; the sum is that of blocks of 32, pairwise. For every
// vector that is loaded there are tile_height multiply-adds of vectors, and two vectors for every number that is
// broadcast.

#pragma once

#include "cpu/wide/one_task.h"

namespace memformer::cpu::MEMFORMER_ISA {

template <class T, int Vectors>
MEMFORMER_INLINE void product_tile(const T* left, int64_t left_step, const T* right, int64_t right_step, int count,
                                   Lanes<T> (&sums)[tile_height * Vectors]) {
  using S = Lanes<T>;
  MEMFORMER_UNROLL_COLUMNS
  for (int i = 0; i < tile_height * Vectors; ++i) sums[i] = S(T(0));
  for (int k = 0; k < count; ++k) {
    S row[Vectors];
    MEMFORMER_UNROLL_COLUMNS
    for (int v = 0; v < Vectors; ++v) row[v] = S::load(right + k * right_step + v * S::width);
    MEMFORMER_UNROLL_COLUMNS
    for (int i = 0; i < tile_height; ++i) {
      const S factor(left[k * left_step + i]);
      MEMFORMER_UNROLL_COLUMNS
      for (int v = 0; v < Vectors; ++v) sums[i * Vectors + v] += factor * row[v];
    }
  }
}

template <class T, int Vectors>
inline void column_product_tile(const T* left, int64_t left_step, const T* right, int64_t right_step, int count,
                                bool adding, T* to, int64_t to_step) {
  using S = Lanes<T>;
  constexpr int block = core::gram_block;
  S sums[tile_height * Vectors];
  if (count <= block) {
    product_tile<T, Vectors>(left, left_step, right, right_step, count, sums);
  } else {
    PairwiseBlocks<S, tile_height * Vectors> total;
    for (int k = 0; k < count; k += block) {
      product_tile<T, Vectors>(left + k * left_step, left_step, right + k * right_step, right_step,
                               std::min(block, count - k), sums);
      total.add(sums);
    }
    total.total(sums);
  }
  MEMFORMER_UNROLL_COLUMNS
  for (int i = 0; i < tile_height; ++i) {
    MEMFORMER_UNROLL_COLUMNS
    for (int v = 0; v < Vectors; ++v) {
      T* const place = to + i * to_step + v * S::width;
      const S sum = sums[i * Vectors + v];
      (adding ? S::load(place) + sum : sum).store(place);
    }
  }
}

// Rows [0, tile_height) of sum_k left_k right_k^T over `count` rows of both, `columns` of them, whole vectors: written
// to `to`, or added.
template <class T>
inline void column_products(const T* left, int64_t left_step, const T* right, int64_t right_step, int count,
                            int columns, bool adding, T* to, int64_t to_step) {
  constexpr int width = Lanes<T>::width;
  int column = 0;
  for (; column + 2 * width <= columns; column += 2 * width) {
    column_product_tile<T, 2>(left, left_step, right + column, right_step, count, adding, to + column, to_step);
  }
  for (; column < columns; column += width) {
    column_product_tile<T, 1>(left, left_step, right + column, right_step, count, adding, to + column, to_step);
  }
}

// Columns of the rows [row, row + tile_height) of a symmetric matrix that are worked out: whole vectors up to the
// diagonal.
template <class T>
constexpr int columns_to_diagonal(int row) {
  return (row + tile_height + Lanes<T>::width - 1) / Lanes<T>::width * Lanes<T>::width;
}

// The lower triangle of a symmetric matrix, made of tiles as above, in the upper one too; `size` a whole number of
// rows.
template <class T>
inline void mirror(T* matrix, int64_t step, int size) {
  constexpr int width = Lanes<T>::width;
  for (int row = width; row < size; row += width) transpose(matrix + row * step, step, width, row, matrix + row, step);
}

}  // namespace memformer::cpu::MEMFORMER_ISA
