// What the binding hands to a kernel of any device: pointers, strides and numbers; no torch.

#pragma once

#include <cstdint>

#include "core/coefficients.h"
#include "core/scalar.h"

namespace memformer {

enum class Storage : int { none, float32, float64, bfloat16, float16 };

// A tensor with up to three axes, outermost first; strides in elements. `data` is null where the tensor is not wanted.
struct Array {
  void* data = nullptr;
  Storage storage = Storage::none;
  int64_t stride[3] = {0, 0, 0};
};

MEMFORMER_INLINE int64_t bytes_of_number(Storage storage) {
  return storage == Storage::float64 ? 8 : storage == Storage::float32 ? 4 : 2;
}

// What a call wants done with the network's result.
enum class Pass : int {
  forward,       // write the result
  backward,      // from the gradient of the result, the gradients of the arguments
  loss,          // the sum of squared errors of the predictions
  loss_backward  // that, and the gradients of its mean
};

// A network on a batch of tasks. The binding has brought parameters to one dense form in the compute type T:
//
//   q      (L, H, M, M) with M = d (block or response-only) or D (dense);  p (L, H, M, M), or null: response-only
//   gamma  (L, L, R, n_gamma, C), or (L, R, n_gamma, C) if `diagonal`, or null: ones on the diagonal
//   beta   (L, R, n_beta, C), or null
//
// R registers a layer (`kept`: H, or 1 for the sum over heads); C = 1 (the response column) for response-only, else D;
// n_gamma, n_beta: 1, or one entry per row. Rows are the tokens that are read: all N of them if ragged or if nothing
// lies between the context and the queries, else the context and then the queries.
template <class T>
struct Network {
  Pass pass;
  bool gram_space;
  bool block;  // P = [[Bm, 0], [0, 1]] and Q = [[A, 0], [0, 0]]
  bool diagonal;
  int64_t tasks;
  int tokens;   // N
  int width;    // D
  int layers;   // L
  int heads;    // H (1 for response-only with collapsed heads)
  int kept;     // R
  int context;  // labelled tokens of every task; N where ragged
  int queries;  // predicted tokens at the end; -1: the result is the tokens themselves
  int gamma_rows;
  int beta_rows;
  const int64_t* lengths;  // (B,) labelled tokens of each task where ragged, else null
  const T* q;
  const T* p;
  const T* gamma;
  const T* beta;
  Array z;            // (B, N, D)
  Array result;       // (B, N, D), or (layers asked for, B, queries): written by `forward`, its gradient in `backward`
  int result_layers;  // predictions after this many last layers: 1 or L
  Array target;       // (B, queries)
  Array grad_z;       // (B, N, D) or null
  Array grad_target;  // (B, queries) or null
  double* totals;     // gradients of q, p, gamma, beta in the layouts above, one after another, then the squared error
  Array gram;         // (B, D, D) in the type T, Gram space: of the contexts, where they are summed before, or null
  Array grad_gram;    // (B, D, D), where `gram` is given and grad_z is wanted: written instead of the context's rows of
                      // grad_z

  MEMFORMER_INLINE core::Coefficients<T> coefficients() const {
    return {layers, kept, diagonal, gamma_rows, beta_rows, gamma, beta};
  }
};

// Gram matrices of contexts, or the gradient of the tokens from that of the matrices.
template <class T>
struct Gram {
  bool backward;
  int64_t tasks;
  int tokens;
  int width;
  int context;             // N where ragged
  const int64_t* lengths;  // (B,) or null
  Array z;                 // (B, N, D)
  Array matrix;            // (B, D, D): written, or its gradient
  Array grad_z;            // (B, N, D), written by the backward
};

// A learned first-order method on quadratics: the iterates, or the gradients of everything from theirs.
template <class T>
struct Quadratics {
  bool backward;
  bool diagonal;  // gamma (L, d) instead of (L, L, d)
  int64_t tasks;
  int weights;        // d
  int layers;         // L
  const T* a;         // (L, d, d)
  const T* gamma;     // or null: ones on the diagonal
  const T* beta;      // (L, d) or null
  Array h;            // (B, d, d)
  Array b;            // (B, d)
  Array w0;           // (B, d) or null
  Array result;       // (1 or L, B, d): written, or its gradient
  int result_layers;  // 1 or L
  Array grad_h;       // each of these or null
  Array grad_b;
  Array grad_w0;
  double* totals;  // gradients of a, gamma, beta, one after another
};

// Registers (B, R, N, D): the strides of task, token and feature, and that of the register.
struct Registers {
  Array array;
  int64_t stride = 0;
};

// One layer on tokens, with the registers of the layers before it.
template <class T>
struct Layer {
  bool backward;
  int64_t tasks;
  int tokens;   // N
  int width;    // D
  int heads;    // H
  int kept;     // R: H, or 1 for the sum over heads
  int earlier;  // registers of layers before, J
  int context;  // N where ragged
  int gamma_rows;
  int beta_rows;
  const int64_t* lengths;           // (B,) or null
  const T* q;                       // (H, D, D)
  const T* p;                       // (H, D, D)
  const T* gamma;                   // (J + 1, R, n_gamma, D), or null: only the new register, with weight 1
  const T* beta;                    // (R, n_beta, D), or null; only where J > 0
  Array z;                          // (B, N, D)
  const Registers* registers;       // J of them, oldest first
  Array result;                     // (B, N, D): written, or its gradient
  Registers fresh;                  // the new register (B, R, N, D): written, or its gradient
  Array grad_z;                     // (B, N, D) or null
  const Registers* grad_registers;  // J of them, each with data or null; null where none is wanted
  double* totals;                   // gradients of q, p, gamma, beta in the layouts above, one after another
};

// z + sum_j gamma_j * R_j on tokens (A, M, C) with coefficients (J, M), all contiguous.
template <class T>
struct RegisterUpdate {
  bool backward;
  int64_t before;            // A
  int64_t middle;            // M
  int64_t after;             // C
  int64_t registers;         // J
  const T* tokens;           // z, or in the backward the gradient of the result
  const T* const* values;    // the registers
  const T* gamma;            // (J, M)
  T* result;                 // forward
  T* const* grad_registers;  // J of them, each or null
  T* grad_gamma;             // (J, M) or null
};

}  // namespace memformer
