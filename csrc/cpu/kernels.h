// The kernels, once for every instruction set, each set in a namespace of its own (cpu/kernels/*.cpp).

#pragma once

#include "core/calls.h"
#include "core/training.h"
#include "cpu/heads.h"
#include "cpu/threads.h"

#define MEMFORMER_KERNELS_OF(T)                                 \
  void response_gram(const Network<T>& call, ParallelFor run);  \
  void response_tokens(const Network<T>& call, ParallelFor run); \
  void wide_gram(const Network<T>& call, ParallelFor run);      \
  void wide_tokens(const Network<T>& call, ParallelFor run);    \
  void general_gram(const Network<T>& call, ParallelFor run);   \
  void general_tokens(const Network<T>& call, ParallelFor run); \
  void context_gram(const Gram<T>& call, ParallelFor run);      \
  void quadratics(const Quadratics<T>& call, ParallelFor run);  \
  void wide_quadratics(const Quadratics<T>& call, ParallelFor run); \
  void layer(const Layer<T>& call, ParallelFor run);            \
  int64_t train(const Training<T>& training, ParallelFor run);  \
  void train_gradients(const Training<T>& training, const BlockSums& blocks, ParallelFor run); \
  void train_update(const Training<T>& training, const BlockSums& blocks);                      \
  void random_numbers(const RandomNumbers<T>& call);            \
  void sample_tasks(const TaskSource<T>& source, int64_t draw, T* cells); \
  void register_update(const RegisterUpdate<T>& call, ParallelFor run); \
  void attention(const Attention<T>& call, ParallelFor run);

#define MEMFORMER_KERNELS(isa)      \
  namespace memformer::cpu::isa {   \
  MEMFORMER_KERNELS_OF(float)       \
  MEMFORMER_KERNELS_OF(double)      \
  }

MEMFORMER_KERNELS(baseline)
#if defined(__x86_64__)
MEMFORMER_KERNELS(avx2)
MEMFORMER_KERNELS(avx512)
#endif

#undef MEMFORMER_KERNELS
#undef MEMFORMER_KERNELS_OF
