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

// Calls body(gram, first, pieces) for the whole pieces of a task's context, then for its remaining rows as one more
// piece, with a call in which they are the tasks; matrices are the caller's.
template <class T, class Body>
void for_pieces(const Gram<T>& gram, int64_t task, Body body) {
  const int64_t context = gram.lengths ? gram.lengths[task] : gram.context;
  const int64_t whole = context / piece_rows;
  Gram<T> piece = gram;
  piece.lengths = nullptr;
  piece.z = from_row(gram.z, task, 0);
  piece.z.stride[0] = piece_rows * gram.z.stride[1];
  piece.grad_z = from_row(gram.grad_z, task, 0);
  piece.grad_z.stride[0] = piece_rows * gram.grad_z.stride[1];
  piece.tasks = whole;
  piece.tokens = piece.context = piece_rows;
  if (whole) body(piece, 0);
  piece.z = from_row(gram.z, task, whole * piece_rows);
  piece.grad_z = from_row(gram.grad_z, task, whole * piece_rows);
  piece.tasks = 1;
  piece.tokens = static_cast<int>(gram.tokens - whole * piece_rows);
  piece.context = static_cast<int>(context - whole * piece_rows);
  if (piece.tokens) body(piece, whole);
}

// Context Gram matrices, or the gradient of their tokens, piece by piece; run(call) works on whole tasks.
template <class T, class Run>
void over_pieces(const Gram<T>& gram, Run run) {
  const int64_t entries = static_cast<int64_t>(gram.width) * gram.width;
  const int64_t most = gram.context / piece_rows + 1;
  constexpr int levels = 32;
  const Memory memory(gram.backward ? 0 : (most + levels) * entries * sizeof(T));
  T* const matrices = static_cast<T*>(memory.data());
  T* const waiting = matrices + most * entries;
  for (int64_t task = 0; task < gram.tasks; ++task) {
    if (gram.backward) {
      for_pieces(gram, task, [&](Gram<T>& piece, int64_t) {
        piece.matrix = from_row(gram.matrix, task, 0);
        piece.matrix.stride[0] = 0;
        run(piece);
      });
      continue;
    }
    int64_t count = 0;
    for_pieces(gram, task, [&](Gram<T>& piece, int64_t first) {
      if (!piece.context) return;
      piece.matrix = {matrices + first * entries, gram.matrix.storage, {entries, gram.width, 1}};
      run(piece);
      count = first + piece.tasks;
    });
    PairwiseSum<T> sum(waiting, static_cast<int>(entries));
    for (int64_t k = 0; k < count; ++k) sum.add(matrices + k * entries, k + 1 == count);
    const T* const total = matrices + (count - 1) * entries;
    T* const to = static_cast<T*>(from_row(gram.matrix, task, 0).data);
    for (int r = 0; r < gram.width; ++r) {
      for (int c = 0; c < gram.width; ++c)
        to[r * gram.matrix.stride[1] + c * gram.matrix.stride[2]] = total[r * gram.width + c];
    }
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
