// One layer on the tokens of a task, with the registers of earlier layers given.
//
//   R_r = Z sum_h Q_h G P_h^T + beta_r * R_before,r;   Z' = Z + sum_r (sum_j gamma_{j,r} * R_{j,r} + gamma_{J,r} * R_r)
//
// with G = (1/n) sum over the context of z_i z_i^T (Dutta & Sra, arXiv 2410.07263). One task per S; tokens are N x D
// cells. Operations for H heads in R registers: n D^2 / 2 + 2 H D^3 + R N D^2 multiply-adds forward, and about three
// times that backward.

#pragma once

#include "core/attention.h"
#include "core/gram.h"
#include "core/memory.h"

namespace memformer::core {

// The labelled tokens of a task: the first `rows`, or at most those, `count` of them, where `ragged`.
template <class S>
struct Labelled {
  int rows;
  bool ragged;
  S count;
  S inverse;  // 1 / count

  MEMFORMER_INLINE S select(int row, S value) const {
    return ragged ? where_less(static_cast<ValueOf<S>>(row), count, value) : value;
  }
};

// A target that adds to the labelled rows alone.
template <class S, int Stride>
struct AddingLabelled {
  Matrix<S, Stride> view;
  const Labelled<S>& labelled;
  MEMFORMER_INLINE void put(int row, int column, S value) const { view(row, column) += labelled.select(row, value); }
};

// Cells of a block of labelled rows, selected one by one where contexts are ragged.
MEMFORMER_INLINE int selected_cells(bool ragged, int width) { return ragged ? gram_block * width : 0; }

// The packed sum of z_i z_i^T over a block of labelled rows.
template <class S, class Width, int Stride, int ScratchStride>
MEMFORMER_INLINE void labelled_block_gram(const Labelled<S>& labelled, int first, Width width, Cells<S, Stride> tokens,
                                          Cells<S, ScratchStride> selected, S* matrix) {
  const int left = labelled.rows - first;
  const int count = left < gram_block ? left : gram_block;
  if (labelled.ragged) {
    for (int i = 0; i < count; ++i) {
      for (int c = 0; c < width; ++c) {
        selected[i * width + c] = labelled.select(first + i, tokens[(first + i) * width + c]);
      }
    }
    block_gram(Cells<const S, ScratchStride>{selected.data}, count, width, matrix);
  } else {
    block_gram(Cells<const S, Stride>{tokens.at(first * width).data}, count, width, matrix);
  }
}

// The first rows of G. Blocks are added pairwise, four at a time.
template <class S, class Shape, int Stride, int ScratchStride, class View>
MEMFORMER_INLINE void mean_gram(Shape shape, const Labelled<S>& labelled, Cells<S, Stride> tokens,
                                Cells<S, ScratchStride> selected, View gram) {
  const auto width = shape.width();
  constexpr int limit = packed_size(decltype(shape.width())::limit);
  const int entries = packed_size(width);
  S sum[limit], pair[limit], block[limit];
  for (int first = 0; first < labelled.rows; first += gram_block) {
    const int place = first / gram_block;
    labelled_block_gram(labelled, first, width, tokens, selected, place == 0 ? sum : place % 4 == 2 ? pair : block);
    const bool last = first + gram_block >= labelled.rows;
    if (place % 4 == 3) {
      for (int k = 0; k < entries; ++k) pair[k] += block[k];
    } else if (place % 4 != 2 && place > 0) {
      for (int k = 0; k < entries; ++k) sum[k] += block[k];
    }
    if (place % 4 == 3 || (place % 4 == 2 && last)) {
      for (int k = 0; k < entries; ++k) sum[k] += pair[k];
    }
  }
  each_entry(shape.rows, width, [&](int i, int c, int) { gram(i, c) = sum[packed(i, c)] * labelled.inverse; });
}

// What makes a layer's registers. q, p (H, rows, rows); beta (R, beta_rows, D), or null where none is remembered.
template <class T>
struct LayerParameters {
  int heads;
  int kept;
  const T* q;
  const T* p;
  const T* beta;
  int beta_rows;
};

// Layer l of a network; `remembers`: there are registers before its own.
template <class T, class Shape>
MEMFORMER_INLINE LayerParameters<T> layer_of(const Parameters<T>& parameters, int l, bool remembers, Shape shape) {
  const int head = l * parameters.heads * shape.head();
  return {parameters.heads,
          parameters.kept,
          parameters.q + head,
          parameters.p + head,
          parameters.beta && remembers ? parameters.beta + parameters.beta_index(l, 0, shape.width()) : nullptr,
          parameters.beta_rows};
}

// Cells for G, Q G and M; backward also for the gradients of M and G and for a D x D matrix.
template <class Shape>
MEMFORMER_INLINE int layer_scratch(Shape shape, bool ragged, bool backward) {
  const int width = shape.width();
  return (backward ? 5 : 3) * shape.size() + (backward ? width * width : 0) + selected_cells(ragged, width);
}

// The layer's registers: memory(r) and before(r) give the cells of register r of this layer and of the one before.
template <class S, class Shape, int Stride, int ScratchStride, class Memory, class Before>
MEMFORMER_INLINE void layer_registers(Shape shape, const LayerParameters<ValueOf<S>>& layer,
                                      const Labelled<S>& labelled, int rows, Cells<S, Stride> tokens,
                                      Cells<S, ScratchStride> scratch, Memory memory, Before before) {
  const auto width = shape.width();
  const int per_register = layer.heads / layer.kept;
  const Matrix gram{scratch, width};
  const Matrix query_gram{scratch.at(shape.size()), width};
  const Matrix mixed{scratch.at(2 * shape.size()), width};
  const Matrix state{tokens, width};
  mean_gram(shape, labelled, tokens, scratch.at(3 * shape.size()), gram);
  for (int r = 0; r < layer.kept; ++r) {
    const int head = r * per_register * shape.head();
    mix<S>(shape, layer.q + head, layer.p + head, per_register, gram, query_gram, mixed);
    const Matrix<S, Stride> target{memory(r), width};
    if (layer.beta) {
      const ValueOf<S>* beta = layer.beta + r * layer.beta_rows * width;
      const int step = row_step(layer.beta_rows, width);
      product<S>(rows, shape.rows, width, Remembering<S, Stride>{target, before(r), beta, step}, state, mixed);
    } else {
      product<S>(rows, shape.rows, width, target, state, mixed);
    }
  }
}

// From the gradients of the layer's registers, memory_grad(r): adds to that of the tokens, and gives those of q and p
// to the sink, `begin` being the flat index of the layer's first entry.
template <class S, class Shape, int Stride, int ScratchStride, int GradStride, class MemoryGrad, class Sink>
MEMFORMER_INLINE void layer_registers_backward(Shape shape, const LayerParameters<ValueOf<S>>& layer,
                                               const Labelled<S>& labelled, int rows, Cells<S, Stride> tokens,
                                               Cells<S, ScratchStride> scratch, MemoryGrad memory_grad, int begin,
                                               Cells<S, GradStride> grad, Sink& sink) {
  const auto width = shape.width();
  [[maybe_unused]] const int d = shape.rows;
  const int per_register = layer.heads / layer.kept;
  const Matrix gram{scratch, width};
  const Matrix query_gram{scratch.at(shape.size()), width};
  const Matrix mixed{scratch.at(2 * shape.size()), width};
  const Matrix mixed_grad{scratch.at(3 * shape.size()), width};
  const Matrix gram_grad{scratch.at(4 * shape.size()), width};
  const Matrix change{scratch.at(5 * shape.size()), width};
  const Matrix state{tokens, width};
  const Matrix<S, GradStride> token_grad{grad, width};
  mean_gram(shape, labelled, tokens, scratch.at(5 * shape.size() + width * width), gram);
  each_entry(shape.rows, width, [&](int i, int c, int) { gram_grad(i, c) = S(0); });
  for (int r = 0; r < layer.kept; ++r) {
    const int head = r * per_register * shape.head();
    const Matrix outer{memory_grad(r), width};
    mix<S>(shape, layer.q + head, layer.p + head, per_register, gram, query_gram, mixed);
    product<S>(shape.rows, rows, width, mixed_grad, Transposed{state}, outer);
    product<S>(rows, width, shape.rows, Adding{token_grad}, outer, Transposed{mixed});
    mix_backward<S>(shape, layer.q + head, layer.p + head, per_register, begin + head, gram, query_gram, mixed_grad,
                    mixed, gram_grad, sink);
  }
  symmetrise(shape.rows, gram_grad);
  each_entry(shape.rows, width, [&](int i, int c, int) { change(i, c) = gram_grad(i, c) * labelled.inverse; });
  if constexpr (Shape::block) {
    MEMFORMER_UNROLL_ROWS
    for (int c = 0; c < d; ++c) change(d, c) = change(c, d);
    change(d, d) = S(0);
  }
  product<S>(labelled.rows, width, width, AddingLabelled<S, GradStride>{token_grad, labelled}, state, change);
}

// A layer that stands alone after J others: a network's parameters with L = J + 1, of which it is the last and brings
// its own: q, p of one layer, gamma (J + 1, R, gamma_rows, D) or null, beta (R, beta_rows, D) or null.
//
// Z' from Z (rows x D). `memory` holds the registers, slot (j R + r) N D cells on: those of the J earlier layers are
// given, the new ones are written behind them.
template <class S, class Shape, int Stride, int ScratchStride>
MEMFORMER_INLINE void layer_forward(Shape shape, const Parameters<ValueOf<S>>& parameters, const Labelled<S>& labelled,
                                    int rows, Cells<S, Stride> tokens, Cells<S, Stride> memory, Cells<S, Stride> next,
                                    Cells<S, ScratchStride> scratch) {
  const auto width = shape.width();
  const int size = rows * width, earlier = parameters.layers - 1;
  const LayerParameters<ValueOf<S>> layer = layer_of(parameters, 0, earlier > 0, shape);
  const auto slot = [&](int j, int r) { return memory.at((j * layer.kept + r) * size); };
  layer_registers(
      shape, layer, labelled, rows, tokens, scratch, [&](int r) { return slot(earlier, r); },
      [&](int r) { return slot(earlier - 1, r); });
  const int oldest = parameters.gamma ? 0 : earlier;
  const int grid = parameters.gamma_rows * width;
  for (int r = 0; r < layer.kept; ++r) {
    const ValueOf<S>* gamma = parameters.gamma ? parameters.gamma + r * grid : nullptr;
    const Weighted<S, Stride> weighted{slot(oldest, r), layer.kept * size, earlier - oldest + 1,
                                       gamma,           layer.kept * grid, row_step(parameters.gamma_rows, width)};
    add_weighted(rows, width, r == 0 ? tokens : next, next, weighted);
  }
}

// Backward of `layer_forward`, whose `memory` is given whole. `grad` comes as the gradient of Z' and leaves as that of
// Z. `memory_grad` has the slots of `memory`: the last ones come as the outer gradient of the new registers (and are
// overwritten), the others leave as the gradients of the earlier registers.
template <class S, class Shape, int Stride, int ScratchStride, class Sink>
MEMFORMER_INLINE void layer_backward(Shape shape, const Parameters<ValueOf<S>>& parameters, const Labelled<S>& labelled,
                                     int rows, Cells<S, Stride> tokens, Cells<S, Stride> memory, Cells<S, Stride> grad,
                                     Cells<S, Stride> memory_grad, Cells<S, ScratchStride> scratch, Sink& sink) {
  const auto width = shape.width();
  const int size = rows * width, earlier = parameters.layers - 1;
  const LayerParameters<ValueOf<S>> layer = layer_of(parameters, 0, earlier > 0, shape);
  const int grid = parameters.gamma_rows * width;
  const int gamma_step = row_step(parameters.gamma_rows, width), beta_step = row_step(layer.beta_rows, width);
  for (int r = 0; r < layer.kept; ++r) {
    for (int j = 0; j <= earlier; ++j) {
      const int place = j * layer.kept + r;
      const Cells<S, Stride> own = memory_grad.at(place * size);
      const Cells<S, Stride> base = j == earlier ? own : Cells<S, Stride>{nullptr};
      if (parameters.gamma) {
        const int begin = place * grid;
        add_weighted(rows, width, base, own, Weighted<S, Stride>{grad, 0, 1, parameters.gamma + begin, 0, gamma_step});
        coefficient_grad(rows, width, memory.at(place * size), grad, begin, gamma_step,
                         [&](int k, S value) { sink.gamma(k, value); });
      } else if (j == earlier) {
        add_weighted(rows, width, base, own, Weighted<S, Stride>{grad, 0, 1, nullptr, 0, 0});
      } else {
        each_entry(rows, width, [&](int, int, int k) { own[k] = S(0); });
      }
    }
    if (layer.beta) {
      const Cells<S, Stride> own = memory_grad.at((earlier * layer.kept + r) * size);
      const int last = (earlier - 1) * layer.kept + r;
      const int begin = r * layer.beta_rows * width;
      const Cells<S, Stride> before = memory_grad.at(last * size);
      add_weighted(rows, width, before, before, Weighted<S, Stride>{own, 0, 1, layer.beta + begin, 0, beta_step});
      coefficient_grad(rows, width, memory.at(last * size), own, begin, beta_step,
                       [&](int k, S value) { sink.beta(k, value); });
    }
  }
  layer_registers_backward(
      shape, layer, labelled, rows, tokens, scratch,
      [&](int r) { return memory_grad.at((earlier * layer.kept + r) * size); }, 0, grad, sink);
}

}  // namespace memformer::core
