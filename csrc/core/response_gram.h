// Response-only Gram space: the learned first-order method on one task's quadratic, forward and backward.
//
//   g_l = b + H s_l;   r_{l,h} = A_{l,h} g_l + beta_{l,h} * r_{l-1,h}
//   s_{l+1} = s_l + sum_h sum_{j<=l} gamma_{l,j,h} * r_{j,h}
//
// with s = -w (Dutta & Sra, arXiv 2410.07263, eqs. 17-20). One task per S: the state lives in registers, what the
// backward needs of each layer (s_l, g_l, r_l and the gradient u_l of layer l's update) in a trace that the caller
// provides. Operations for each layer: d^2 (residual) + R d^2 (preconditioner) + (l + 1) R d forward; backward twice
// that and R d^2 for the gradient of A.

#pragma once

#include "core/coefficients.h"
#include "core/extent.h"
#include "core/quadratic.h"
#include "core/scalar.h"

namespace memformer::core {

// Parameters shared by all tasks: a (L, R, d, d), and coefficients of one row, which is one number for all weights or
// one for each. Align: the matrices of a start at multiples of so many numbers, with room between them. Most: layers
// are so many at most, with one register each, and loops over them are straight code, so that a trace may live in
// registers; 0: any number.
template <class T, int Align = 1, int Most = 0>
struct FirstOrder : Coefficients<T> {
  const T* a;

  static MEMFORMER_INLINE constexpr int matrix_step(int d) { return (d * d + Align - 1) / Align * Align; }
  // The matrix of layer l and head h, which is the one of index `place` = l R + h.
  MEMFORMER_INLINE const T* matrix(int place, int d) const {
    const T* const first = a + place * matrix_step(d);
    if constexpr (Align == 1) return first;
    return static_cast<const T*>(__builtin_assume_aligned(first, Align * sizeof(T)));
  }
};

// The cells of a trace: s_0..s_L, g_0..g_{L-1}, u_0..u_{L-1}, r_{0..L-1,h} and two rounds of register gradients.
template <class S, class Extent, int Stride>
struct ResponseTrace {
  Cells<S, Stride> cells;
  int layers;
  int heads;
  Extent d;

  static MEMFORMER_INLINE int size(int layers, int heads, int d) { return (3 * layers + 1 + (layers + 2) * heads) * d; }
  MEMFORMER_INLINE Cells<S, Stride> state(int l) const { return cells.at(l * d); }
  MEMFORMER_INLINE Cells<S, Stride> residual(int l) const { return cells.at((layers + 1 + l) * d); }
  MEMFORMER_INLINE Cells<S, Stride> update(int l) const { return cells.at((2 * layers + 1 + l) * d); }
  MEMFORMER_INLINE Cells<S, Stride> memory(int l, int h) const {
    return cells.at((3 * layers + 1 + l * heads + h) * d);
  }
  // Gradient of the registers of layer l; that of layer l + 1 is still there.
  MEMFORMER_INLINE Cells<S, Stride> memory_grad(int l, int h) const {
    return cells.at((3 * layers + 1 + (layers + (l & 1)) * heads + h) * d);
  }
  MEMFORMER_INLINE void keep_state(int l, const S* s) const {
    const int count = d;
    MEMFORMER_UNROLL
    for (int c = 0; c < count; ++c) state(l)[c] = s[c];
  }
};

// How gamma and beta are shared by a task's weights: by all of them, or not at all.
template <bool PerWeight>
struct Shared {
  static MEMFORMER_INLINE int index(int place, int d, int c) { return PerWeight ? place * d + c : place; }
};

// What layers end in where nothing changes their state any more.
struct Unchanged {
  template <class S>
  MEMFORMER_INLINE void operator()(int, S*) const {}
};

// All L layers from s (updated in place); after(l, s) may change what layer l made. The trace keeps s_0, ..., s_L. A
// trace is a ResponseTrace or has its functions.
template <bool PerWeight, class S, template <class, class> class Quadratic, class Extent, int Align, int most,
          class Trace, class After = Unchanged>
MEMFORMER_INLINE void response_forward(const Quadratic<S, Extent>& task,
                                       const FirstOrder<ValueOf<S>, Align, most>& method, S* s, const Trace& trace,
                                       After after = {}) {
  using At = Shared<PerWeight>;
  const int d = task.extent;
  const int layers = method.layers, heads = most ? 1 : method.kept;
  trace.keep_state(0, s);
  MEMFORMER_UNROLL_LAYERS
  for (int l = 0; l < (most ? most : layers); ++l) {
    if (most && l >= layers) continue;
    S g[Extent::limit];
    residual(task, s, g);
    MEMFORMER_UNROLL
    for (int c = 0; c < d; ++c) trace.residual(l)[c] = g[c];
    MEMFORMER_NO_UNROLL
    for (int h = 0; h < heads; ++h) {
      const ValueOf<S>* a = method.matrix(l * heads + h, d);
      S r[Extent::limit];
      MEMFORMER_UNROLL
      for (int i = 0; i < d; ++i) {
        S sum = g[0] * a[i * d];
        MEMFORMER_UNROLL
        for (int j = 1; j < d; ++j) sum += g[j] * a[i * d + j];
        r[i] = sum;
      }
      if (method.beta && l > 0) {
        MEMFORMER_UNROLL
        for (int c = 0; c < d; ++c) r[c] += trace.memory(l - 1, h)[c] * method.beta[At::index(l * heads + h, d, c)];
      }
      MEMFORMER_UNROLL
      for (int c = 0; c < d; ++c) trace.memory(l, h)[c] = r[c];
      if (!method.gamma) {
        MEMFORMER_UNROLL
        for (int c = 0; c < d; ++c) s[c] += r[c];
      } else if (method.diagonal) {
        MEMFORMER_UNROLL
        for (int c = 0; c < d; ++c) s[c] += r[c] * method.gamma[At::index(l * heads + h, d, c)];
      }
    }
    if (method.gamma && !method.diagonal) {
      MEMFORMER_UNROLL_LAYERS
      for (int j = 0; j < (most ? most : l + 1); ++j) {
        if (most && j > l) continue;
        MEMFORMER_NO_UNROLL
        for (int h = 0; h < heads; ++h) {
          MEMFORMER_UNROLL
          for (int c = 0; c < d; ++c) {
            s[c] += trace.memory(j, h)[c] * method.gamma[At::index((l * layers + j) * heads + h, d, c)];
          }
        }
      }
    }
    after(l, s);
    trace.keep_state(l + 1, s);
  }
}

// Adds the gradient of one coefficient, or of one for each weight, from the products that make it.
template <bool PerWeight, class S, class Extent, int Stride, class Add>
MEMFORMER_INLINE void coefficient_grad(Extent extent, const S* left, Cells<S, Stride> right, int place, Add add) {
  const int d = extent;
  if constexpr (PerWeight) {
    MEMFORMER_UNROLL
    for (int c = 0; c < d; ++c) add(place * d + c, left[c] * right[c]);
  } else {
    S sum = left[0] * right[0];
    MEMFORMER_UNROLL
    for (int c = 1; c < d; ++c) sum += left[c] * right[c];
    add(place, sum);
  }
}

// The gradient left right^T of a matrix: an entry at a time, or as a whole to a sink that says it takes those.
template <class S, class Extent, int Stride, class Sink>
MEMFORMER_INLINE void matrix_grad(Extent extent, const S* left, Cells<S, Stride> right, int place, Sink& sink) {
  const int d = extent;
  if constexpr (Sink::takes_outer_products) {
    sink.outer(place, left);
  } else {
    MEMFORMER_UNROLL
    for (int i = 0; i < d; ++i) {
      MEMFORMER_UNROLL
      for (int j = 0; j < d; ++j) sink.a(place * d * d + i * d + j, left[i] * right[j]);
    }
  }
}

// Backward of `response_forward`. `outer(l, ds)` adds the gradient that reaches s_{l+1} from outside, and takes the sum
// back through what `after` did there; ds ends as the gradient of s_0 where `grad` is asked for, which nothing else
// needs. The sink takes the gradients of a, gamma and beta by their flat index; `grad`, where not null and `wanted`,
// collects those of H and b.
template <bool PerWeight, class S, template <class, class> class Quadratic, class Extent, int Align, int most,
          class Trace, class Outer, class Sink>
MEMFORMER_INLINE void response_backward(const Quadratic<S, Extent>& task,
                                        const FirstOrder<ValueOf<S>, Align, most>& method, const Trace& trace,
                                        Outer outer, Sink& sink, S* ds, Quadratic<S, Extent>* grad,
                                        bool wanted = true) {
  using At = Shared<PerWeight>;
  const int d = task.extent;
  const int layers = method.layers, heads = most ? 1 : method.kept;
  MEMFORMER_UNROLL
  for (int c = 0; c < d; ++c) ds[c] = S(0);
  MEMFORMER_UNROLL_LAYERS
  for (int l = (most ? most : layers) - 1; l >= 0; --l) {
    if (most && l >= layers) continue;
    outer(l, ds);
    MEMFORMER_UNROLL
    for (int c = 0; c < d; ++c) trace.update(l)[c] = ds[c];
    S dg[Extent::limit];
    MEMFORMER_UNROLL
    for (int c = 0; c < d; ++c) dg[c] = S(0);
    MEMFORMER_NO_UNROLL
    for (int h = 0; h < heads; ++h) {
      S r[Extent::limit], dr[Extent::limit];
      MEMFORMER_UNROLL
      for (int c = 0; c < d; ++c) r[c] = trace.memory(l, h)[c];
      if (!method.gamma) {
        MEMFORMER_UNROLL
        for (int c = 0; c < d; ++c) dr[c] = ds[c];
      } else if (method.diagonal) {
        MEMFORMER_UNROLL
        for (int c = 0; c < d; ++c) dr[c] = ds[c] * method.gamma[At::index(l * heads + h, d, c)];
        coefficient_grad<PerWeight>(task.extent, r, trace.update(l), l * heads + h,
                                    [&](int k, S value) { sink.gamma(k, value); });
      } else {
        MEMFORMER_UNROLL
        for (int c = 0; c < d; ++c) dr[c] = S(0);
        MEMFORMER_UNROLL_LAYERS
        for (int later = most ? 0 : l; later < (most ? most : layers); ++later) {
          if (most && (later < l || later >= layers)) continue;
          const int place = (later * layers + l) * heads + h;
          MEMFORMER_UNROLL
          for (int c = 0; c < d; ++c) dr[c] += trace.update(later)[c] * method.gamma[At::index(place, d, c)];
          coefficient_grad<PerWeight>(task.extent, r, trace.update(later), place,
                                      [&](int k, S value) { sink.gamma(k, value); });
        }
      }
      if (method.beta) {
        if (l + 1 < layers) {
          MEMFORMER_UNROLL
          for (int c = 0; c < d; ++c) {
            dr[c] += trace.memory_grad(l + 1, h)[c] * method.beta[At::index((l + 1) * heads + h, d, c)];
          }
        }
        MEMFORMER_UNROLL
        for (int c = 0; c < d; ++c) trace.memory_grad(l, h)[c] = dr[c];
        if (l > 0) {
          coefficient_grad<PerWeight>(task.extent, dr, trace.memory(l - 1, h), l * heads + h,
                                      [&](int k, S value) { sink.beta(k, value); });
        }
      }
      const ValueOf<S>* a = method.matrix(l * heads + h, d);
      matrix_grad(task.extent, dr, trace.residual(l), l * heads + h, sink);
      if (l == 0 && !(grad && wanted)) continue;
      MEMFORMER_UNROLL
      for (int i = 0; i < d; ++i) {
        MEMFORMER_UNROLL
        for (int j = 0; j < d; ++j) dg[j] += dr[i] * a[i * d + j];
      }
    }
    if (grad && wanted) {
      S s[Extent::limit];
      MEMFORMER_UNROLL
      for (int c = 0; c < d; ++c) s[c] = trace.state(l)[c];
      add_residual_grad(*grad, dg, s);
    }
    if (l > 0 || (grad && wanted)) add_residual_transpose(task, dg, ds);
  }
}

}  // namespace memformer::core
