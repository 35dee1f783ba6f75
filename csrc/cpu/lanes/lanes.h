// Tasks to lanes and back: the numbers of `width` tasks, each contiguous in memory, as one vector for each number.
//
// A tile holds K numbers of every task, tile[k] being number k of all of them. Rows that are contiguous go by blocks
// (columns.h), half precision is widened first and narrowed last (halves.h), anything strided goes number by number.

#pragma once

#include "core/calls.h"
#include "core/half.h"
#include "cpu/lanes/columns.h"
#include "cpu/lanes/halves.h"

namespace memformer::cpu::MEMFORMER_ISA {

template <class T>
constexpr Storage storage_of = sizeof(T) == 4 ? Storage::float32 : Storage::float64;

// The number at an offset, in the compute type. Storage other than T is half precision, or float32 beside double.
template <class T>
MEMFORMER_INLINE T read_number(const Array& array, int64_t offset) {
  switch (array.storage) {
    case Storage::float64: return static_cast<T>(static_cast<const double*>(array.data)[offset]);
    case Storage::bfloat16:
      return static_cast<T>(core::from_bfloat16(static_cast<const uint16_t*>(array.data)[offset]));
    case Storage::float16: return static_cast<T>(core::from_float16(static_cast<const uint16_t*>(array.data)[offset]));
    default: return static_cast<T>(static_cast<const float*>(array.data)[offset]);
  }
}

template <class T>
MEMFORMER_INLINE void write_number(const Array& array, int64_t offset, T value) {
  switch (array.storage) {
    case Storage::float64: static_cast<double*>(array.data)[offset] = static_cast<double>(value); return;
    case Storage::bfloat16:
      static_cast<uint16_t*>(array.data)[offset] = core::to_bfloat16(static_cast<float>(value));
      return;
    case Storage::float16:
      static_cast<uint16_t*>(array.data)[offset] = core::to_float16(static_cast<float>(value));
      return;
    default: static_cast<float*>(array.data)[offset] = static_cast<float>(value);
  }
}

// Which tasks a group holds: `active` of them from `first`; the lanes past them hold zeros and are never written back.
struct Tasks {
  int64_t first;
  int active;
};

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
    if (contiguous && is_half(array.storage)) {
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
        values[lane] =
            read_number<T>(array, task * array.stride[0] + (row + i) * array.stride[1] + c * array.stride[2]);
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
  if constexpr (sizeof(T) == 4) {
    if (contiguous && is_half(array.storage)) {
      const int64_t offset = tasks.first * array.stride[0] + row * array.stride[1];
      uint16_t* to = static_cast<uint16_t*>(array.data) + offset;
      store_half_columns(array.storage, tile, numbers, to, array.stride[0], tasks.active);
      return;
    }
  }
  for (int i = 0; i < count; ++i) {
    for (int c = 0; c < columns; ++c) {
      T values[width];
      tile[i * columns + c].store(values);
      for (int lane = 0; lane < tasks.active; ++lane) {
        const int64_t task = tasks.first + lane;
        write_number<T>(array, task * array.stride[0] + (row + i) * array.stride[1] + c * array.stride[2],
                        values[lane]);
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
