// Vectors and matrices of one task, whose neighbours fill a SIMD vector: sums of rows, products with rows, transposes.
//
// Rows start at any address and hold whole vectors: what is past the last number is zero, in every factor, and stays
// zero.

#pragma once

#include <algorithm>
#include <cstring>
#include <type_traits>

#include "core/gram.h"
#include "cpu/lanes/pairwise.h"
#include "cpu/tasks/parts.h"

namespace memformer::cpu::MEMFORMER_ISA {

// Rows of a register tile, and what the width of rows is a multiple of: whole vectors and whole tiles.
constexpr int tile_height = MEMFORMER_VECTOR_BYTES == 64 ? 8 : 4;
template <class T>
constexpr int row_multiple = Lanes<T>::width > tile_height ? Lanes<T>::width : tile_height;
template <class T>
constexpr int whole_rows(int count) {
  return (count + row_multiple<T> - 1) / row_multiple<T> * row_multiple<T>;
}

// Chosen lanes and, behind them, others: from a place on, a mask that chooses as many as are left before the middle.
template <class T>
struct ChosenLanes {
  static constexpr int width = Lanes<T>::width;
  std::conditional_t<sizeof(T) == 4, int32_t, int64_t> bits[2 * width];
  constexpr ChosenLanes() : bits() {
    for (int lane = 0; lane < width; ++lane) bits[lane] = -1;
  }
};
template <class T>
constexpr ChosenLanes<T> chosen_lanes{};

// The first `count` lanes of a vector (all of them where there are fewer), and zeros: by selection.
template <class T>
MEMFORMER_INLINE Lanes<T> first_lanes(int64_t count, Lanes<T> vector) {
  using Mask = typename Lanes<T>::Mask;
  if (count >= Lanes<T>::width) return vector;
  Mask mask;
  std::memcpy(&mask, chosen_lanes<T>.bits + Lanes<T>::width - count, sizeof mask);
  return Lanes<T>((typename Lanes<T>::Vector)((Mask)vector.v & mask));
}

template <class T>
MEMFORMER_INLINE void clear(T* to, int64_t count) {
  std::fill(to, to + count, T(0));
}

// Several chains of additions at a time hide the latency of each.
template <class T, int Vectors, int Chains>
MEMFORMER_INLINE void add_weighted_block(const T* rows, int64_t step, int count, const T* weights, int64_t weight_step,
                                         Lanes<T> (&sums)[Vectors]) {
  using S = Lanes<T>;
  S chains[Chains][Vectors];
  MEMFORMER_UNROLL_COLUMNS
  for (int k = 0; k < Chains; ++k) {
    MEMFORMER_UNROLL_COLUMNS
    for (int v = 0; v < Vectors; ++v) chains[k][v] = S(T(0));
  }
  int row = 0;
  for (; row + Chains <= count; row += Chains) {
    MEMFORMER_UNROLL_COLUMNS
    for (int k = 0; k < Chains; ++k) {
      const S weight(weights[(row + k) * weight_step]);
      MEMFORMER_UNROLL_COLUMNS
      for (int v = 0; v < Vectors; ++v) chains[k][v] += weight * S::load(rows + (row + k) * step + v * S::width);
    }
  }
  for (; row < count; ++row) {
    const S weight(weights[row * weight_step]);
    MEMFORMER_UNROLL_COLUMNS
    for (int v = 0; v < Vectors; ++v) chains[0][v] += weight * S::load(rows + row * step + v * S::width);
  }
  MEMFORMER_UNROLL_COLUMNS
  for (int half = Chains / 2; half > 0; half /= 2) {
    MEMFORMER_UNROLL_COLUMNS
    for (int k = 0; k < half; ++k) {
      MEMFORMER_UNROLL_COLUMNS
      for (int v = 0; v < Vectors; ++v) chains[k][v] += chains[k + half][v];
    }
  }
  MEMFORMER_UNROLL_COLUMNS
  for (int v = 0; v < Vectors; ++v) sums[v] = chains[0][v];
}

template <class T, int Vectors, int Chains>
inline void add_weighted_columns(const T* rows, int64_t step, int count, const T* weights, int64_t weight_step,
                                 const T* base, T* to) {
  using S = Lanes<T>;
  constexpr int block = core::gram_block;
  S sums[Vectors];
  if (count <= 2 * block) {
    add_weighted_block<T, Vectors, Chains>(rows, step, count, weights, weight_step, sums);
  } else {
    PairwiseBlocks<S, Vectors> total;
    for (int row = 0; row < count; row += block) {
      add_weighted_block<T, Vectors, Chains>(rows + row * step, step, std::min(block, count - row),
                                             weights + row * weight_step, weight_step, sums);
      total.add(sums);
    }
    total.total(sums);
  }
  MEMFORMER_UNROLL_COLUMNS
  for (int v = 0; v < Vectors; ++v) {
    const S sum = base ? S::load(base + v * S::width) + sums[v] : sums[v];
    sum.store(to + v * S::width);
  }
}

// to = base + sum_k weights_k rows_k, over `columns` numbers, whole vectors; base may be null (0), or `to`. The sum
// over rows is that of blocks of 32 (of one block up to 64), pairwise. columns x rows multiply-adds, as many loads as
// vectors of them.
template <class T>
inline void add_weighted_rows(const T* rows, int64_t step, int count, const T* weights, int64_t weight_step,
                              int columns, const T* base, T* to) {
  constexpr int width = Lanes<T>::width;
  int column = 0;
  const auto base_at = [&](int k) { return base ? base + k : nullptr; };
  for (; column + 4 * width <= columns; column += 4 * width) {
    add_weighted_columns<T, 4, 2>(rows + column, step, count, weights, weight_step, base_at(column), to + column);
  }
  for (; column + 2 * width <= columns; column += 2 * width) {
    add_weighted_columns<T, 2, 4>(rows + column, step, count, weights, weight_step, base_at(column), to + column);
  }
  for (; column < columns; column += width) {
    add_weighted_columns<T, 1, 4>(rows + column, step, count, weights, weight_step, base_at(column), to + column);
  }
}

// sums[k] = the lanes' sums of row_k * vector over the first `count` numbers, selected: what is past them may be
// anything.
template <class T, int Rows, int Chains>
MEMFORMER_INLINE void row_products(const T* rows, int64_t step, const T* vector, int64_t count,
                                   Lanes<T> (&sums)[Rows]) {
  using S = Lanes<T>;
  S chains[Chains][Rows];
  MEMFORMER_UNROLL_COLUMNS
  for (int k = 0; k < Chains; ++k) {
    MEMFORMER_UNROLL_COLUMNS
    for (int r = 0; r < Rows; ++r) chains[k][r] = S(T(0));
  }
  int64_t at = 0;
  for (; at + Chains * S::width <= count; at += Chains * S::width) {
    MEMFORMER_UNROLL_COLUMNS
    for (int k = 0; k < Chains; ++k) {
      const S factor = S::load(vector + at + k * S::width);
      MEMFORMER_UNROLL_COLUMNS
      for (int r = 0; r < Rows; ++r) chains[k][r] += factor * S::load(rows + r * step + at + k * S::width);
    }
  }
  for (; at < count; at += S::width) {
    const S factor = S::load(vector + at);
    MEMFORMER_UNROLL_COLUMNS
    for (int r = 0; r < Rows; ++r) chains[0][r] += first_lanes<T>(count - at, factor * S::load(rows + r * step + at));
  }
  MEMFORMER_UNROLL_COLUMNS
  for (int r = 0; r < Rows; ++r) {
    sums[r] = chains[0][r];
    MEMFORMER_UNROLL_COLUMNS
    for (int k = 1; k < Chains; ++k) sums[r] += chains[k][r];
  }
}

// The sum of a vector's lanes, pairwise.
template <class T>
MEMFORMER_INLINE T sum_of_lanes(Lanes<T> vector) {
  T lanes[Lanes<T>::width];
  vector.store(lanes);
  MEMFORMER_UNROLL_COLUMNS
  for (int half = Lanes<T>::width / 2; half > 0; half /= 2) {
    for (int lane = 0; lane < half; ++lane) lanes[lane] += lanes[lane + half];
  }
  return lanes[0];
}

// Numbers of a product of vectors that are added up before the next block starts a sum of its own.
template <class T>
constexpr int64_t product_block_length = 64 * Lanes<T>::width;

// One number: left . right over the first `count` numbers.
template <class T>
inline T dot(const T* left, const T* right, int64_t count) {
  using S = Lanes<T>;
  S sums[1];
  if (count <= product_block_length<T>) {
    row_products<T, 1, 4>(left, 0, right, count, sums);
    return sum_of_lanes(sums[0]);
  }
  PairwiseBlocks<S, 1> total;
  for (int64_t at = 0; at < count; at += product_block_length<T>) {
    row_products<T, 1, 4>(left + at, 0, right + at, std::min(product_block_length<T>, count - at), sums);
    total.add(sums);
  }
  total.total(sums);
  return sum_of_lanes(sums[0]);
}

// to_k = row_k . vector over the first `count` numbers of `rows` rows; `to` has room for a whole number of
// `quarter<T>`. Long sums are those of blocks, pairwise.
template <class T>
inline void multiply_rows(const T* rows, int64_t step, int row_count, const T* vector, int64_t count, T* to) {
  using S = Lanes<T>;
  constexpr int several = quarter<T>;
  int row = 0;
  for (; row + several <= row_count; row += several) {
    S sums[several];
    if (count <= product_block_length<T>) {
      row_products<T, several, 2>(rows + row * step, step, vector, count, sums);
    } else {
      PairwiseBlocks<S, several> total;
      for (int64_t at = 0; at < count; at += product_block_length<T>) {
        row_products<T, several, 2>(rows + row * step + at, step, vector + at,
                                    std::min(product_block_length<T>, count - at), sums);
        total.add(sums);
      }
      total.total(sums);
    }
    sums_of_lanes(sums, several, to + row);
  }
  for (; row < row_count; ++row) to[row] = dot(rows + row * step, vector, count);
}

// to (columns x rows) = from (rows x columns) transposed; rows are whole vectors, columns a whole number of
// `quarter<T>`.
template <class T>
inline void transpose(const T* from, int64_t from_step, int rows, int columns, T* to, int64_t to_step) {
  constexpr int width = Lanes<T>::width;
  for (int row = 0; row < rows; row += width) {
    for (int column = 0; column < columns; column += quarter<T>) {
      Lanes<T> tile[quarter<T>];
      load_columns(from + row * from_step + column, from_step, tile);
      MEMFORMER_UNROLL_COLUMNS
      for (int r = 0; r < quarter<T>; ++r) tile[r].store(to + (column + r) * to_step + row);
    }
  }
}

}  // namespace memformer::cpu::MEMFORMER_ISA
