// How the tasks of a warp meet memory: rows of tokens to cells and back, targets and predictions.
//
// Cells lie as [cell][task] (team.cuh). Lane (member, task) moves entries member, member + members, ... of its own
// task, so that nothing is divided and every store to cells is free of bank conflicts; the members of a task read
// neighbouring numbers, whose sectors stay in the first-level cache. Any strides and storage. Tasks past the last are
// zeros, and are never written back.

#pragma once

#include "core/calls.h"
#include "cuda/machine/parameters.cuh"
#include "cuda/team/team.cuh"

namespace memformer::cuda {

// One team's task.
struct Task {
  int64_t index;
  bool active;
};

// Walks entries member, member + members, ... of rows of `columns` numbers: body(row, column, entry).
template <class Team, class Body>
MEMFORMER_DEVICE void each_number(const Team& team, int rows, int columns, Body body) {
  int row = team.member() / columns, column = team.member() % columns;
#pragma unroll 1
  for (int k = team.member(); k < rows * columns; k += Team::members) {
    body(row, column, k);
    for (column += Team::members; column >= columns; column -= columns) ++row;
  }
}

template <class T>
constexpr Storage storage_of = sizeof(T) == 4 ? Storage::float32 : Storage::float64;

// cells[i * pitch + c] = number (row + i, c) of the task, array (tasks, rows, columns); pitch 0: columns. Contiguous
// rows are asked for eight numbers at a time.
template <class T, class Team>
MEMFORMER_CALL void load_rows(Team team, Array array, Task task, int row, int count, int columns,
                              Cells<T, Team::tasks> cells, int pitch = 0) {
  constexpr int batch = 8;
  const int64_t start = task.index * array.stride[0] + row * array.stride[1];
  if (array.storage == storage_of<T> && array.stride[2] == 1 && array.stride[1] == columns && task.active) {
    const T* const from = static_cast<const T*>(array.data) + start;
    const int step = pitch ? pitch : columns, total = count * columns;
    int i = team.member() / columns, c = team.member() % columns;
#pragma unroll 1
    for (int first = team.member(); first < total; first += batch * Team::members) {
      T values[batch];
      MEMFORMER_UNROLL
      for (int k = 0; k < batch; ++k) {
        const int index = first + k * Team::members;
        values[k] = index < total ? from[index] : T(0);
      }
      MEMFORMER_UNROLL
      for (int k = 0; k < batch; ++k) {
        if (first + k * Team::members < total) cells[i * step + c] = values[k];
        c += Team::members;
        while (c >= columns) {
          c -= columns;
          ++i;
        }
      }
    }
  } else {
    each_number(team, count, columns, [&](int i, int c, int k) {
      cells[pitch ? i * pitch + c : k] =
          task.active ? read_number<T>(array, start + i * array.stride[1] + c * array.stride[2]) : T(0);
    });
  }
  team.sync();
}

template <class T, class Team>
MEMFORMER_CALL void store_rows(Team team, Cells<T, Team::tasks> cells, Array array, Task task, int row, int count,
                               int columns, int pitch = 0) {
  const int64_t start = task.index * array.stride[0] + row * array.stride[1];
  each_number(team, count, columns, [&](int i, int c, int k) {
    if (!task.active) return;
    write_number(array.data, array.storage, start + i * array.stride[1] + c * array.stride[2],
                 cells[pitch ? i * pitch + c : k]);
  });
  team.sync();
}

template <class T, class Team>
MEMFORMER_DEVICE void store_zeros(const Team& team, const Array& array, Task task, int row, int count, int columns) {
  const int64_t start = task.index * array.stride[0] + row * array.stride[1];
  each_number(team, count, columns, [&](int i, int c, int) {
    if (task.active) write_number(array.data, array.storage, start + i * array.stride[1] + c * array.stride[2], T(0));
  });
}

// Labelled tokens of a task: `count` where contexts are not ragged, 1 where there is no task.
template <class T>
MEMFORMER_DEVICE T labelled_count(const int64_t* lengths, int count, Task task) {
  if (!lengths) return static_cast<T>(count);
  return task.active ? static_cast<T>(lengths[task.index]) : T(1);
}

// A network's result of one task: predictions written, their gradient read, errors made.
template <class T>
struct Readout {
  const Network<T>& network;
  Task task;
  T error_scale;

  MEMFORMER_DEVICE bool is_loss() const { return network.pass == Pass::loss || network.pass == Pass::loss_backward; }

  MEMFORMER_DEVICE void predict(int layer, int query, T value) const {
    if (task.active) write_number(network.result.data, network.result.storage, place(layer, query), value);
  }
  // Gradient e of a query's response slot, which is minus its prediction.
  MEMFORMER_DEVICE T grad(int layer, int query) const {
    return task.active ? -read_number<T>(network.result.data, network.result.storage, place(layer, query)) : T(0);
  }
  // Prediction minus target, from the response slot.
  MEMFORMER_DEVICE T error(int query, T response) const {
    const Array& target = network.target;
    return task.active ? -response - read_number<T>(target, target_place(target, query)) : T(0);
  }
  // Gradient e of the response slot, from the error of a mean of squares.
  MEMFORMER_DEVICE T grad_of_error(T error) const { return -error * error_scale; }
  // The target's gradient is e too.
  MEMFORMER_DEVICE void write_target_grad(int query, T e) const {
    const Array& to = network.grad_target;
    if (to.data && task.active) write_number(to.data, to.storage, target_place(to, query), e);
  }

 private:
  MEMFORMER_DEVICE int64_t place(int layer, int query) const {
    const Array& result = network.result;
    return layer * result.stride[0] + task.index * result.stride[1] + query * result.stride[2];
  }
  MEMFORMER_DEVICE int64_t target_place(const Array& array, int query) const {
    return task.index * array.stride[0] + query * array.stride[1];
  }
};

// The tokens that a network reads, N at most: the context and, behind it, the queries; all N for ragged contexts and
// where the result is the tokens.
template <class T>
struct Rows {
  bool stack, ragged;
  int context;    // rows before this one may be labelled
  int out_first;  // the first token with a result
  int out_count;
  int resident;  // rows where all of them are kept

  explicit MEMFORMER_INLINE Rows(const Network<T>& network)
      : stack(network.queries < 0),
        ragged(network.lengths != nullptr),
        context(ragged && !stack ? network.tokens - network.queries : network.context),
        out_first(stack ? 0 : network.tokens - network.queries),
        out_count(stack ? network.tokens : network.queries),
        resident(stack || ragged ? network.tokens : network.context + network.queries) {}

  // Kept rows with a result start here.
  MEMFORMER_INLINE int out_row() const { return resident - out_count; }
};

}  // namespace memformer::cuda
