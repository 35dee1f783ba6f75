// Linear attention with factored heads as its kernel takes it.

#pragma once

#include "core/calls.h"

namespace memformer {

// Heads (B, N, H, width): the strides of task, token and entry, and that of the head.
struct Heads {
  Array array;
  int64_t stride = 0;
};

// Which keys a token sees; earlier and later ones with the one in its own place.
enum class Sees : int { all, earlier, later };

// result_t = rows_t sum over the keys i that t sees of keys_i (q_t . k_i) v_i, or the gradients of q, k and v. A token
// of weight 0 is not read.
template <class T>
struct Attention {
  bool backward;
  Sees sees;              // all or earlier
  int64_t tasks;          // B
  int64_t heads;          // H
  int64_t tokens;         // N, of q and the result
  int64_t keys;           // tokens of k and v
  int key_width;          // E, of q and k
  int value_width;        // F, of v and the result
  int64_t sequences;      // that see only themselves, one behind the other
  const int64_t* bounds;  // (sequences + 1,), or null for one sequence
  Heads q, k, v;
  Array row_weights;             // (B, N) or null: ones
  Array key_weights;             // (B, keys) or null: ones
  Heads result;                  // written, or its gradient
  Heads grad_q, grad_k, grad_v;  // each with data or null
};

}  // namespace memformer
