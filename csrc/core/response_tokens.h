// Response-only token space: features X stay, the response column s moves, with any gamma and beta along the tokens.
//
//   g_l = (1/n) sum_{i<n} x_i s_i;   r_{l,h} = X A_{l,h} g_l + beta_{l,h} * r_{l-1,h}
//   s += sum_h sum_{j<=l} gamma_{l,j,h} * r_{j,h}
//
// One task per S; its rows (features and response slot, D = d + 1 numbers each) and its trace are in memory that the
// caller provides, vectors of d numbers in registers. Operations per layer: n d (g) + R d^2 (A) + R N d (X A g) + (l
// + 1) R N; the last layer moves only the rows whose result is read. Backward: the same again and R d^2 for the
// gradient of A, and N d (R + 1) more for that of X. On a GPU a team of lanes may have one task: the rows are theirs
// in turn, vectors of d numbers are kept by all of them.

#pragma once

#include "core/coefficients.h"
#include "core/extent.h"
#include "core/scalar.h"

namespace memformer::core {

// Parameters shared by all tasks: a (L, R, d, d), and coefficients of one number a row, which lie `gamma_step`,
// `beta_step` apart.
template <class T>
struct TokenMethod : Coefficients<T> {
  const T* a;

  MEMFORMER_INLINE int gamma_step() const { return this->gamma_rows > 1; }
  MEMFORMER_INLINE int beta_step() const { return this->beta_rows > 1; }
};

// Who works on a task's rows: one thread on all of them.
struct Alone {
  static constexpr bool alone = true;
  static constexpr int step = 1;
  // This thread's first row that is not before `row`; the next are `step` apart.
  MEMFORMER_INLINE int from(int row) const { return row; }
  // Rows of `width` numbers lie this far apart.
  MEMFORMER_INLINE int pitch(int width) const { return width; }
  // Adds up what every thread of the task has of a vector.
  template <class S, class Extent>
  MEMFORMER_INLINE void sum(S*, Extent) const {}
};

// A task's tokens: rows of d features and the response slot; the first `context` of them are labelled, or for ragged
// contexts those before `labelled`. The last layer moves rows from `last_rows` on.
template <class S, class Extent, int Stride, class Team = Alone>
struct TokenTask {
  Cells<const S, Stride> z;
  Extent extent;
  int rows;
  int context;
  int last_rows;
  bool ragged;
  S labelled;
  S scale;  // 1 / n
  Team team = {};

  MEMFORMER_INLINE int pitch() const { return team.pitch(extent + 1); }
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
  MEMFORMER_INLINE Cells<S, Stride> memory(int l, int h) const {
    return cells.at((2 * layers + 1 + l * heads + h) * rows);
  }
  MEMFORMER_INLINE Cells<S, Stride> memory_grad(int l, int h) const {
    return cells.at((2 * layers + 1 + (layers + (l & 1)) * heads + h) * rows);
  }
  MEMFORMER_INLINE Cells<S, Stride> residual(int l) const {
    return cells.at((2 * layers + 1 + (layers + 2) * heads) * rows + l * extent);
  }
};

// v = A g.
template <class S, class Extent>
MEMFORMER_INLINE void precondition(Extent d, const ValueOf<S>* a, const S* g, S* v) {
  MEMFORMER_EACH(i, d) {
    S sum = g[0] * a[i * d];
    MEMFORMER_EACH_FROM(1, j, d) sum += g[j] * a[i * d + j];
    v[i] = sum;
  }
}

// total += sum over rows [first, last) of x_i weights_i, even and odd rows apart: half as long a chain of additions.
template <class S, class Extent, int Stride, class Team>
MEMFORMER_INLINE void add_rows(const TokenTask<S, Extent, Stride, Team>& task, int first, int last,
                               Cells<S, Stride> weights, S* total) {
  const auto d = task.extent;
  const int pitch = task.pitch();
  S other[Extent::limit];
  MEMFORMER_EACH(c, d) other[c] = S(0);
  int i = task.team.from(first);
  for (; i + Team::step < last; i += 2 * Team::step) {
    MEMFORMER_EACH(c, d) {
      total[c] += task.z[i * pitch + c] * weights[i];
      other[c] += task.z[(i + Team::step) * pitch + c] * weights[i + Team::step];
    }
  }
  if (i < last) {
    MEMFORMER_EACH(c, d) total[c] += task.z[i * pitch + c] * weights[i];
  }
  MEMFORMER_EACH(c, d) total[c] += other[c];
}

// x_i . v of a row.
template <class S, class Extent, int Stride, class Team>
MEMFORMER_INLINE S row_product(const TokenTask<S, Extent, Stride, Team>& task, int row, const S* v) {
  const auto d = task.extent;
  const int pitch = task.pitch();
  S sum = task.z[row * pitch] * v[0];
  MEMFORMER_EACH_FROM(1, c, d) sum += task.z[row * pitch + c] * v[c];
  return sum;
}

// to_i += from_i * coefficients_i over rows [first, last), coefficients `step` apart.
template <class S, int Stride, class Team>
MEMFORMER_INLINE void add_weighted(const Team& team, Cells<S, Stride> to, Cells<S, Stride> from,
                                   const ValueOf<S>* coefficients, int step, int first, int last) {
  for (int i = team.from(first); i < last; i += Team::step) to[i] += from[i] * coefficients[i * step];
}

template <class S, int Stride, class Team>
MEMFORMER_INLINE void add_two_weighted(const Team& team, Cells<S, Stride> to, Cells<S, Stride> one,
                                       Cells<S, Stride> other, const ValueOf<S>* of_one, const ValueOf<S>* of_other,
                                       int step, int first, int last) {
  for (int i = team.from(first); i < last; i += Team::step)
    to[i] += one[i] * of_one[i * step] + other[i] * of_other[i * step];
}

// add(at + i * step, left_i * right_i) over rows [first, last); once, with the sum over rows, where they share `at`.
template <class S, int Stride, class Add>
MEMFORMER_INLINE void row_products(Cells<S, Stride> left, Cells<S, Stride> right, int first, int last, int at, int step,
                                   Add add) {
  if (step) {
    for (int i = first; i < last; ++i) add(at + i, left[i] * right[i]);
    return;
  }
  S sum = S(0);
  for (int i = first; i < last; ++i) sum += left[i] * right[i];
  add(at, sum);
}

// All L layers; trace.state(l) holds s_l, also for l = L. `after(l)` is called when s_{l+1} is complete.
template <class S, class Extent, int Stride, class Team, class After>
MEMFORMER_INLINE void token_forward(const TokenTask<S, Extent, Stride, Team>& task,
                                    const TokenMethod<ValueOf<S>>& method, const TokenTrace<S, Extent, Stride>& trace,
                                    After after) {
  constexpr int row_step = Team::step;
  const auto d = task.extent;
  const int pitch = task.pitch();
  const int layers = method.layers, heads = method.kept;
  for (int i = task.team.from(0); i < task.rows; i += row_step) trace.state(0)[i] = task.z[i * pitch + d];
  for (int l = 0; l < layers; ++l) {
    const Cells<S, Stride> s = trace.state(l), next = trace.state(l + 1);
    S g[Extent::limit], v[Extent::limit];
    MEMFORMER_EACH(c, d) g[c] = S(0);
    if (task.ragged) {
      for (int i = task.team.from(0); i < task.context; i += row_step) {
        MEMFORMER_EACH(c, d) g[c] += task.select(i, task.z[i * pitch + c] * s[i]);
      }
    } else {
      add_rows(task, 0, task.context, s, g);
    }
    task.team.sum(g, d);
    MEMFORMER_EACH(c, d) trace.residual(l)[c] = g[c] = g[c] * task.scale;
    const int first = task.first_row(l, layers);
    for (int h = 0; h < heads; ++h) {
      precondition(d, method.a + (l * heads + h) * d * d, g, v);
      const Cells<S, Stride> r = trace.memory(l, h), base = h == 0 ? s : next;
      const ValueOf<S>* const own = method.gamma ? method.gamma + method.gamma_index(l, l, h) : nullptr;
      const int step = method.gamma ? method.gamma_step() : 0;
      if (method.beta && l > 0) {
        const ValueOf<S>* const beta = method.beta + method.beta_index(l, h);
        for (int i = task.team.from(first); i < task.rows; i += row_step) {
          r[i] = row_product(task, i, v) + trace.memory(l - 1, h)[i] * beta[i * method.beta_step()];
          next[i] = base[i] + (own ? r[i] * own[i * step] : r[i]);
        }
      } else {
        for (int i = task.team.from(first); i < task.rows; i += row_step) {
          const S fresh = row_product(task, i, v);
          r[i] = fresh;
          next[i] = base[i] + (own ? fresh * own[i * step] : fresh);
        }
      }
      if (!method.gamma || method.diagonal) continue;
      int j = 0;
      for (; j + 1 < l; j += 2) {
        add_two_weighted(task.team, next, trace.memory(j, h), trace.memory(j + 1, h),
                         method.gamma + method.gamma_index(l, j, h), method.gamma + method.gamma_index(l, j + 1, h),
                         step, first, task.rows);
      }
      if (j < l) {
        add_weighted(task.team, next, trace.memory(j, h), method.gamma + method.gamma_index(l, j, h), step, first,
                     task.rows);
      }
    }
    after(l);
  }
}

// Backward of `token_forward`. `outer(l, ds)` adds the gradient that reaches s_{l+1} from outside; the sink takes
// those of a, gamma and beta. Where `grad` has cells, the gradient of z is added to them.
template <class S, class Extent, int Stride, class Team, class Outer, class Sink>
MEMFORMER_INLINE void token_backward(const TokenTask<S, Extent, Stride, Team>& task,
                                     const TokenMethod<ValueOf<S>>& method, const TokenTrace<S, Extent, Stride>& trace,
                                     Outer outer, Sink& sink, Cells<S, Stride> ds, Cells<S, Stride> grad) {
  constexpr int row_step = Team::step;
  const auto d = task.extent;
  const Team& team = task.team;
  const int pitch = task.pitch();
  const int layers = method.layers, heads = method.kept, rows = task.rows;
  for (int i = team.from(0); i < rows; i += row_step) ds[i] = S(0);
  for (int l = layers - 1; l >= 0; --l) {
    outer(l, ds);
    const int first = task.first_row(l, layers);
    for (int i = team.from(first); i < rows; i += row_step) trace.update(l)[i] = ds[i];
    S g[Extent::limit], dg[Extent::limit];
    MEMFORMER_EACH(c, d) {
      g[c] = trace.residual(l)[c];
      dg[c] = S(0);
    }
    for (int h = 0; h < heads; ++h) {
      const Cells<S, Stride> r = trace.memory(l, h), dr = trace.memory_grad(l, h);
      if (!method.gamma) {
        for (int i = team.from(first); i < rows; i += row_step) dr[i] = ds[i];
      } else {
        const int last = method.diagonal ? l : layers - 1, step = method.gamma_step();
        for (int later = l; later <= last; ++later) {
          const Cells<S, Stride> u = trace.update(later);
          const int at = method.gamma_index(later, l, h), from = task.first_row(later, layers);
          const ValueOf<S>* const gamma = method.gamma + at;
          [[maybe_unused]] S shared = S(0);
          for (int i = team.from(from); i < rows; i += row_step) {
            const S change = u[i];
            dr[i] = later == l ? change * gamma[i * step] : dr[i] + change * gamma[i * step];
            if constexpr (Team::alone) {
              if (step) {
                sink.gamma(at + i, r[i] * change);
              } else {
                shared += r[i] * change;
              }
            }
          }
          if constexpr (Team::alone) {
            if (!step) sink.gamma(at, shared);
          } else {
            sink.gamma_products(at, step, r, u, from, rows);
          }
        }
      }
      if (method.beta && l + 1 < layers) {
        add_weighted(team, dr, trace.memory_grad(l + 1, h), method.beta + method.beta_index(l + 1, h),
                     method.beta_step(), task.first_row(l + 1, layers), rows);
      }
      if (method.beta && l > 0) {
        if constexpr (Team::alone) {
          row_products(dr, trace.memory(l - 1, h), first, rows, method.beta_index(l, h), method.beta_step(),
                       [&](int k, S value) { sink.beta(k, value); });
        } else {
          sink.beta_products(method.beta_index(l, h), method.beta_step(), dr, trace.memory(l - 1, h), first, rows);
        }
      }
      S dv[Extent::limit];
      MEMFORMER_EACH(c, d) dv[c] = S(0);
      add_rows(task, first, rows, dr, dv);
      team.sum(dv, d);
      const int place = (l * heads + h) * d * d;
      const ValueOf<S>* a = method.a + place;
      if constexpr (Team::alone) {
        MEMFORMER_EACH(i, d) { MEMFORMER_EACH(j, d) sink.a(place + i * d + j, dv[i] * g[j]); }
      } else {
        sink.outer_product(place, d, dv, trace.residual(l));
      }
      if (l == 0 && !grad.data) continue;
      MEMFORMER_EACH(i, d) { MEMFORMER_EACH(j, d) dg[j] += dv[i] * a[i * d + j]; }
      if (grad.data) {
        S v[Extent::limit];
        precondition(d, a, g, v);
        for (int i = team.from(first); i < rows; i += row_step) {
          MEMFORMER_EACH(c, d) grad[i * pitch + c] += dr[i] * v[c];
        }
      }
    }
    if (l == 0 && !grad.data) return;
    MEMFORMER_EACH(c, d) dg[c] = dg[c] * task.scale;
    if (task.ragged) {
      for (int i = team.from(0); i < task.context; i += row_step) ds[i] += task.select(i, row_product(task, i, dg));
    } else {
      for (int i = team.from(0); i < task.context; i += row_step) ds[i] += row_product(task, i, dg);
    }
    if (grad.data) {
      for (int i = team.from(0); i < task.context; i += row_step) {
        MEMFORMER_EACH(c, d) grad[i * pitch + c] += task.select(i, dg[c] * trace.state(l)[i]);
      }
    }
  }
  if (grad.data) {
    for (int i = team.from(0); i < rows; i += row_step) grad[i * pitch + d] += ds[i];
  }
}

}  // namespace memformer::core
