// Tasks to lanes and back: the numbers of `width` tasks, each contiguous in memory, as one vector for each number.
//
// A tile holds K numbers of every task, tile[k] being number k of all of them. The fast path transposes blocks of width by
// width numbers in registers: four numbers at a time are gathered by 128-bit loads, so that only the transposes inside a
// 128-bit lane are left (two shuffles a vector; one for doubles). Half precision is widened first. Anything strided, or
// written in half precision, goes number by number, through the same functions.

#pragma once

#include <cstring>

#if MEMFORMER_VECTOR_BYTES > 16
#include <immintrin.h>
#endif

#include "core/calls.h"
#include "core/half.h"
#include "cpu/simd.h"

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

// Two vectors as one of twice the size. By name, since GCC makes a shuffle of a join of two loads, which occupies a unit that
// multiplies; named, the second load is part of an insertion, which does not.
#if MEMFORMER_VECTOR_BYTES > 16
MEMFORMER_INLINE __m256 join(__m128 low, __m128 high) { return _mm256_insertf128_ps(_mm256_castps128_ps256(low), high, 1); }
MEMFORMER_INLINE __m256d join(__m128d low, __m128d high) { return _mm256_insertf128_pd(_mm256_castpd128_pd256(low), high, 1); }
#endif
#if MEMFORMER_VECTOR_BYTES > 32
MEMFORMER_INLINE __m512 join(__m256 low, __m256 high) { return _mm512_insertf32x8(_mm512_castps256_ps512(low), high, 1); }
MEMFORMER_INLINE __m512d join(__m256d low, __m256d high) { return _mm512_insertf64x4(_mm512_castpd256_pd512(low), high, 1); }
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
  for (int k = 0; k < quarters<T>; ++k) std::memcpy(to + k * step, reinterpret_cast<const T*>(&vector) + k * quarter<T>, 16);
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
    const V a = __builtin_shufflevector(rows[0], rows[1], 0, 4, 1, 5), b = __builtin_shufflevector(rows[0], rows[1], 2, 6, 3, 7);
    const V c = __builtin_shufflevector(rows[2], rows[3], 0, 4, 1, 5), d = __builtin_shufflevector(rows[2], rows[3], 2, 6, 3, 7);
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

template <class T>
constexpr Storage storage_of = sizeof(T) == 4 ? Storage::float32 : Storage::float64;

// The number at an offset, in the compute type. Storage other than T is half precision, or float32 beside double.
template <class T>
MEMFORMER_INLINE T read_number(const Array& array, int64_t offset) {
  switch (array.storage) {
    case Storage::float64: return static_cast<T>(static_cast<const double*>(array.data)[offset]);
    case Storage::bfloat16: return static_cast<T>(core::from_bfloat16(static_cast<const uint16_t*>(array.data)[offset]));
    case Storage::float16: return static_cast<T>(core::from_float16(static_cast<const uint16_t*>(array.data)[offset]));
    default: return static_cast<T>(static_cast<const float*>(array.data)[offset]);
  }
}

template <class T>
MEMFORMER_INLINE void write_number(const Array& array, int64_t offset, T value) {
  switch (array.storage) {
    case Storage::float64: static_cast<double*>(array.data)[offset] = static_cast<double>(value); return;
    case Storage::bfloat16: static_cast<uint16_t*>(array.data)[offset] = core::to_bfloat16(static_cast<float>(value)); return;
    case Storage::float16: static_cast<uint16_t*>(array.data)[offset] = core::to_float16(static_cast<float>(value)); return;
    default: static_cast<float*>(array.data)[offset] = static_cast<float>(value);
  }
}

// Half precision, `count` numbers one after the other, to floats.
inline void widen(Storage storage, const uint16_t* from, int count, float* to) {
  int k = 0;
#if MEMFORMER_VECTOR_BYTES > 16
  constexpr int width = Lanes<float>::width;
  using Vector = typename Lanes<float>::Vector;
  typedef uint16_t Halves __attribute__((vector_size(width * 2), aligned(2), may_alias));
  typedef uint32_t Words __attribute__((vector_size(width * 4)));
  for (; k + width <= count; k += width) {
    if (storage == Storage::bfloat16) {
      const Halves halves = *reinterpret_cast<const Halves*>(from + k);
      Lanes<float>((Vector)(__builtin_convertvector(halves, Words) << 16)).store(to + k);
    } else {
#if MEMFORMER_VECTOR_BYTES == 64
      const __m256i halves = _mm256_loadu_si256(reinterpret_cast<const __m256i_u*>(from + k));
      Lanes<float>((Vector)_mm512_cvtph_ps(halves)).store(to + k);
#else
      const __m128i halves = _mm_loadu_si128(reinterpret_cast<const __m128i_u*>(from + k));
      Lanes<float>((Vector)_mm256_cvtph_ps(halves)).store(to + k);
#endif
    }
  }
#endif
  for (; k < count; ++k) to[k] = storage == Storage::bfloat16 ? core::from_bfloat16(from[k]) : core::from_float16(from[k]);
}

// Which tasks a group holds: `active` of them from `first`; the lanes past them hold zeros and are never written back.
struct Tasks {
  int64_t first;
  int active;
};

// tile[k] = the half precision number k of every task, for k < count: `from` is the first of the first task's, which are one after
// the other. Widened a few dozen at a time, beside each other, and then brought into lanes like floats.
inline void load_half_columns(Storage storage, const uint16_t* from, int64_t task_stride, int active, int count, Lanes<float>* tile) {
  constexpr int width = Lanes<float>::width, most = 64;
  float numbers[width][most];
  std::memset(numbers, 0, sizeof numbers);
  for (int begin = 0; begin < count; begin += most) {
    const int some = count - begin < most ? count - begin : most;
    for (int task = 0; task < active; ++task) widen(storage, from + task * task_stride + begin, some, numbers[task]);
    for (int k = 0; k < some; k += quarter<float>) {
      Lanes<float> columns[quarter<float>];
      load_columns(numbers[0] + k, most, columns);
      for (int r = 0; r < quarter<float> && k + r < some; ++r) tile[begin + k + r] = columns[r];
    }
  }
}

// tile[k] = number k of rows [row, row + count) of every task, rows of `columns` numbers: array (tasks, rows, columns).
template <class T>
inline void load_rows(const Array& array, Tasks tasks, int row, int count, int columns, Lanes<T>* tile) {
  constexpr int width = Lanes<T>::width;
  const int numbers = count * columns;
  const bool contiguous = array.stride[2] == 1 && (array.stride[1] == columns || count == 1);
  if (array.storage == storage_of<T> && contiguous && numbers >= quarter<T>) {
    const T* from = static_cast<const T*>(array.data) + tasks.first * array.stride[0] + row * array.stride[1];
    const int64_t step = array.stride[0];
    const int last = numbers - quarter<T>;
    if (tasks.active < width) {
      for (int k = 0; k < last; k += quarter<T>) load_some_columns(from + k, step, tasks.active, tile + k);
      load_some_columns(from + last, step, tasks.active, tile + last);
      return;
    }
    for (int k = 0; k < last; k += quarter<T>) load_columns(from + k, step, tile + k);
    load_columns(from + last, step, tile + last);
    return;
  }
  if constexpr (sizeof(T) == 4) {
    if (contiguous && (array.storage == Storage::bfloat16 || array.storage == Storage::float16)) {
      const int64_t offset = tasks.first * array.stride[0] + row * array.stride[1];
      const uint16_t* from = static_cast<const uint16_t*>(array.data) + offset;
      load_half_columns(array.storage, from, array.stride[0], tasks.active, numbers, tile);
      return;
    }
  }
  for (int i = 0; i < count; ++i) {
    for (int c = 0; c < columns; ++c) {
      T values[width];
      for (int lane = 0; lane < width; ++lane) values[lane] = T(0);
      for (int lane = 0; lane < tasks.active; ++lane) {
        const int64_t task = tasks.first + lane;
        values[lane] = read_number<T>(array, task * array.stride[0] + (row + i) * array.stride[1] + c * array.stride[2]);
      }
      tile[i * columns + c] = Lanes<T>::load(values);
    }
  }
}

// The way back.
template <class T>
inline void store_rows(const Lanes<T>* tile, const Array& array, Tasks tasks, int row, int count, int columns) {
  constexpr int width = Lanes<T>::width;
  const int numbers = count * columns;
  const bool contiguous = array.stride[2] == 1 && (array.stride[1] == columns || count == 1);
  if (array.storage == storage_of<T> && contiguous && numbers >= quarter<T>) {
    T* to = static_cast<T*>(array.data) + tasks.first * array.stride[0] + row * array.stride[1];
    const int64_t step = array.stride[0];
    const int last = numbers - quarter<T>;
    if (tasks.active < width) {
      for (int k = 0; k < last; k += quarter<T>) store_some_columns(tile + k, to + k, step, tasks.active);
      store_some_columns(tile + last, to + last, step, tasks.active);
      return;
    }
    for (int k = 0; k < last; k += quarter<T>) store_columns(tile + k, to + k, step);
    store_columns(tile + last, to + last, step);
    return;
  }
  for (int i = 0; i < count; ++i) {
    for (int c = 0; c < columns; ++c) {
      T values[width];
      tile[i * columns + c].store(values);
      for (int lane = 0; lane < tasks.active; ++lane) {
        const int64_t task = tasks.first + lane;
        write_number<T>(array, task * array.stride[0] + (row + i) * array.stride[1] + c * array.stride[2], values[lane]);
      }
    }
  }
}

// Zeros in rows [row, row + count) of every task.
template <class T>
inline void store_zeros(const Array& array, Tasks tasks, int row, int count, int columns) {
  for (int lane = 0; lane < tasks.active; ++lane) {
    for (int i = 0; i < count; ++i) {
      for (int c = 0; c < columns; ++c) {
        const int64_t task = tasks.first + lane;
        write_number<T>(array, task * array.stride[0] + (row + i) * array.stride[1] + c * array.stride[2], T(0));
      }
    }
  }
}

// One number of every task of an array (tasks, entries).
template <class T>
inline Lanes<T> load_entry(const Array& array, Tasks tasks, int64_t entry) {
  constexpr int width = Lanes<T>::width;
  const int64_t start = tasks.first * array.stride[0] + entry * array.stride[1];
  if (array.storage == storage_of<T> && array.stride[0] == 1 && tasks.active == width) {
    return Lanes<T>::load(static_cast<const T*>(array.data) + start);
  }
  T values[width];
  for (int lane = 0; lane < width; ++lane) values[lane] = T(0);
  for (int lane = 0; lane < tasks.active; ++lane) values[lane] = read_number<T>(array, start + lane * array.stride[0]);
  return Lanes<T>::load(values);
}

template <class T>
inline void store_entry(Lanes<T> value, const Array& array, Tasks tasks, int64_t entry) {
  constexpr int width = Lanes<T>::width;
  const int64_t start = tasks.first * array.stride[0] + entry * array.stride[1];
  if (array.storage == storage_of<T> && array.stride[0] == 1 && tasks.active == width) {
    value.store(static_cast<T*>(array.data) + start);
    return;
  }
  T values[width];
  value.store(values);
  for (int lane = 0; lane < tasks.active; ++lane) write_number<T>(array, start + lane * array.stride[0], values[lane]);
}

// Labelled tokens of every task, as numbers: `count` where contexts are not ragged. Lanes without a task hold 1.
template <class T>
inline Lanes<T> load_lengths(const int64_t* lengths, int count, Tasks tasks) {
  if (!lengths) return Lanes<T>(static_cast<T>(count));
  T values[Lanes<T>::width];
  for (int lane = 0; lane < Lanes<T>::width; ++lane) {
    values[lane] = lane < tasks.active ? static_cast<T>(lengths[tasks.first + lane]) : T(1);
  }
  return Lanes<T>::load(values);
}

}  // namespace memformer::cpu::MEMFORMER_ISA
