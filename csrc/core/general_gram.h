// Gram space for any P, Q and heads: with Z_l = Z_0 T_l the whole network runs on one D x D matrix a task.
//
//   G_l = T_l^T G_0 T_l;   R_{l,r} = T_l sum_h Q_h G_l P_h^T + beta_{l,r} * R_{l-1,r}
//   T_{l+1} = T_l + sum_r sum_{j<=l} gamma_{l,j,r} * R_{j,r}
//
// (Dutta & Sra, arXiv 2410.07263.) One task per S. G_0 is the context's Gram matrix divided by n, packed. Block
// structure keeps T = [X | s] (d x D): its last row is always 0 ... 0 1, and R's is zero. Operations for a layer and a
// head, dense, in multiply-adds: 4.5 D^3 + (l + 1) R D^2 forward, 12 D^3 + (2 l + 3) R D^2 backward. The trace lies
// with the caller.

#pragma once

#include "core/attention.h"
#include "core/memory.h"

namespace memformer::core {

// The matrices that a run needs beside its trace.
enum class Working { weighted, gram, query_gram, mixed, mixed_grad, change, grad };

// Cells for them: K = G_0 T, G, Q G, M; backward also the gradients of M, G and T.
template <class Shape>
MEMFORMER_INLINE constexpr int general_gram_scratch(Shape shape, bool backward) {
  return (backward ? 7 : 4) * shape.size();
}

// All of them in cells, one after another.
template <class S, int Stride>
struct WorkingCells {
  Cells<S, Stride> cells;
  int size;
  int width;

  template <Working Which>
  MEMFORMER_INLINE Matrix<S, Stride> matrix() const {
    return {cells.at(static_cast<int>(Which) * size), width};
  }
  // T_l, to be read many times: where it is, or a copy of so many numbers.
  template <class Shape>
  static constexpr int copied = 1;
  template <class View>
  MEMFORMER_INLINE View read_often(View state, S*) const {
    return state;
  }
};

// K = the first rows of G_0 T, and G = T^T G_0 T.
template <class S, class Shape, int Stride, class State, class Weighted, class View>
MEMFORMER_INLINE void transformed_gram(Shape shape, Cells<S, Stride> gram0, State state, Weighted weighted, View gram) {
  const auto rows = shape.rows;
  const auto width = shape.width();
  product<S>(rows, rows, width, weighted, Symmetric{gram0}, state);
  [[maybe_unused]] const int d = rows;
  if constexpr (Shape::block) {
    MEMFORMER_UNROLL_ROWS
    for (int i = 0; i < d; ++i) weighted(i, d) += gram0[packed(d, i)];
  }
  lower_product<S>(rows, rows, Mirrored{gram}, Transposed{state}, weighted);
  if constexpr (Shape::block) {
    MEMFORMER_UNROLL_ROWS
    for (int i = 0; i < d; ++i) product_tile<S, 1>(i, d, rows, gram, Transposed{state}, weighted);
  }
}

// The same at T_0 = I.
template <class S, class Shape, int Stride, class View>
MEMFORMER_INLINE void first_gram(Shape shape, Cells<S, Stride> gram0, View gram) {
  each_entry(shape.rows, shape.width(), [&](int i, int c, int) { gram(i, c) = gram0[packed(i, c)]; });
}

// All L layers. after(l, state) is called with the cells of T_{l+1}, rows x width, once they are made. `work` is
// WorkingCells or has its functions.
template <class S, class Shape, int GramStride, int Stride, class Work, class After>
MEMFORMER_INLINE void general_gram_forward(Shape shape, const Parameters<ValueOf<S>>& parameters,
                                           Cells<S, GramStride> gram0, const Trace<S, Stride>& trace, const Work& work,
                                           After after) {
  using T = ValueOf<S>;
  const auto rows = shape.rows;
  const auto width = shape.width();
  const int per_register = parameters.heads / parameters.kept;
  const auto weighted = work.template matrix<Working::weighted>();
  const auto gram = work.template matrix<Working::gram>();
  const auto query_gram = work.template matrix<Working::query_gram>();
  const auto mixed = work.template matrix<Working::mixed>();
  each_entry(rows, width, [&](int i, int c, int k) { trace.state(0)[k] = S(T(i == c ? 1 : 0)); });
  for (int l = 0; l < parameters.layers; ++l) {
    const Matrix state{trace.state(l), width};
    if (l == 0) {
      first_gram(shape, gram0, gram);
    } else {
      S copy[Work::template copied<Shape>];
      transformed_gram<S>(shape, gram0, work.read_often(state, copy), weighted, gram);
    }
    for (int r = 0; r < parameters.kept; ++r) {
      const int head = (l * parameters.heads + r * per_register) * shape.head();
      mix<S>(shape, parameters.q + head, parameters.p + head, per_register, gram, query_gram, mixed);
      const Matrix memory{trace.memory(l, r), width};
      if (l == 0) {
        each_entry(rows, width, [&](int i, int c, int) { memory(i, c) = mixed(i, c); });
      } else if (parameters.beta) {
        const T* beta = parameters.beta + parameters.beta_index(l, r, width);
        product<S>(rows, rows, width, Remembering<S, Stride>{memory, trace.memory(l - 1, r), beta, 0}, state, mixed);
      } else {
        product<S>(rows, rows, width, memory, state, mixed);
      }
    }
    update_state(parameters, l, rows, width, trace);
    after(l, trace.state(l + 1));
  }
}

template <class S, class Shape, int GramStride, int Stride, int ScratchStride, class After>
MEMFORMER_INLINE void general_gram_forward(Shape shape, const Parameters<ValueOf<S>>& parameters,
                                           Cells<S, GramStride> gram0, const Trace<S, Stride>& trace,
                                           Cells<S, ScratchStride> scratch, After after) {
  const WorkingCells<S, ScratchStride> work{scratch, shape.size(), shape.width()};
  general_gram_forward(shape, parameters, gram0, trace, work, after);
}

// Gradient of T, added to `grad`, and of G_0, added to `gram_grad` where wanted, from `change`: the gradient of G, its
// square part made symmetric. `weighted` = K; `spare` is free to be overwritten.
template <class S, class Shape, int Stride, class State, class Weighted, class View, class Grad>
MEMFORMER_INLINE void transformed_gram_backward(Shape shape, Cells<S, Stride> gram0, State state, Weighted weighted,
                                                View change, View spare, Grad grad, Cells<S, Stride> gram_grad) {
  const auto rows = shape.rows;
  const auto width = shape.width();
  [[maybe_unused]] const int d = rows;
  product<S>(rows, rows, width, spare, state, change);
  if (gram_grad.data) {
    lower_product<S>(rows, width, Adding{Symmetric{gram_grad}}, spare, Transposed{state});
  }
  product<S>(rows, width, rows, Adding{grad}, weighted, Transposed{change});
  if constexpr (Shape::block) {
    MEMFORMER_UNROLL_ROWS
    for (int i = 0; i < d; ++i) product_tile<S, 1>(i, d, rows, Adding{grad}, Symmetric{gram0}, spare);
    if (gram_grad.data) {
      MEMFORMER_UNROLL_ROWS
      for (int i = 0; i < d; ++i) {
        MEMFORMER_UNROLL_ROWS
        for (int c = 0; c <= i; ++c) gram_grad[packed(i, c)] += state(i, d) * spare(c, d);
        gram_grad[packed(d, i)] += spare(i, d);
      }
    }
  }
}

// Backward of a run that kept its trace. outer(l, grad) adds the gradient that reaches T_{l+1} from outside to the
// cells `grad`, rows x width; T_{l+1} is still in the trace then. The sink takes the gradients of q, p, gamma and beta
// by their flat index. `gram_grad`, where not null, collects the packed symmetric matrix C = E + E^T for the gradient E
// of G_0 taken as a matrix without symmetry: the gradient of a context row is C z / n. Block structure never touches
// C's last corner.
template <class S, class Shape, int GramStride, int Stride, class Work, class Outer, class Sink>
MEMFORMER_INLINE void general_gram_backward(Shape shape, const Parameters<ValueOf<S>>& parameters,
                                            Cells<S, GramStride> gram0, const Trace<S, Stride>& trace, const Work& work,
                                            Outer outer, Sink& sink, Cells<S, GramStride> gram_grad) {
  const auto rows = shape.rows;
  const auto width = shape.width();
  const int per_register = parameters.heads / parameters.kept;
  const auto weighted = work.template matrix<Working::weighted>();
  const auto gram = work.template matrix<Working::gram>();
  const auto query_gram = work.template matrix<Working::query_gram>();
  const auto mixed = work.template matrix<Working::mixed>();
  const auto mixed_grad = work.template matrix<Working::mixed_grad>();
  const auto change = work.template matrix<Working::change>();
  const auto grad = work.template matrix<Working::grad>();
  each_entry(rows, width, [&](int i, int c, int) { grad(i, c) = S(0); });
  for (int l = parameters.layers - 1; l >= 0; --l) {
    outer(l, grad.cells);
    if (!parameters.newest_only()) {
      each_entry(rows, width, [&](int, int, int k) { trace.update_grad(l)[k] = grad.cells[k]; });
    }
    register_grads(parameters, l, rows, width, trace, grad.cells, sink);
    const Matrix state{trace.state(l), width};
    if (l == 0) {
      first_gram(shape, gram0, gram);
    } else {
      S copy[Work::template copied<Shape>];
      transformed_gram<S>(shape, gram0, work.read_often(state, copy), weighted, gram);
    }
    each_entry(rows, width, [&](int i, int c, int) { change(i, c) = S(0); });
    for (int r = 0; r < parameters.kept; ++r) {
      const int head = (l * parameters.heads + r * per_register) * shape.head();
      const Matrix memory_grad{trace.memory_grad(r), width};
      if (l == 0) {
        const Parameter<S> last{parameters.q + head + (per_register - 1) * shape.head(), rows};
        product<S>(rows, rows, width, query_gram, last, gram);
        each_entry(rows, width, [&](int i, int c, int) { mixed_grad(i, c) = memory_grad(i, c); });
      } else {
        mix<S>(shape, parameters.q + head, parameters.p + head, per_register, gram, query_gram, mixed);
        product<S>(rows, rows, width, mixed_grad, Transposed{state}, memory_grad);
        product<S>(rows, width, rows, Adding{grad}, memory_grad, Transposed{mixed});
      }
      mix_backward<S>(shape, parameters.q + head, parameters.p + head, per_register, head, gram, query_gram, mixed_grad,
                      mixed, change, sink);
    }
    symmetrise(rows, change);
    if (l > 0) {
      transformed_gram_backward<S>(shape, gram0, state, weighted, change, query_gram, grad, gram_grad);
    } else if (gram_grad.data) {
      each_entry(rows, width, [&](int i, int c, int) {
        if (c <= i || c >= rows) gram_grad[packed(i, c)] += change(i, c);
      });
    }
  }
}

template <class S, class Shape, int GramStride, int Stride, int ScratchStride, class Outer, class Sink>
MEMFORMER_INLINE void general_gram_backward(Shape shape, const Parameters<ValueOf<S>>& parameters,
                                            Cells<S, GramStride> gram0, const Trace<S, Stride>& trace,
                                            Cells<S, ScratchStride> scratch, Outer outer, Sink& sink,
                                            Cells<S, GramStride> gram_grad) {
  const WorkingCells<S, ScratchStride> work{scratch, shape.size(), shape.width()};
  general_gram_backward(shape, parameters, gram0, trace, work, outer, sink, gram_grad);
}

}  // namespace memformer::core
