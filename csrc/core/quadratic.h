// A task's quadratic w^T H w / 2 - b^T w, seen through its residual g = b + H s at s = -w.
//
// One task per S. Operations: d^2 multiply-adds for a residual, d^2 for its transpose, d^2 for the gradient of H.

#pragma once

#include "core/extent.h"
#include "core/scalar.h"

namespace memformer::core {

// H symmetric, packed: what a context Gram matrix gives. The gradient collects dH + dH^T.
template <class S, class Extent>
struct SymmetricQuadratic {
  static constexpr int cells = packed_size(Extent::limit);
  S h[cells];
  S b[Extent::limit];
  Extent extent;

  MEMFORMER_INLINE S entry(int row, int column) const { return h[packed(row, column)]; }
  MEMFORMER_INLINE void add_outer(const S* left, const S* right) {
    const int d = extent;
    MEMFORMER_UNROLL
    for (int r = 0; r < d; ++r) {
      MEMFORMER_UNROLL
      for (int c = 0; c <= r; ++c) h[packed_size(r) + c] += left[r] * right[c] + left[c] * right[r];
    }
  }
};

// H as it is given, read in full: gradients are dense.
template <class S, class Extent>
struct FullQuadratic {
  static constexpr int cells = Extent::limit * Extent::limit;
  S h[cells];
  S b[Extent::limit];
  Extent extent;

  MEMFORMER_INLINE S entry(int row, int column) const { return h[row * extent + column]; }
  MEMFORMER_INLINE void add_outer(const S* left, const S* right) {
    const int d = extent;
    MEMFORMER_UNROLL
    for (int r = 0; r < d; ++r) {
      MEMFORMER_UNROLL
      for (int c = 0; c < d; ++c) h[r * d + c] += left[r] * right[c];
    }
  }
};

// g = b + H s.
template <class S, template <class, class> class Quadratic, class Extent>
MEMFORMER_INLINE void residual(const Quadratic<S, Extent>& task, const S* s, S* g) {
  const int d = task.extent;
  MEMFORMER_UNROLL
  for (int r = 0; r < d; ++r) {
    S sum = task.b[r];
    MEMFORMER_UNROLL
    for (int c = 0; c < d; ++c) sum += task.entry(r, c) * s[c];
    g[r] = sum;
  }
}

// ds += H^T dg.
template <class S, template <class, class> class Quadratic, class Extent>
MEMFORMER_INLINE void add_residual_transpose(const Quadratic<S, Extent>& task, const S* dg, S* ds) {
  const int d = task.extent;
  MEMFORMER_UNROLL
  for (int c = 0; c < d; ++c) {
    S sum = ds[c];
    MEMFORMER_UNROLL
    for (int r = 0; r < d; ++r) sum += task.entry(r, c) * dg[r];
    ds[c] = sum;
  }
}

// The gradient of H and b, from that of g at s.
template <class S, template <class, class> class Quadratic, class Extent>
MEMFORMER_INLINE void add_residual_grad(Quadratic<S, Extent>& grad, const S* dg, const S* s) {
  const int d = grad.extent;
  grad.add_outer(dg, s);
  MEMFORMER_UNROLL
  for (int r = 0; r < d; ++r) grad.b[r] += dg[r];
}

}  // namespace memformer::core
