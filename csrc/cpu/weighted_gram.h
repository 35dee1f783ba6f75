// Gram matrices of contexts whose tokens have weights, as their kernel takes them.

#pragma once

#include "core/calls.h"

namespace memformer {

// total = (n / W) sum over the context of w_i z_i z_i^T with W = sum w_i, n the number of the context's tokens, so that
// a network, which divides by n, works on weighted means; or the gradients of tokens and weights from that of `total`:
//
//   grad z_i = (n / W) w_i (dM + dM^T) z_i,    grad w_i = (n / W) (z_i^T dM z_i - <dM, M> / n)
//
// where M is `total`. The second is linear in no root of a weight, so that it is right at 0 too. A token of weight 0
// is dropped by selection; in its own weight's gradient what is not finite of it counts as 0. A task without weight has
// M = 0 and gradients 0.
template <class T>
struct WeightedGram {
  bool backward;
  int64_t tasks;
  int tokens;              // N
  int width;               // D
  int context;             // rows that are read: n, or where ragged all that a context may hold
  const int64_t* lengths;  // (B,) or null
  Array z;                 // (B, N, D)
  Array weights;           // (B, N, 1), not negative
  Array total;             // (B, D, D) in the type T: written, read by the backward
  Array grad_total;        // (B, D, D) in the type T, of the backward
  Array grad_z;            // (B, N, D) or null: the context's rows are written
  Array grad_weights;      // (B, N, 1) or null: all are written, with 0 past the context
};

}  // namespace memformer
