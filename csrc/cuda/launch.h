// What the binding calls on a CUDA device: one plain C++ function a kernel, no CUDA types, no torch.
//
// Parameters stay where the caller has them, in strided device memory: every block reads them into its shared memory,
// and the last kernel of a call writes their gradients in the caller's shapes. The pointers q, p, gamma, beta and
// totals of core/calls.h are not used here; `Parameter` takes their place. Kernels allocate nothing: each call says
// beforehand how many bytes of device memory it wants to work in.

//
// machine/  what kernels know of the GPU: blocks, copies, parameters, sums over tasks, launches
// thread/   kernels with one task a thread
// team/     kernels with one task a team of 4 to 16 lanes
// train/    kernels that take whole optimiser steps
// kernels/  which instance serves a call, and the list of instances that are compiled

#pragma once

#include <cstdint>

#include "core/calls.h"
#include "core/scalar.h"

namespace memformer::cuda {

// A parameter, from the caller's tensor to the dense form of core/calls.h and back.
//
// Five axes: [l, j, head, row, column]. Projections q, p are (L, 1, H, M, M); gamma is (L, L, R, rows, C), or (L, 1, R,
// rows, C) if diagonal (with `lower` false); beta is (L, 1, R, rows, C). lfom_solve: a (L, 1, 1, d, d), gamma (L, L, 1,
// 1, d), beta (L, 1, 1, 1, d). memformer_layer: q, p (1, 1, H, D, D), gamma (J + 1, 1, R, rows, D), beta (1, 1, R,
// rows, D).
//
// `given` are the caller's sizes, 1 where an axis is missing or shared. An axis that is given and not dense (heads of a
// collapsed network; size 1, given H) is added up on the way in, and its entries share one gradient.
struct Parameter {
  bool present = false;        // false: the call has no such parameter
  const void* data = nullptr;  // null: a projection that is all zeros and `corner` (given 0 rows and columns)
  Storage storage = Storage::none;
  int size[5] = {1, 1, 1, 1, 1};        // of the dense form
  int given[5] = {1, 1, 1, 1, 1};       // of the caller's tensor
  int64_t stride[5] = {0, 0, 0, 0, 0};  // of the caller's tensor, in elements
  bool matrix = false;  // a projection: where `given` has fewer rows and columns, zeros and `corner` complete it
  float corner = 0.0f;
  bool lower = false;    // entries [l, j] with j > l are neither read nor given a gradient but zero
  int first_column = 0;  // coefficients: the caller's column of the first dense one
  int context = 0;       // coefficients with a row for every token: dense row i is token i < context ? i :
  int first_query = 0;   //   first_query + i - context
  void* grad = nullptr;  // dense, in the caller's shape; null: not wanted
  Storage grad_storage = Storage::none;

  MEMFORMER_INLINE int64_t count() const {
    return present ? static_cast<int64_t>(size[0]) * size[1] * size[2] * size[3] * size[4] : 0;
  }
  MEMFORMER_INLINE int64_t grad_count() const {
    return grad ? static_cast<int64_t>(given[0]) * given[1] * given[2] * given[3] * given[4] : 0;
  }
};

// The parameters of a call, in the order of their sums; lfom_solve's a is q. `loss` is one number of the compute type:
// the mean squared error, written by the passes that make one.
struct Parameters {
  Parameter q, p, gamma, beta;
  void* loss = nullptr;
};

// The machine and the place to work. Ask the device for its numbers once, not at every call.
struct Launch {
  void* stream = nullptr;  // cudaStream_t
  int multiprocessors = 0;
  int shared_of_multiprocessor = 0;  // bytes
  int shared_of_block = 0;           // bytes a block may opt in to
  int capability = 0;                // 80, 90, 100
  void* scratch = nullptr;           // device memory, 256-byte aligned, of the size below; uninitialised
  int64_t scratch_bytes = 0;
  bool rehearsal = false;  // the kernels of a call are loaded, and none runs
};

// Bytes of scratch that a call needs; depends on its sizes alone. -1: the sizes are beyond this kernel.
template <class T>
int64_t response_gram_scratch(const Network<T>& network, const Parameters& parameters);
template <class T>
int64_t general_gram_scratch(const Network<T>& network, const Parameters& parameters);
template <class T>
int64_t response_tokens_scratch(const Network<T>& network, const Parameters& parameters);
template <class T>
int64_t general_tokens_scratch(const Network<T>& network, const Parameters& parameters);
template <class T>
int64_t layer_scratch(const Layer<T>& layer, const Parameters& parameters);
template <class T>
int64_t quadratics_scratch(const Quadratics<T>& call, const Parameters& parameters);
template <class T>
int64_t context_gram_scratch(const Gram<T>& call);

// Each runs its call on `launch.stream` of the current device and returns a cudaError_t, 0 for success. No tasks:
// nothing is launched, and gradients are not touched.
template <class T>
int response_gram(const Network<T>& network, const Parameters& parameters, const Launch& launch);
template <class T>
int general_gram(const Network<T>& network, const Parameters& parameters, const Launch& launch);
template <class T>
int response_tokens(const Network<T>& network, const Parameters& parameters, const Launch& launch);
template <class T>
int general_tokens(const Network<T>& network, const Parameters& parameters, const Launch& launch);
template <class T>
int layer(const Layer<T>& layer, const Parameters& parameters, const Launch& launch);
template <class T>
int quadratics(const Quadratics<T>& call, const Parameters& parameters, const Launch& launch);
template <class T>
int context_gram(const Gram<T>& call, const Launch& launch);

}  // namespace memformer::cuda
