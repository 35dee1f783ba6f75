// The squared errors of a task's predictions, and their gradient with respect to the network's state s = -w.
//
// One task per S. A prediction is -(x.s + slot), its error the negative of x.s + slot + target. Operations: 2 d
// multiply-adds a query, or d (2 d^2 with a factor) where the query is integrated out.

#pragma once

#include "core/scalar.h"

namespace memformer::core {

// One query: the square is returned, its gradient added to `grad`; `rest` is slot + target.
template <class S, class Extent>
MEMFORMER_INLINE S query_error(Extent extent, const S* x, S rest, const S* state, S* grad) {
  const int d = extent;
  S error = x[0] * state[0];
  MEMFORMER_UNROLL
  for (int k = 1; k < d; ++k) error += x[k] * state[k];
  error += rest;
  const S twice = error + error;
  MEMFORMER_UNROLL
  for (int k = 0; k < d; ++k) grad[k] += twice * x[k];
  return error * error;
}

// The expected square for x ~ N(0, C C^T), |C^T (s + w)|^2; factor C (d, d), or null for the identity.
template <class S, class Extent>
MEMFORMER_INLINE S integrated_error(Extent extent, const ValueOf<S>* factor, const S* solution, const S* state,
                                    S* grad) {
  const int d = extent;
  S squares = S(ValueOf<S>(0));
  MEMFORMER_UNROLL
  for (int c = 0; c < d; ++c) {
    S error = state[c] + solution[c];
    if (factor) {
      error = (state[0] + solution[0]) * factor[c];
      MEMFORMER_UNROLL
      for (int k = 1; k < d; ++k) error += (state[k] + solution[k]) * factor[k * d + c];
    }
    squares += error * error;
    const S twice = error + error;
    if (!factor) {
      grad[c] += twice;
      continue;
    }
    MEMFORMER_UNROLL
    for (int k = 0; k < d; ++k) grad[k] += twice * factor[k * d + c];
  }
  return squares;
}

}  // namespace memformer::core
