// Token space for any P, Q and heads: all L layers on the N x D tokens of a task, for gamma and beta with a token axis.
//
//   R_{l,r} = Z_l sum_h Q_h G(Z_l) P_h^T + beta_{l,r} * R_{l-1,r}
//   Z_{l+1} = Z_l + sum_r sum_{j<=l} gamma_{l,j,r} * R_{j,r}
//
// (Dutta & Sra, arXiv 2410.07263.) One task per S. Operations for a layer: those of core/layer.h and (l + 1) R N D
// multiply-adds for the update; (2 l + 3) R N D for its backward. The trace lies with the caller. Rows that no result
// reads may hold anything forward, but must be given as zeros to a run with a backward.

#pragma once

#include "core/layer.h"

namespace memformer::core {

// Cells that a run needs beside its trace: a layer's own; backward also the gradient of the tokens.
template <class Shape>
MEMFORMER_INLINE int general_tokens_scratch(Shape shape, int rows, bool ragged, bool backward) {
  return layer_scratch(shape, ragged, backward) + (backward ? rows * shape.width() : 0);
}

// All L layers from the tokens in trace.state(0). after(l, tokens) is called with the cells of Z_{l+1} once they are
// made.
template <class S, class Shape, int Stride, int ScratchStride, class After>
MEMFORMER_INLINE void general_tokens_forward(Shape shape, const Parameters<ValueOf<S>>& parameters,
                                             const Labelled<S>& labelled, int rows, const Trace<S, Stride>& trace,
                                             Cells<S, ScratchStride> scratch, After after) {
  for (int l = 0; l < parameters.layers; ++l) {
    layer_registers(
        shape, layer_of(parameters, l, l > 0, shape), labelled, rows, trace.state(l), scratch,
        [&](int r) { return trace.memory(l, r); }, [&](int r) { return trace.memory(l - 1, r); });
    update_state(parameters, l, rows, shape.width(), trace);
    after(l, trace.state(l + 1));
  }
}

// Backward of a run that kept its trace. outer(l, grad) adds the gradient that reaches Z_{l+1} from outside to the
// cells `grad`, N x D; Z_{l+1} is still in the trace then. The sink takes the gradients of q, p, gamma and beta by
// their flat index. Returns the cells that hold the gradient of Z_0.
template <class S, class Shape, int Stride, int ScratchStride, class Outer, class Sink>
MEMFORMER_INLINE Cells<S, ScratchStride> general_tokens_backward(Shape shape, const Parameters<ValueOf<S>>& parameters,
                                                                 const Labelled<S>& labelled, int rows,
                                                                 const Trace<S, Stride>& trace,
                                                                 Cells<S, ScratchStride> scratch, Outer outer,
                                                                 Sink& sink) {
  const auto width = shape.width();
  const Cells<S, ScratchStride> grad = scratch.at(layer_scratch(shape, labelled.ragged, true));
  each_entry(rows, width, [&](int, int, int k) { grad[k] = S(0); });
  for (int l = parameters.layers - 1; l >= 0; --l) {
    outer(l, grad);
    if (!parameters.newest_only()) {
      each_entry(rows, width, [&](int, int, int k) { trace.update_grad(l)[k] = grad[k]; });
    }
    register_grads(parameters, l, rows, width, trace, grad, sink);
    layer_registers_backward(
        shape, layer_of(parameters, l, l > 0, shape), labelled, rows, trace.state(l), scratch,
        [&](int r) { return trace.memory_grad(r); }, l * parameters.heads * shape.head(), grad, sink);
  }
  return grad;
}

}  // namespace memformer::core
