// A few numbers of `width` tasks, contiguous in memory for each, as one vector for each number, and back.
//
// Blocks of four numbers (two in double) of every task are gathered by 128-bit loads, so that only the transposes
// inside a 128-bit lane are left: two shuffles a vector, one for doubles.

#pragma once

#include <cstring>

#if MEMFORMER_VECTOR_BYTES > 16
#include <immintrin.h>
#endif

#include "cpu/lanes/simd.h"

namespace memformer::cpu::MEMFORMER_ISA {

// Numbers in 128 bits, and 128-bit quarters in a vector.
template <class T>
constexpr int quarter = 16 / static_cast<int>(sizeof(T));
template <class T>
constexpr int quarters = Lanes<T>::width / quarter<T>;

template <class T>
MEMFORMER_INLINE typename VectorsOf<T>::Quarter load_quarter(const T* from) {
  return *reinterpret_cast<const typename VectorsOf<T>::UnalignedQuarter*>(from);
}

// Two vectors as one of twice the size. By name, since GCC makes a shuffle of a join of two loads, which occupies a
// unit that multiplies; named, the second load is part of an insertion, which does not.
#if MEMFORMER_VECTOR_BYTES > 16
MEMFORMER_INLINE __m256 join(__m128 low, __m128 high) {
  return _mm256_insertf128_ps(_mm256_castps128_ps256(low), high, 1);
}
MEMFORMER_INLINE __m256d join(__m128d low, __m128d high) {
  return _mm256_insertf128_pd(_mm256_castpd128_pd256(low), high, 1);
}
#endif
#if MEMFORMER_VECTOR_BYTES > 32
MEMFORMER_INLINE __m512 join(__m256 low, __m256 high) {
  return _mm512_insertf32x8(_mm512_castps256_ps512(low), high, 1);
}
MEMFORMER_INLINE __m512d join(__m256d low, __m256d high) {
  return _mm512_insertf64x4(_mm512_castpd256_pd512(low), high, 1);
}
#endif

// The vector whose 128-bit quarters start at from, from + step, ...
template <class T>
MEMFORMER_INLINE typename Lanes<T>::Vector load_quarters(const T* from, int64_t step) {
  using Vector = typename Lanes<T>::Vector;
  if constexpr (quarters<T> == 1) {
    return load_quarter(from);
  } else {
    const auto pair = [&](const T* first) { return join(load_quarter(first), load_quarter(first + step)); };
    if constexpr (quarters<T> == 2) {
      return (Vector)pair(from);
    } else {
      return (Vector)join(pair(from), pair(from + 2 * step));
    }
  }
}

// Writes the 128-bit quarters of a vector to to, to + step, ...
template <class T>
MEMFORMER_INLINE void store_quarters(typename Lanes<T>::Vector vector, T* to, int64_t step) {
  for (int k = 0; k < quarters<T>; ++k)
    std::memcpy(to + k * step, reinterpret_cast<const T*>(&vector) + k * quarter<T>, 16);
}

// Transposes the square of numbers inside every 128-bit quarter of `quarter<T>` vectors; its own inverse.
template <class T>
MEMFORMER_INLINE void transpose_quarters(typename Lanes<T>::Vector* rows) {
  using V = typename Lanes<T>::Vector;
  if constexpr (sizeof(T) == 8) {
    const V a = rows[0], b = rows[1];
    if constexpr (quarters<T> == 1) {
      rows[0] = __builtin_shufflevector(a, b, 0, 2);
      rows[1] = __builtin_shufflevector(a, b, 1, 3);
    } else if constexpr (quarters<T> == 2) {
      rows[0] = __builtin_shufflevector(a, b, 0, 4, 2, 6);
      rows[1] = __builtin_shufflevector(a, b, 1, 5, 3, 7);
    } else {
      rows[0] = __builtin_shufflevector(a, b, 0, 8, 2, 10, 4, 12, 6, 14);
      rows[1] = __builtin_shufflevector(a, b, 1, 9, 3, 11, 5, 13, 7, 15);
    }
  } else if constexpr (quarters<T> == 1) {
    const V a = __builtin_shufflevector(rows[0], rows[1], 0, 4, 1, 5),
            b = __builtin_shufflevector(rows[0], rows[1], 2, 6, 3, 7);
    const V c = __builtin_shufflevector(rows[2], rows[3], 0, 4, 1, 5),
            d = __builtin_shufflevector(rows[2], rows[3], 2, 6, 3, 7);
    rows[0] = __builtin_shufflevector(a, c, 0, 1, 4, 5);
    rows[1] = __builtin_shufflevector(a, c, 2, 3, 6, 7);
    rows[2] = __builtin_shufflevector(b, d, 0, 1, 4, 5);
    rows[3] = __builtin_shufflevector(b, d, 2, 3, 6, 7);
  } else if constexpr (quarters<T> == 2) {
    const V a = __builtin_shufflevector(rows[0], rows[1], 0, 8, 1, 9, 4, 12, 5, 13);
    const V b = __builtin_shufflevector(rows[0], rows[1], 2, 10, 3, 11, 6, 14, 7, 15);
    const V c = __builtin_shufflevector(rows[2], rows[3], 0, 8, 1, 9, 4, 12, 5, 13);
    const V d = __builtin_shufflevector(rows[2], rows[3], 2, 10, 3, 11, 6, 14, 7, 15);
    rows[0] = __builtin_shufflevector(a, c, 0, 1, 8, 9, 4, 5, 12, 13);
    rows[1] = __builtin_shufflevector(a, c, 2, 3, 10, 11, 6, 7, 14, 15);
    rows[2] = __builtin_shufflevector(b, d, 0, 1, 8, 9, 4, 5, 12, 13);
    rows[3] = __builtin_shufflevector(b, d, 2, 3, 10, 11, 6, 7, 14, 15);
  } else {
    const V a = __builtin_shufflevector(rows[0], rows[1], 0, 16, 1, 17, 4, 20, 5, 21, 8, 24, 9, 25, 12, 28, 13, 29);
    const V b = __builtin_shufflevector(rows[0], rows[1], 2, 18, 3, 19, 6, 22, 7, 23, 10, 26, 11, 27, 14, 30, 15, 31);
    const V c = __builtin_shufflevector(rows[2], rows[3], 0, 16, 1, 17, 4, 20, 5, 21, 8, 24, 9, 25, 12, 28, 13, 29);
    const V d = __builtin_shufflevector(rows[2], rows[3], 2, 18, 3, 19, 6, 22, 7, 23, 10, 26, 11, 27, 14, 30, 15, 31);
    rows[0] = __builtin_shufflevector(a, c, 0, 1, 16, 17, 4, 5, 20, 21, 8, 9, 24, 25, 12, 13, 28, 29);
    rows[1] = __builtin_shufflevector(a, c, 2, 3, 18, 19, 6, 7, 22, 23, 10, 11, 26, 27, 14, 15, 30, 31);
    rows[2] = __builtin_shufflevector(b, d, 0, 1, 16, 17, 4, 5, 20, 21, 8, 9, 24, 25, 12, 13, 28, 29);
    rows[3] = __builtin_shufflevector(b, d, 2, 3, 18, 19, 6, 7, 22, 23, 10, 11, 26, 27, 14, 15, 30, 31);
  }
}

// Task k * quarter + r of the batch sits in row r, quarter k, so that a transpose inside quarters is a whole transpose.
template <class T>
MEMFORMER_INLINE void load_columns(const T* from, int64_t task_stride, Lanes<T>* tile) {
  typename Lanes<T>::Vector rows[quarter<T>];
  MEMFORMER_UNROLL
  for (int r = 0; r < quarter<T>; ++r) rows[r] = load_quarters<T>(from + r * task_stride, quarter<T> * task_stride);
  transpose_quarters<T>(rows);
  MEMFORMER_UNROLL
  for (int r = 0; r < quarter<T>; ++r) tile[r].v = rows[r];
}

template <class T>
MEMFORMER_INLINE void store_columns(const Lanes<T>* tile, T* to, int64_t task_stride) {
  typename Lanes<T>::Vector rows[quarter<T>];
  MEMFORMER_UNROLL
  for (int r = 0; r < quarter<T>; ++r) rows[r] = tile[r].v;
  transpose_quarters<T>(rows);
  MEMFORMER_UNROLL
  for (int r = 0; r < quarter<T>; ++r) store_quarters<T>(rows[r], to + r * task_stride, quarter<T> * task_stride);
}

// The same for a group that is not full: the lanes past its last task hold zeros, and are not written back.
template <class T>
MEMFORMER_INLINE void load_some_columns(const T* from, int64_t task_stride, int active, Lanes<T>* tile) {
  T numbers[quarter<T>][Lanes<T>::width] = {};
  for (int task = 0; task < active; ++task) {
    std::memcpy(&numbers[task % quarter<T>][task / quarter<T> * quarter<T>], from + task * task_stride, 16);
  }
  typename Lanes<T>::Vector rows[quarter<T>];
  std::memcpy(rows, numbers, sizeof rows);
  transpose_quarters<T>(rows);
  std::memcpy(tile, rows, sizeof rows);
}

template <class T>
MEMFORMER_INLINE void store_some_columns(const Lanes<T>* tile, T* to, int64_t task_stride, int active) {
  typename Lanes<T>::Vector rows[quarter<T>];
  std::memcpy(rows, tile, sizeof rows);
  transpose_quarters<T>(rows);
  T numbers[quarter<T>][Lanes<T>::width];
  std::memcpy(numbers, rows, sizeof rows);
  for (int task = 0; task < active; ++task) {
    std::memcpy(to + task * task_stride, &numbers[task % quarter<T>][task / quarter<T> * quarter<T>], 16);
  }
}

}  // namespace memformer::cpu::MEMFORMER_ISA
