// Response-only token space: features X stay, the response column s moves, with any gamma and beta along the tokens.
//
//   g_l = (1/n) sum_{i<n} x_i s_i;  r_{l,h} = X A_{l,h} g_l + beta_{l,h} * r_{l-1,h};  s += sum_h sum_{j<=l} gamma_{l,j,h} * r_{j,h}
//
// One task per S; its rows (features and response slot, D = d + 1 numbers each) and its trace are in memory that the caller
// provides, vectors of d numbers in registers. Operations per layer: n d (g) + R d^2 (A) + R N d (X A g) + (l + 1) R N; the
// last layer moves only the rows whose result is read. Backward: the same again and R d^2 for the gradient of A, and
// N d (R + 1) more for that of X.

#pragma once

#include "core/extent.h"
#include "core/scalar.h"

namespace memformer::core {

// a (L, R, d, d); gamma (L, L, R, rows or 1), (L, R, rows or 1) if `diagonal`, or null; beta (L, R, rows or 1) or null.
template <class T>
struct TokenMethod {
  int layers;
  int heads;
  bool diagonal;
  int gamma_rows;
  int beta_rows;
  const T* a;
  const T* gamma;
  const T* beta;

  MEMFORMER_INLINE int pair(int l, int j, int h) const { return (diagonal ? l : l * layers + j) * heads + h; }
  MEMFORMER_INLINE int gamma_at(int pair, int row) const { return pair * gamma_rows + (gamma_rows > 1 ? row : 0); }
  MEMFORMER_INLINE int beta_at(int l, int h, int row) const {
    return (l * heads + h) * beta_rows + (beta_rows > 1 ? row : 0);
  }
};

// A task's tokens: rows of d features and the response slot; the first `context` of them are labelled, or for ragged
// contexts those before `labelled`. The last layer moves rows from `last_rows` on.
template <class S, class Extent, int Stride>
struct TokenTask {
  Cells<const S, Stride> z;
  Extent extent;
  int rows;
  int context;
  int last_rows;
  bool ragged;
  S labelled;
  S scale;  // 1 / n

  MEMFORMER_INLINE int first_row(int l, int layers) const { return l + 1 == layers ? last_rows : 0; }
  MEMFORMER_INLINE S select(int row, S value) const {
    return ragged ? where_less(static_cast<ValueOf<S>>(row), labelled, value) : value;
  }
};

// Cells of a trace: s_0..s_{L-1} and the running s, u_0..u_{L-1}, r_{0..L-1,h}, two rounds of register gradients; g_l.
template <class S, class Extent, int Stride>
struct TokenTrace {
  Cells<S, Stride> cells;
  int layers;
  int heads;
  int rows;
  Extent extent;

  static MEMFORMER_INLINE int size(int layers, int heads, int rows, int d) {
    return (2 * layers + 1 + (layers + 2) * heads) * rows + layers * d;
  }
  MEMFORMER_INLINE Cells<S, Stride> state(int l) const { return cells.at(l * rows); }
  MEMFORMER_INLINE Cells<S, Stride> update(int l) const { return cells.at((layers + 1 + l) * rows); }
  MEMFORMER_INLINE Cells<S, Stride> memory(int l, int h) const { return cells.at((2 * layers + 1 + l * heads + h) * rows); }
  MEMFORMER_INLINE Cells<S, Stride> memory_grad(int l, int h) const {
    return cells.at((2 * layers + 1 + (layers + (l & 1)) * heads + h) * rows);
  }
  MEMFORMER_INLINE Cells<S, Stride> residual(int l) const {
    return cells.at((2 * layers + 1 + (layers + 2) * heads) * rows + l * extent);
  }
};

// v = A g.
template <class S>
MEMFORMER_INLINE void precondition(int d, const ValueOf<S>* a, const S* g, S* v) {
  MEMFORMER_UNROLL
  for (int i = 0; i < d; ++i) {
    S sum = g[0] * a[i * d];
    MEMFORMER_UNROLL
    for (int j = 1; j < d; ++j) sum += g[j] * a[i * d + j];
    v[i] = sum;
  }
}

// All L layers; trace.state(l) holds s_l, also for l = L. `after(l)` is called when s_{l+1} is complete.
template <class S, class Extent, int Stride, class After>
MEMFORMER_INLINE void token_forward(const TokenTask<S, Extent, Stride>& task, const TokenMethod<ValueOf<S>>& method,
                                    const TokenTrace<S, Extent, Stride>& trace, After after) {
  const int d = task.extent, width = task.extent + 1;
  const int layers = method.layers, heads = method.heads;
  for (int i = 0; i < task.rows; ++i) trace.state(0)[i] = task.z[i * width + d];
  for (int l = 0; l < layers; ++l) {
    const Cells<S, Stride> s = trace.state(l), next = trace.state(l + 1);
    S g[Extent::limit], v[Extent::limit];
    MEMFORMER_UNROLL
    for (int c = 0; c < d; ++c) g[c] = S(0);
    for (int i = 0; i < task.context; ++i) {
      MEMFORMER_UNROLL
      for (int c = 0; c < d; ++c) g[c] += task.select(i, task.z[i * width + c] * s[i]);
    }
    MEMFORMER_UNROLL
    for (int c = 0; c < d; ++c) trace.residual(l)[c] = g[c] = g[c] * task.scale;
    const int first = task.first_row(l, layers);
    for (int i = first; i < task.rows; ++i) next[i] = s[i];
    for (int h = 0; h < heads; ++h) {
      precondition(d, method.a + (l * heads + h) * d * d, g, v);
      for (int i = first; i < task.rows; ++i) {
        S r = task.z[i * width] * v[0];
        MEMFORMER_UNROLL
        for (int c = 1; c < d; ++c) r += task.z[i * width + c] * v[c];
        if (method.beta && l > 0) r += trace.memory(l - 1, h)[i] * method.beta[method.beta_at(l, h, i)];
        trace.memory(l, h)[i] = r;
        S sum = next[i];
        if (!method.gamma) {
          sum += r;
        } else if (method.diagonal) {
          sum += r * method.gamma[method.gamma_at(method.pair(l, l, h), i)];
        } else {
          for (int j = 0; j < l; ++j) sum += trace.memory(j, h)[i] * method.gamma[method.gamma_at(method.pair(l, j, h), i)];
          sum += r * method.gamma[method.gamma_at(method.pair(l, l, h), i)];
        }
        next[i] = sum;
      }
    }
    after(l);
  }
}

// Backward of `token_forward`. `outer(l, ds)` adds the gradient that reaches s_{l+1} from outside; the sink takes those of a,
// gamma and beta. Where `grad` has cells, the gradient of z is added to them.
template <class S, class Extent, int Stride, class Outer, class Sink>
MEMFORMER_INLINE void token_backward(const TokenTask<S, Extent, Stride>& task, const TokenMethod<ValueOf<S>>& method,
                                     const TokenTrace<S, Extent, Stride>& trace, Outer outer, Sink& sink,
                                     Cells<S, Stride> ds, Cells<S, Stride> grad) {
  const int d = task.extent, width = task.extent + 1;
  const int layers = method.layers, heads = method.heads, rows = task.rows;
  for (int i = 0; i < rows; ++i) ds[i] = S(0);
  for (int l = layers - 1; l >= 0; --l) {
    outer(l, ds);
    const int first = task.first_row(l, layers);
    for (int i = first; i < rows; ++i) trace.update(l)[i] = ds[i];
    S g[Extent::limit], dg[Extent::limit];
    MEMFORMER_UNROLL
    for (int c = 0; c < d; ++c) {
      g[c] = trace.residual(l)[c];
      dg[c] = S(0);
    }
    for (int h = 0; h < heads; ++h) {
      const Cells<S, Stride> r = trace.memory(l, h), dr = trace.memory_grad(l, h);
      for (int i = first; i < rows; ++i) dr[i] = S(0);
      if (!method.gamma) {
        for (int i = first; i < rows; ++i) dr[i] = ds[i];
      } else {
        const int last = method.diagonal ? l : layers - 1;
        for (int later = l; later <= last; ++later) {
          const Cells<S, Stride> u = trace.update(later);
          const int pair = method.pair(later, l, h), from = task.first_row(later, layers);
          S shared = S(0);
          for (int i = from; i < rows; ++i) {
            dr[i] += u[i] * method.gamma[method.gamma_at(pair, i)];
            if (method.gamma_rows > 1) {
              sink.gamma(method.gamma_at(pair, i), r[i] * u[i]);
            } else {
              shared += r[i] * u[i];
            }
          }
          if (method.gamma_rows == 1) sink.gamma(pair, shared);
        }
      }
      if (method.beta && l + 1 < layers) {
        const Cells<S, Stride> later = trace.memory_grad(l + 1, h);
        for (int i = task.first_row(l + 1, layers); i < rows; ++i) {
          dr[i] += later[i] * method.beta[method.beta_at(l + 1, h, i)];
        }
      }
      if (method.beta && l > 0) {
        S shared = S(0);
        for (int i = first; i < rows; ++i) {
          const S product = dr[i] * trace.memory(l - 1, h)[i];
          if (method.beta_rows > 1) {
            sink.beta(method.beta_at(l, h, i), product);
          } else {
            shared += product;
          }
        }
        if (method.beta_rows == 1) sink.beta(l * heads + h, shared);
      }
      S dv[Extent::limit];
      MEMFORMER_UNROLL
      for (int c = 0; c < d; ++c) dv[c] = S(0);
      for (int i = first; i < rows; ++i) {
        MEMFORMER_UNROLL
        for (int c = 0; c < d; ++c) dv[c] += task.z[i * width + c] * dr[i];
      }
      const int place = (l * heads + h) * d * d;
      const ValueOf<S>* a = method.a + place;
      MEMFORMER_UNROLL
      for (int i = 0; i < d; ++i) {
        MEMFORMER_UNROLL
        for (int j = 0; j < d; ++j) {
          sink.a(place + i * d + j, dv[i] * g[j]);
          dg[j] += dv[i] * a[i * d + j];
        }
      }
      if (grad.data) {
        S v[Extent::limit];
        precondition(d, a, g, v);
        for (int i = first; i < rows; ++i) {
          MEMFORMER_UNROLL
          for (int c = 0; c < d; ++c) grad[i * width + c] += dr[i] * v[c];
        }
      }
    }
    if (l == 0 && !grad.data) return;
    MEMFORMER_UNROLL
    for (int c = 0; c < d; ++c) dg[c] = dg[c] * task.scale;
    for (int i = 0; i < task.context; ++i) {
      S sum = task.z[i * width] * dg[0];
      MEMFORMER_UNROLL
      for (int c = 1; c < d; ++c) sum += task.z[i * width + c] * dg[c];
      ds[i] += task.select(i, sum);
    }
    if (grad.data) {
      for (int i = 0; i < task.context; ++i) {
        MEMFORMER_UNROLL
        for (int c = 0; c < d; ++c) grad[i * width + c] += task.select(i, dg[c] * trace.state(l)[i]);
      }
    }
  }
  if (grad.data) {
    for (int i = 0; i < rows; ++i) grad[i * width + d] += ds[i];
  }
}

}  // namespace memformer::core
