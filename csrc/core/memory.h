// Memory registers of one task: how a layer weights the registers it has kept, and the transpose of that.
//
// States, updates and registers are grids of rows x width cells: tokens (N x D), or the transform of Gram space. A
// coefficient is one number an entry of the grid, or one a column where rows share it (`row_step` 0). Operations: one
// multiply-add an entry and a coefficient.

#pragma once

#include "core/coefficients.h"
#include "core/matrix.h"

namespace memformer::core {

// Parameters of a network, the same for every task: coefficients of D numbers a row, and q, p (L, H, rows, rows) with
// rows = d (block) or D (dense).
template <class T>
struct Parameters : Coefficients<T> {
  int heads;
  const T* q;
  const T* p;
};

template <class Rows, class Width, class Body>
MEMFORMER_INLINE void each_entry(Rows rows, Width width, Body body) {
  const int row_count = rows, column_count = width;
  MEMFORMER_UNROLL_ROWS
  for (int i = 0; i < row_count; ++i) {
    if constexpr (is_fixed<Width>) {
      MEMFORMER_UNROLL_COLUMNS
      for (int c = 0; c < Width::limit; ++c) body(i, c, i * column_count + c);
    } else {
      for (int c = 0; c < column_count; ++c) body(i, c, i * column_count + c);
    }
  }
}

// A sum over `count` grids, `source_step` cells apart, each times its coefficients, `coefficient_step` numbers apart.
template <class S, int Stride>
struct Weighted {
  Cells<S, Stride> source;
  int source_step;
  int count;
  const ValueOf<S>* coefficient;
  int coefficient_step;
  int row_step;

  // Adds columns [first, first + Tile) of a row to `sum`.
  template <int Tile, class Width>
  MEMFORMER_INLINE void add(int row, int first, Width width, S* sum) const {
    Cells<S, Stride> from = source.at(row * width + first);
    const ValueOf<S>* weight = coefficient + row * row_step + first;
    for (int k = 0; k < count; ++k) {
      MEMFORMER_UNROLL_COLUMNS
      for (int t = 0; t < Tile; ++t) sum[t] += from[t] * weight[t];
      from = from.at(source_step);
      weight += coefficient_step;
    }
  }
};

template <int Tile, class S, int Stride, class Width, int SourceStride>
MEMFORMER_INLINE void add_weighted_tile(int row, int first, Width width, Cells<S, Stride> base, Cells<S, Stride> target,
                                        const Weighted<S, SourceStride>& weighted) {
  const int start = row * width + first;
  S sum[Tile];
  MEMFORMER_UNROLL_COLUMNS
  for (int t = 0; t < Tile; ++t) sum[t] = base.data ? base[start + t] : S(0);
  weighted.template add<Tile>(row, first, width, sum);
  MEMFORMER_UNROLL_COLUMNS
  for (int t = 0; t < Tile; ++t) target[start + t] = sum[t];
}

// target = base + the weighted sum; a null base is zero, and may be the target.
template <class S, int Stride, class Rows, class Width, int SourceStride>
MEMFORMER_INLINE void add_weighted(Rows rows, Width width, Cells<S, Stride> base, Cells<S, Stride> target,
                                   const Weighted<S, SourceStride>& weighted) {
  if (!weighted.coefficient) {
    each_entry(rows, width,
               [&](int, int, int k) { target[k] = base.data ? base[k] + weighted.source[k] : weighted.source[k]; });
    return;
  }
  const int row_count = rows, column_count = width;
  MEMFORMER_UNROLL_ROWS
  for (int row = 0; row < row_count; ++row) {
    if constexpr (is_fixed<Width>) {
      add_weighted_tile<Width::limit>(row, 0, width, base, target, weighted);
    } else {
      int first = 0;
      for (; first + 4 <= column_count; first += 4) add_weighted_tile<4>(row, first, width, base, target, weighted);
      for (; first < column_count; ++first) add_weighted_tile<1>(row, first, width, base, target, weighted);
    }
  }
}

// cells *= coefficient.
template <class S, int Stride, class Rows, class Width>
MEMFORMER_INLINE void scale_entries(Rows rows, Width width, Cells<S, Stride> cells, const ValueOf<S>* coefficient,
                                    int step) {
  each_entry(rows, width, [&](int i, int c, int k) { cells[k] = cells[k] * coefficient[i * step + c]; });
}

// Gradient of a coefficient that multiplies `source` into what has the gradient `grad`: add(index, value) from `begin`
// on.
template <class S, int Stride, int GradStride, class Rows, class Width, class Add>
MEMFORMER_INLINE void coefficient_grad(Rows rows, Width width, Cells<S, Stride> source, Cells<S, GradStride> grad,
                                       int begin, int step, Add add) {
  if (step) {
    each_entry(rows, width, [&](int i, int c, int k) { add(begin + i * step + c, source[k] * grad[k]); });
    return;
  }
  const int row_count = rows, column_count = width;
  if constexpr (is_fixed<Width>) {
    constexpr int columns = Width::limit;
    S sum[columns];
    MEMFORMER_UNROLL_COLUMNS
    for (int c = 0; c < columns; ++c) sum[c] = source[c] * grad[c];
    MEMFORMER_UNROLL_ROWS
    for (int i = 1; i < row_count; ++i) {
      MEMFORMER_UNROLL_COLUMNS
      for (int c = 0; c < columns; ++c) sum[c] += source[i * columns + c] * grad[i * columns + c];
    }
    MEMFORMER_UNROLL_COLUMNS
    for (int c = 0; c < columns; ++c) add(begin + c, sum[c]);
  } else {
    for (int c = 0; c < column_count; ++c) {
      S sum = source[c] * grad[c];
      for (int i = 1; i < row_count; ++i) sum += source[i * column_count + c] * grad[i * column_count + c];
      add(begin + c, sum);
    }
  }
}

// The grids of a run, `size` cells each: states X_0, ..., X_L, then registers R_{l,r}, then a layer's register
// gradients. A run that nothing goes back through has no `keep`: it needs only the newest state, only the newest
// registers where no older one is weighted, and no gradients. A backward run overwrites X_{l+1}, once it is past layer
// l, with the gradient of layer l's update.
template <class S, int Stride>
struct Trace {
  Cells<S, Stride> cells;
  int layers;
  int kept;
  int size;
  bool keep_states;
  bool keep_registers;

  template <class T>
  MEMFORMER_INLINE Trace(Cells<S, Stride> where, const Parameters<T>& parameters, int grid, bool keep)
      : cells(where),
        layers(parameters.layers),
        kept(parameters.kept),
        size(grid),
        keep_states(keep),
        keep_registers(keep || !parameters.newest_only()) {}

  template <class T>
  static MEMFORMER_INLINE int count(const Parameters<T>& parameters, int grid, bool keep) {
    const bool registers = keep || !parameters.newest_only();
    return ((keep ? parameters.layers + 1 : 1) +
            ((registers ? parameters.layers : 1) + (keep ? 1 : 0)) * parameters.kept) *
           grid;
  }

  MEMFORMER_INLINE Cells<S, Stride> state(int l) const { return cells.at(keep_states ? l * size : 0); }
  MEMFORMER_INLINE Cells<S, Stride> memory(int l, int r) const {
    const int first = keep_states ? layers + 1 : 1;
    return cells.at((first + (keep_registers ? l * kept : 0) + r) * size);
  }
  MEMFORMER_INLINE Cells<S, Stride> memory_grad(int r) const { return memory(layers, r); }
  MEMFORMER_INLINE Cells<S, Stride> update_grad(int l) const { return state(l + 1); }
};

// X_{l+1} = X_l + sum_r sum_{j<=l} gamma_{l,j,r} * R_{j,r}.
template <class S, int Stride, class Rows, class Width>
MEMFORMER_INLINE void update_state(const Parameters<ValueOf<S>>& parameters, int l, Rows rows, Width width,
                                   const Trace<S, Stride>& trace) {
  const int oldest = parameters.newest_only() ? l : 0;
  const int step = row_step(parameters.gamma_rows, width);
  for (int r = 0; r < parameters.kept; ++r) {
    const ValueOf<S>* gamma =
        parameters.gamma ? parameters.gamma + parameters.gamma_index(l, oldest, r, width) : nullptr;
    const Weighted<S, Stride> weighted{trace.memory(oldest, r),
                                       parameters.kept * trace.size,
                                       l - oldest + 1,
                                       gamma,
                                       parameters.kept * parameters.gamma_rows * width,
                                       step};
    add_weighted(rows, width, r == 0 ? trace.state(l) : trace.state(l + 1), trace.state(l + 1), weighted);
  }
}

// Gradients of layer l's registers, in place of those of layer l + 1, and of gamma_{., l} and beta_l. `update` is the
// gradient of layer l's update.
template <class S, int Stride, int ScratchStride, class Rows, class Width, class Sink>
MEMFORMER_INLINE void register_grads(const Parameters<ValueOf<S>>& parameters, int l, Rows rows, Width width,
                                     const Trace<S, Stride>& trace, Cells<S, ScratchStride> update, Sink& sink) {
  using T = ValueOf<S>;
  const int layers = parameters.layers;
  const int gamma_step = row_step(parameters.gamma_rows, width);
  const int beta_step = row_step(parameters.beta_rows, width);
  const auto add_gamma = [&](int k, S value) { sink.gamma(k, value); };
  const auto add_beta = [&](int k, S value) { sink.beta(k, value); };
  for (int r = 0; r < parameters.kept; ++r) {
    const Cells<S, Stride> grad = trace.memory_grad(r);
    const bool remembered = parameters.beta && l + 1 < layers;
    if (remembered)
      scale_entries(rows, width, grad, parameters.beta + parameters.beta_index(l + 1, r, width), beta_step);
    const Cells<S, Stride> base = remembered ? grad : Cells<S, Stride>{nullptr};
    if (parameters.newest_only()) {
      const int begin = parameters.gamma_index(l, l, r, width);
      const T* gamma = parameters.gamma ? parameters.gamma + begin : nullptr;
      add_weighted(rows, width, base, grad, Weighted<S, ScratchStride>{update, 0, 1, gamma, 0, gamma_step});
      if (gamma) coefficient_grad(rows, width, trace.memory(l, r), update, begin, gamma_step, add_gamma);
    } else {
      const T* gamma = parameters.gamma + parameters.gamma_index(l, l, r, width);
      const int next = layers * parameters.kept * parameters.gamma_rows * width;
      add_weighted(rows, width, base, grad,
                   Weighted<S, Stride>{trace.update_grad(l), trace.size, layers - l, gamma, next, gamma_step});
      for (int later = l; later < layers; ++later) {
        coefficient_grad(rows, width, trace.memory(l, r), trace.update_grad(later),
                         parameters.gamma_index(later, l, r, width), gamma_step, add_gamma);
      }
    }
    if (parameters.beta && l > 0) {
      coefficient_grad(rows, width, trace.memory(l - 1, r), grad, parameters.beta_index(l, r, width), beta_step,
                       add_beta);
    }
  }
}

}  // namespace memformer::core
