// The context Gram matrix sum_i z_i z_i^T of rows (n, D), packed, and its gradient with respect to the rows.
//
// One task per S. Operations: n D (D + 1) / 2 multiply-adds, and n D^2 for the gradient; nothing but the rows is read.

#pragma once

#include "core/extent.h"
#include "core/scalar.h"

namespace memformer::core {

// Rows summed one after the other; longer contexts add up such sums pairwise, so that rounding errors do not grow with
// n.
constexpr int gram_block = 32;

// Accumulators that fit in registers beside the row they are made of.
constexpr int gram_accumulators = 12;

// The last row of the matrix's rows first, first + 1, ... that fit in `gram_accumulators` registers together.
MEMFORMER_INLINE constexpr int last_gram_row(int first, int end) {
  int row = first;
  int used = first + 1;
  while (row + 1 < end && used + row + 2 <= gram_accumulators) {
    ++row;
    used += row + 1;
  }
  return row + 1;
}

// Rows First, ..., Last - 1 of the packed matrix sum_i l_i r_i^T, all in registers; then the rows after them.
template <class S, int Width, int First, int Stride>
MEMFORMER_INLINE void gram_rows(Cells<const S, Stride> left, Cells<const S, Stride> right, int count, S* matrix) {
  if constexpr (First < Width) {
    constexpr int last = last_gram_row(First, Width);
    constexpr int begin = packed_size(First);
    S sums[packed_size(last) - begin];
    MEMFORMER_UNROLL
    for (int k = 0; k < packed_size(last) - begin; ++k) sums[k] = S(0);
    for (int i = 0; i < count; ++i) {
      MEMFORMER_UNROLL
      for (int r = First; r < last; ++r) {
        MEMFORMER_UNROLL
        for (int c = 0; c <= r; ++c) sums[packed_size(r) + c - begin] += left[i * Width + r] * right[i * Width + c];
      }
    }
    MEMFORMER_UNROLL
    for (int k = 0; k < packed_size(last) - begin; ++k) matrix[begin + k] = sums[k];
    gram_rows<S, Width, last, Stride>(left, right, count, matrix);
  }
}

// Adds the products of one row, all but the last (that of the response with itself, which no first-order method reads)
// or all.
template <bool Last, class S, class Width>
MEMFORMER_INLINE void add_gram_row(const S* row, Width width, S* matrix) {
  const int count = width;
  MEMFORMER_UNROLL
  for (int r = 0; r < count; ++r) {
    MEMFORMER_UNROLL
    for (int c = 0; c <= r; ++c) {
      if (Last || c + 1 < count) matrix[packed(r, c)] += row[r] * row[c];
    }
  }
}

// The lower half of sum_i l_i r_i^T, packed, of at most `gram_block` rows of a compile-time width.
template <class S, int Width, int Stride>
MEMFORMER_INLINE void block_products(Cells<const S, Stride> left, Cells<const S, Stride> right, int count, Fixed<Width>,
                                     S* matrix) {
  gram_rows<S, Width, 0, Stride>(left, right, count, matrix);
}

// The same for a run-time width: four columns of a row at a time.
template <class S, int Limit, int Stride>
MEMFORMER_INLINE void block_products(Cells<const S, Stride> left, Cells<const S, Stride> right, int count,
                                     UpTo<Limit> width, S* matrix) {
  for (int r = 0; r < width; ++r) {
    for (int c = 0; c <= r; c += 4) {
      S sums[4] = {S(0), S(0), S(0), S(0)};
      if (c + 3 <= r) {
        for (int i = 0; i < count; ++i) {
          const S factor = left[i * width + r];
          MEMFORMER_UNROLL
          for (int k = 0; k < 4; ++k) sums[k] += factor * right[i * width + c + k];
        }
      } else {
        for (int i = 0; i < count; ++i) {
          const S factor = left[i * width + r];
          for (int k = 0; k <= r - c; ++k) sums[k] += factor * right[i * width + c + k];
        }
      }
      for (int k = 0; k < 4 && c + k <= r; ++k) matrix[packed(r, c + k)] = sums[k];
    }
  }
}

// The packed Gram matrix of at most `gram_block` rows.
template <class S, class Width, int Stride>
MEMFORMER_INLINE void block_gram(Cells<const S, Stride> rows, int count, Width width, S* matrix) {
  block_products(rows, rows, count, width, matrix);
}

// Gradient of the rows, added to `grads`: (dG + dG^T) z_i. `symmetric` holds dG + dG^T, packed.
template <class S, class Extent, int Stride>
MEMFORMER_INLINE void add_gram_grad(const S* symmetric, Cells<const S, Stride> row, Extent extent,
                                    Cells<S, Stride> grad) {
  const int width = extent;
  S values[Extent::limit];
  MEMFORMER_UNROLL
  for (int c = 0; c < width; ++c) values[c] = row[c];
  MEMFORMER_UNROLL
  for (int r = 0; r < width; ++r) {
    S sum = grad[r];
    MEMFORMER_UNROLL
    for (int c = 0; c < width; ++c) sum += symmetric[packed(r, c)] * values[c];
    grad[r] = sum;
  }
}

}  // namespace memformer::core
