// The matrices of attention: M = sum_h Q_h G P_h^T for the Gram matrix G of a task, and its backward.
//
// Block: Q_h = [[A_h, 0], [0, 0]] and P_h = [[Bm_h, 0], [0, 1]] with A, Bm (d x d): only the first d rows of M are not
// zero, and they need only the first d rows of G. So G and M are rows x width: d x D (block) or D x D (dense). One task
// per S; with rows = width = D: 2 D^3 multiply-adds a head, 4 D^3 backward (6 D^3 with several heads).

#pragma once

#include "core/matrix.h"

namespace memformer::core {

// Rows and columns of a task's matrices: d and D, or D and D.
template <bool Block, class Extent>
struct Shape {
  static constexpr bool block = Block;
  Extent rows;
  MEMFORMER_INLINE constexpr auto width() const {
    if constexpr (Block) {
      return successor(rows);
    } else {
      return rows;
    }
  }
  MEMFORMER_INLINE constexpr int size() const { return rows * width(); }
  // Entries of one head's q or p.
  MEMFORMER_INLINE constexpr int head() const { return rows * rows; }
};

// Where a product's rows go when they are gradients of q or p.
template <class Sink>
struct QGrad {
  Sink& sink;
  int begin;
  int width;
  template <class S>
  MEMFORMER_INLINE void put(int row, int column, S value) const {
    sink.q(begin + row * width + column, value);
  }
};

template <class Sink>
struct PGrad {
  Sink& sink;
  int begin;
  int width;
  template <class S>
  MEMFORMER_INLINE void put(int row, int column, S value) const {
    sink.p(begin + row * width + column, value);
  }
};

// `mixed` = sum over `heads` heads of Q_h G P_h^T; `query_gram` is left with Q_h G of the last head.
template <class S, class Shape, class View>
MEMFORMER_INLINE void mix(Shape shape, const ValueOf<S>* q, const ValueOf<S>* p, int heads, View gram, View query_gram,
                          View mixed) {
  const auto rows = shape.rows;
  const auto width = shape.width();
  const int d = rows;
  for (int h = 0; h < heads; ++h) {
    product<S>(rows, rows, width, query_gram, Parameter<S>{q + h * shape.head(), d}, gram);
    const Transposed projection{Parameter<S>{p + h * shape.head(), d}};
    if (h == 0) {
      product<S>(rows, rows, rows, mixed, query_gram, projection);
      if constexpr (Shape::block) {
        MEMFORMER_UNROLL_ROWS
        for (int i = 0; i < d; ++i) mixed(i, d) = query_gram(i, d);
      }
    } else {
      product<S>(rows, rows, rows, Adding{mixed}, query_gram, projection);
      if constexpr (Shape::block) {
        MEMFORMER_UNROLL_ROWS
        for (int i = 0; i < d; ++i) mixed(i, d) += query_gram(i, d);
      }
    }
  }
}

// Adds the gradient of G to `gram_grad`, and gives those of q and p to the sink, by the index of their head's first
// entry `begin`. `query_gram` as `mix` has left it; `query_grad` is free to be overwritten.
template <class S, class Shape, class View, class Sink>
MEMFORMER_INLINE void mix_backward(Shape shape, const ValueOf<S>* q, const ValueOf<S>* p, int heads, int begin,
                                   View gram, View query_gram, View mixed_grad, View query_grad, View gram_grad,
                                   Sink& sink) {
  const auto rows = shape.rows;
  const auto width = shape.width();
  const int d = rows;
  for (int h = heads - 1; h >= 0; --h) {
    const Parameter<S> query{q + h * shape.head(), d};
    const Parameter<S> projection{p + h * shape.head(), d};
    if (h != heads - 1) product<S>(rows, rows, width, query_gram, query, gram);
    product<S>(rows, rows, rows, PGrad<Sink>{sink, begin + h * shape.head(), d}, Transposed{mixed_grad}, query_gram);
    product<S>(rows, rows, rows, query_grad, mixed_grad, projection);
    if constexpr (Shape::block) {
      MEMFORMER_UNROLL_ROWS
      for (int i = 0; i < d; ++i) query_grad(i, d) = mixed_grad(i, d);
    }
    product<S>(rows, width, rows, QGrad<Sink>{sink, begin + h * shape.head(), d}, query_grad, Transposed{gram});
    product<S>(rows, rows, width, Adding{gram_grad}, Transposed{query}, query_grad);
  }
}

// From the gradient of G, in place: that of G + G^T, for the part of G that is a square.
template <class Rows, class View>
MEMFORMER_INLINE void symmetrise(Rows rows, View gram_grad) {
  const int d = rows;
  MEMFORMER_UNROLL_ROWS
  for (int i = 0; i < d; ++i) {
    MEMFORMER_UNROLL_ROWS
    for (int c = 0; c <= i; ++c) {
      const auto sum = gram_grad(i, c) + gram_grad(c, i);
      gram_grad(i, c) = sum;
      gram_grad(c, i) = sum;
    }
  }
}

// A register's target: the product, plus beta times the register of the layer before.
template <class S, int Stride>
struct Remembering {
  Matrix<S, Stride> view;
  Cells<S, Stride> before;
  const ValueOf<S>* beta;
  int row_step;
  MEMFORMER_INLINE void put(int row, int column, S value) const {
    view(row, column) = value + before[row * view.width + column] * beta[row * row_step + column];
  }
};

}  // namespace memformer::core
