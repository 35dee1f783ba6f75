// The kernels, the only list of them: each for float and double, once for every instruction set in a namespace of its
// own.
//
// kernels/*.cpp define them; dispatch.h chooses the instruction set. A line is KERNEL(result, name, arguments...).

#pragma once

#include "core/calls.h"
#include "core/training.h"
#include "cpu/attention_call.h"
#include "cpu/quadratics_call.h"
#include "cpu/threads.h"
#include "cpu/weighted_gram.h"

#define MEMFORMER_KERNELS(KERNEL, T)                                               \
  KERNEL(void, response_gram, const Network<T>&, ParallelFor)                      \
  KERNEL(void, response_tokens, const Network<T>&, ParallelFor)                    \
  KERNEL(void, wide_gram, const Network<T>&, ParallelFor)                          \
  KERNEL(void, wide_tokens, const Network<T>&, ParallelFor)                        \
  KERNEL(void, general_gram, const Network<T>&, ParallelFor)                       \
  KERNEL(void, wide_general, const Network<T>&, ParallelFor)                       \
  KERNEL(void, general_tokens, const Network<T>&, ParallelFor)                     \
  KERNEL(void, prefix_response, const Network<T>&, ParallelFor)                    \
  KERNEL(void, prefix_general, const Network<T>&, ParallelFor)                     \
  KERNEL(void, context_gram, const Gram<T>&, ParallelFor)                          \
  KERNEL(void, weighted_gram, const WeightedGram<T>&, ParallelFor)                 \
  KERNEL(void, wide_context_gram, const Gram<T>&, ParallelFor)                     \
  KERNEL(void, quadratics, const ProximalQuadratics<T>&, ParallelFor)              \
  KERNEL(void, wide_quadratics, const ProximalQuadratics<T>&, ParallelFor)         \
  KERNEL(void, layer, const Layer<T>&, ParallelFor)                                \
  KERNEL(void, wide_layer, const Layer<T>&, ParallelFor)                           \
  KERNEL(int64_t, train, const Training<T>&, ParallelFor)                          \
  KERNEL(void, train_gradients, const Training<T>&, const BlockSums&, ParallelFor) \
  KERNEL(void, train_update, const Training<T>&, const BlockSums&)                 \
  KERNEL(void, random_numbers, const RandomNumbers<T>&)                            \
  KERNEL(void, sample_tasks, const TaskSource<T>&, int64_t draw, T* cells)         \
  KERNEL(void, register_update, const RegisterUpdate<T>&, ParallelFor)             \
  KERNEL(void, attention, const Attention<T>&, ParallelFor)

#define MEMFORMER_DECLARATION(result, name, ...) result name(__VA_ARGS__);
#define MEMFORMER_DECLARATIONS(isa)                \
  namespace memformer::cpu::isa {                  \
  MEMFORMER_KERNELS(MEMFORMER_DECLARATION, float)  \
  MEMFORMER_KERNELS(MEMFORMER_DECLARATION, double) \
  }

MEMFORMER_DECLARATIONS(baseline)
#if defined(__x86_64__)
MEMFORMER_DECLARATIONS(avx2)
MEMFORMER_DECLARATIONS(avx512)
#endif

#undef MEMFORMER_DECLARATIONS
#undef MEMFORMER_DECLARATION
