// Few tasks with long contexts: each context is cut into pieces that stand as tasks of their own, so that lanes and
// threads share it. A piece is a whole subtree of the pairwise sum (context_gram.h): cutting changes no bit of a
// result. A few vectors of tasks, which a network would work through on one thread, leave their contexts to several.

#pragma once

#include "cpu/kernels.h"
#include "cpu/scratch.h"
#include "cpu/tasks/context_gram.h"
#include "cpu/tasks/parts.h"
#include "cpu/threads.h"

namespace memformer::cpu::MEMFORMER_ISA {

constexpr int piece_rows = 32 * core::gram_block;

// Whether cutting leaves fewer vectors of rows to work through than one task a lane, one vector of tasks after the
// other.
template <class T>
bool cutting_pays(int64_t tasks, int context) {
  constexpr int lanes = Lanes<T>::width;
  const int64_t pieces = context / piece_rows;
  return tasks * ((pieces + lanes - 1) / lanes) < (tasks + lanes - 1) / lanes * pieces;
}

// Whether a network is left with too few parts of tasks for threads that its contexts would keep busy.
template <class T>
bool dealing_pays(int64_t tasks, int context) {
  return context >= piece_rows && tasks > Lanes<T>::width && tasks < 2 * part_tasks<T>;
}

inline Array from_row(Array array, int64_t task, int64_t row) {
  if (!array.data) return array;
  array.data = static_cast<char*>(array.data) +
               (task * array.stride[0] + row * array.stride[1]) * bytes_of_number(array.storage);
  return array;
}

// A task's rows from one on, as tasks of one piece each.
inline Array pieces_from(const Array& array, int64_t task, int64_t row) {
  Array pieces = from_row(array, task, row);
  pieces.stride[0] = piece_rows * array.stride[1];
  return pieces;
}

// What one task has, for all of its pieces.
inline Array in_common(const Array& array, int64_t task) {
  Array common = from_row(array, task, 0);
  common.stride[0] = 0;
  return common;
}

// Calls body(piece, first) for the whole pieces of a task's context, then for its remaining rows as one more piece,
// with a call in which they are the tasks, and `first` of them before. cut(piece, row) takes arrays of tokens to the
// rows from `row` on; matrices are the caller's.
template <class Call, class Cut, class Body>
void for_pieces(const Call& call, int64_t task, Cut cut, Body body) {
  const int64_t context = call.lengths ? call.lengths[task] : call.context;
  const int64_t whole = context / piece_rows;
  Call piece = call;
  piece.lengths = nullptr;
  cut(piece, 0);
  piece.tasks = whole;
  piece.tokens = piece.context = piece_rows;
  if (whole) body(piece, 0);
  cut(piece, whole * piece_rows);
  piece.tasks = 1;
  piece.tokens = static_cast<int>(call.tokens - whole * piece_rows);
  piece.context = static_cast<int>(context - whole * piece_rows);
  if (piece.tokens) body(piece, whole);
}

// Levels of a pairwise sum over pieces, at most.
constexpr int piece_levels = 32;

// The sum of `count` pieces' numbers, `entries` each; `waiting` holds `piece_levels` as large.
template <class T>
inline const T* sum_of_pieces(T* pieces, int64_t count, int entries, T* waiting) {
  PairwiseSum<T> sum(waiting, entries);
  for (int64_t k = 0; k < count; ++k) sum.add(pieces + k * entries, k + 1 == count);
  return pieces + (count - 1) * entries;
}

// A task's matrix times a factor.
template <class T>
inline void write_matrix(const T* matrix, int width, T factor, const Array& matrices, int64_t task) {
  T* const to = static_cast<T*>(from_row(matrices, task, 0).data);
  for (int r = 0; r < width; ++r) {
    for (int c = 0; c < width; ++c)
      to[r * matrices.stride[1] + c * matrices.stride[2]] = matrix[r * width + c] * factor;
  }
}

// Context Gram matrices, or the gradient of their tokens, piece by piece; run(call) works on whole tasks.
template <class T, class Run>
void over_pieces(const Gram<T>& gram, Run run) {
  const int64_t entries = static_cast<int64_t>(gram.width) * gram.width;
  const int64_t most = gram.context / piece_rows + 1;
  const Memory memory(gram.backward ? 0 : (most + piece_levels) * entries * sizeof(T));
  T* const matrices = static_cast<T*>(memory.data());
  for (int64_t task = 0; task < gram.tasks; ++task) {
    const auto cut = [&](Gram<T>& piece, int64_t row) {
      piece.z = pieces_from(gram.z, task, row);
      piece.grad_z = pieces_from(gram.grad_z, task, row);
    };
    if (gram.backward) {
      for_pieces(gram, task, cut, [&](Gram<T>& piece, int64_t) {
        piece.matrix = in_common(gram.matrix, task);
        run(piece);
      });
      continue;
    }
    int64_t count = 0;
    for_pieces(gram, task, cut, [&](Gram<T>& piece, int64_t first) {
      if (!piece.context) return;
      piece.matrix = {matrices + first * entries, gram.matrix.storage, {entries, gram.width, 1}};
      run(piece);
      count = first + piece.tasks;
    });
    const T* const total = sum_of_pieces(matrices, count, static_cast<int>(entries), matrices + most * entries);
    write_matrix(total, gram.width, T(1), gram.matrix, task);
  }
}

// The packed Gram matrices of a group, by way of `square`, width x width cells.
template <class T>
inline void load_packed(const Array& matrices, Tasks tasks, int width, Lanes<T>* square, Lanes<T>* packed) {
  load_rows(matrices, tasks, 0, width, width, square);
  for (int r = 0; r < width; ++r) {
    for (int c = 0; c <= r; ++c) packed[core::packed(r, c)] = square[r * width + c];
  }
}

// Writes gradients dG of which `symmetric` is the packed dG + dG^T.
template <class T>
inline void store_half(const Lanes<T>* symmetric, Tasks tasks, int width, Lanes<T>* square, const Array& matrices) {
  for (int r = 0; r < width; ++r) {
    for (int c = 0; c < width; ++c) square[r * width + c] = symmetric[core::packed(r, c)] * T(0.5);
  }
  store_rows(square, matrices, tasks, 0, width, width);
}

// Runs a network in Gram space: where cutting or dealing pays, on Gram matrices that are summed before it, and with the
// gradient of the context's tokens made of theirs after it. A caller may have done so itself, with sums of its own.
template <class T, class Run>
void with_long_contexts(const Network<T>& network, ParallelFor parallel, Run run) {
  const bool tokens_out = network.queries < 0;
  const int context = network.lengths ? network.tokens - network.queries : network.context;
  const bool first = cutting_pays<T>(network.tasks, context) || dealing_pays<T>(network.tasks, context);
  if (tokens_out || network.gram.data || !first) return run(network);
  const int64_t entries = static_cast<int64_t>(network.width) * network.width;
  const bool wants_z = network.grad_z.data != nullptr;
  const Memory memory((wants_z ? 2 : 1) * network.tasks * entries * sizeof(T));
  T* const matrices = static_cast<T*>(memory.data());
  constexpr Storage storage = sizeof(T) == 8 ? Storage::float64 : Storage::float32;
  Gram<T> gram{};
  gram.tasks = network.tasks;
  gram.tokens = gram.context = context;
  gram.width = network.width;
  gram.lengths = network.lengths;
  gram.z = network.z;
  gram.matrix = {matrices, storage, {entries, network.width, 1}};
  context_gram(gram, parallel);
  Network<T> summed = network;
  summed.gram = gram.matrix;
  if (wants_z) summed.grad_gram = {matrices + network.tasks * entries, storage, {entries, network.width, 1}};
  run(summed);
  if (!wants_z) return;
  gram.backward = true;
  gram.matrix = summed.grad_gram;
  gram.grad_z = network.grad_z;
  context_gram(gram, parallel);
}

}  // namespace memformer::cpu::MEMFORMER_ISA
