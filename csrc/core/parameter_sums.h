// Where the gradients of a network's parameters add up: q, p, gamma and beta, one after another.

#pragma once

#include "core/memory.h"

namespace memformer::core {

// The sink of a backward: each gradient by its flat index.
template <class S>
struct ParameterSums {
  S* q_;
  S* p_;
  S* gamma_;
  S* beta_;
  MEMFORMER_INLINE void q(int k, S value) { q_[k] += value; }
  MEMFORMER_INLINE void p(int k, S value) { p_[k] += value; }
  MEMFORMER_INLINE void gamma(int k, S value) { gamma_[k] += value; }
  MEMFORMER_INLINE void beta(int k, S value) { beta_[k] += value; }
};

// How many there are of each.
struct ParameterCounts {
  int q, p, gamma, beta;

  MEMFORMER_INLINE int all() const { return q + p + gamma + beta; }

  template <class S>
  MEMFORMER_INLINE ParameterSums<S> from(S* sums) const {
    return {sums, sums + q, sums + q + p, sums + q + p + gamma};
  }
};

// Those of a whole network; `head` entries in one head's q or p, and coefficients of `width` features.
template <class T>
ParameterCounts counts_of(const Parameters<T>& parameters, int head, int width) {
  const int places = parameters.layers * parameters.kept * width;
  const int pairs = parameters.diagonal ? places : places * parameters.layers;
  const int projection = parameters.layers * parameters.heads * head;
  return {projection, projection, parameters.gamma ? pairs * parameters.gamma_rows : 0,
          parameters.beta ? places * parameters.beta_rows : 0};
}

}  // namespace memformer::core
