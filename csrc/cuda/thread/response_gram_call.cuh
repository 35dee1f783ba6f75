// What a call of response-only networks in Gram space is told: sizes, where tokens, results and sums lie, how a tile
// and a block's memory are laid out.

#pragma once

#include "cuda/machine/stage.cuh"
#include "cuda/thread/first_order.cuh"

namespace memformer::cuda {

// What a kernel is compiled for.
enum class Work {
  forward,    // predictions, Z_L, or the loss alone
  parameters  // gradients of parameters, with or without a loss, and of the tokens where they are asked for
};

template <class T, class Extent>
struct ResponseGramCall {
  Extent d;
  bool loss;   // squared errors are added up
  bool stack;  // the result is the tokens
  bool diagonal;
  bool resident;  // a tile holds all rows
  int layers, heads;
  int tokens;   // N
  int context;  // rows before this one may be labelled
  int queries;  // rows with a result, at the end
  int result_layers;
  int unit_tasks;
  int64_t tasks, units;
  T error_scale;  // 2 / (B queries)
  const int64_t* lengths;
  TokenArray z, grad_z, rows;  // `rows`: the result, where it is tokens
  Array result, target, grad_target;
  Parameters parameters;
  TileLayout layout;
  MethodSpace space;
  int trace_cells;  // then those of the gradients that come from outside
  Partials<T> partials;
  T* memory;  // for `space` of every block; null: in shared memory
};

}  // namespace memformer::cuda
