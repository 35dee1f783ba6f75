// Sufficient statistics of a task's examples, without the examples.
//
// Examples x ~ N(0, C C^T), n of them, with responses y = w.x + sigma e. Then n H ~ Wishart, and by its Bartlett
// decomposition (Bartlett, 1933)
//
//   H = C K K^T C^T / n,  K lower triangular, K_ij ~ N(0, 1) for j < i, K_ii ~ chi(n - i), i = 0, ..., d - 1
//   b = X^T y / n = H w + (sigma / n) C K z,  z ~ N(0, I)
//
// for n >= d. chi^2(m) = -2 sum of ln u over floor(m / 2) uniforms, plus a squared normal if m is odd: exact, and of a
// fixed number of draws. Normals, in order: g (d; w = W g), K row by row, z (where there is noise), the squared ones,
// then d for every query (x = C g). The uniforms begin at the next block. One task per S. Operations, with d^2 / 2 + 3
// d normals: d^3 / 6 for K K^T, d^3 / 2 more with C, n d / 2 products of uniforms.

#pragma once

#include "core/gaussian.h"
#include "core/matrix.h"
#include "core/quadratic.h"

namespace memformer::core {

// How many numbers a task takes.
struct StatisticsPlan {
  int features;
  int context;
  int queries;
  bool noisy;

  MEMFORMER_INLINE bool odd(int i) const { return (context - i) % 2 != 0; }
  MEMFORMER_INLINE int odd_count() const { return context % 2 ? (features + 1) / 2 : features / 2; }
  MEMFORMER_INLINE int first_query() const {
    return features + features * (features - 1) / 2 + (noisy ? features : 0) + odd_count();
  }
  MEMFORMER_INLINE int normals() const { return first_query() + queries * features; }
  // The sum of (context - i) / 2 over i.
  MEMFORMER_INLINE int uniforms() const {
    return (features * context - features * (features - 1) / 2 - odd_count()) / 2;
  }
};

// target = factor * source for a factor (d, d) of parameters; the source itself for none.
template <class S, class Extent>
MEMFORMER_INLINE void transform(Extent extent, const ValueOf<S>* factor, const S* source, S* target) {
  const int d = extent;
  if (!factor) {
    MEMFORMER_UNROLL
    for (int i = 0; i < d; ++i) target[i] = source[i];
    return;
  }
  MEMFORMER_UNROLL
  for (int i = 0; i < d; ++i) {
    S sum = source[0] * factor[i * d];
    MEMFORMER_UNROLL
    for (int j = 1; j < d; ++j) sum += source[j] * factor[i * d + j];
    target[i] = sum;
  }
}

// H, b and w of a task. `normals` are all of its normals, `chi` the sums of logarithms of its uniforms, one for every
// diagonal entry; weight_factor W and covariate_factor C, (d, d) or null for the identity.
template <class S, class Extent>
MEMFORMER_INLINE void sample_statistics(const StatisticsPlan& plan, Extent extent, const S* normals, const S* chi,
                                        S noise, const ValueOf<S>* weight_factor, const ValueOf<S>* covariate_factor,
                                        SymmetricQuadratic<S, Extent>& task, S* w) {
  using T = ValueOf<S>;
  constexpr int limit = Extent::limit;
  const int d = extent;
  const T share = T(1) / T(plan.context);
  transform(extent, weight_factor, normals, w);
  const S* const below = normals + d;
  const S* const response_noise = below + d * (d - 1) / 2;
  // Rows of K, then of C K.
  S factor[limit * limit];
  MEMFORMER_UNROLL
  for (int i = 0; i < d; ++i) {
    MEMFORMER_UNROLL
    for (int j = 0; j < i; ++j) factor[i * d + j] = below[i * (i - 1) / 2 + j];
    S square = chi[i] * T(-2);
    if (plan.odd(i)) {
      const S squared = plan.noisy ? response_noise[d + i / 2] : response_noise[i / 2];
      square += squared * squared;
    }
    factor[i * d + i] = quick_root(square);
    MEMFORMER_UNROLL
    for (int j = i + 1; j < d; ++j) factor[i * d + j] = S(T(0));
  }
  if (covariate_factor) {
    // Column j of K is zero above j: entries above are read no more once the column is done.
    MEMFORMER_UNROLL
    for (int j = 0; j < d; ++j) {
      S column[limit];
      MEMFORMER_UNROLL
      for (int i = 0; i < d; ++i) {
        S sum = factor[j * d + j] * covariate_factor[i * d + j];
        MEMFORMER_UNROLL
        for (int k = j + 1; k < d; ++k) sum += factor[k * d + j] * covariate_factor[i * d + k];
        column[i] = sum;
      }
      MEMFORMER_UNROLL
      for (int i = 0; i < d; ++i) factor[i * d + j] = column[i];
    }
  }
  // Without C, row c of K ends at column c. Two loops: a question in each product costs more than the product.
  const auto multiply = [&](bool triangular) {
    MEMFORMER_UNROLL
    for (int r = 0; r < d; ++r) {
      MEMFORMER_UNROLL
      for (int c = 0; c <= r; ++c) {
        S sum = factor[r * d] * factor[c * d];
        MEMFORMER_UNROLL
        for (int k = 1; k < d; ++k) {
          if (k <= c || !triangular) sum += factor[r * d + k] * factor[c * d + k];
        }
        task.h[packed_size(r) + c] = sum * share;
      }
    }
  };
  if (covariate_factor) {
    multiply(false);
  } else {
    multiply(true);
  }
  MEMFORMER_UNROLL
  for (int r = 0; r < d; ++r) {
    S sum = task.entry(r, 0) * w[0];
    MEMFORMER_UNROLL
    for (int c = 1; c < d; ++c) sum += task.entry(r, c) * w[c];
    if (plan.noisy) {
      S noisy = factor[r * d] * response_noise[0];
      MEMFORMER_UNROLL
      for (int c = 1; c < d; ++c) noisy += factor[r * d + c] * response_noise[c];
      sum += noisy * (noise * share);
    }
    task.b[r] = sum;
  }
}

}  // namespace memformer::core
