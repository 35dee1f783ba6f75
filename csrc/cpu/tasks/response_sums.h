// Where the lanes' gradients of a response-only network's parameters add up: a, gamma and beta, one after another.

#pragma once

#include "core/scalar.h"

namespace memformer::cpu::MEMFORMER_ISA {

template <class S>
struct ResponseSums {
  static constexpr bool takes_outer_products = false;
  S* a_;
  S* gamma_;
  S* beta_;
  MEMFORMER_INLINE void a(int k, S value) { a_[k] += value; }
  MEMFORMER_INLINE void gamma(int k, S value) { gamma_[k] += value; }
  MEMFORMER_INLINE void beta(int k, S value) { beta_[k] += value; }
};

}  // namespace memformer::cpu::MEMFORMER_ISA
