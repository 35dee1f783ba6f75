// Where the lanes' gradients of a network's parameters add up: q, p, gamma and beta, one after another.

#pragma once

#include "core/memory.h"

namespace memformer::cpu::MEMFORMER_ISA {

template <class S>
struct GeneralSums {
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
struct GeneralCounts {
  int projection;
  int gamma;
  int beta;

  int all() const { return 2 * projection + gamma + beta; }

  template <class S>
  GeneralSums<S> from(S* sums) const {
    return {sums, sums + projection, sums + 2 * projection, sums + 2 * projection + gamma};
  }
};

// Those of a whole network; `head` entries in one head's q or p, and coefficients of `width` features.
template <class T>
GeneralCounts counts_of(const core::Parameters<T>& parameters, int head, int width) {
  const int places = parameters.layers * parameters.kept * width;
  const int weighted = parameters.diagonal ? 1 : parameters.layers;
  return {parameters.layers * parameters.heads * head, parameters.gamma ? places * weighted * parameters.gamma_rows : 0,
          parameters.beta ? places * parameters.beta_rows : 0};
}

}  // namespace memformer::cpu::MEMFORMER_ISA
