// The kernels of the instruction set in use: the widest that the processor has, unless another was asked for.

#pragma once

#include "core/calls.h"
#include "core/training.h"
#include "cpu/heads.h"
#include "cpu/threads.h"

namespace memformer::cpu {

template <class T>
struct Kernels {
  void (*response_gram)(const Network<T>&, ParallelFor);
  void (*response_tokens)(const Network<T>&, ParallelFor);
  void (*wide_gram)(const Network<T>&, ParallelFor);
  void (*wide_tokens)(const Network<T>&, ParallelFor);
  void (*general_gram)(const Network<T>&, ParallelFor);
  void (*general_tokens)(const Network<T>&, ParallelFor);
  void (*context_gram)(const Gram<T>&, ParallelFor);
  void (*quadratics)(const Quadratics<T>&, ParallelFor);
  void (*wide_quadratics)(const Quadratics<T>&, ParallelFor);
  void (*layer)(const Layer<T>&, ParallelFor);
  int64_t (*train)(const Training<T>&, ParallelFor);
  void (*train_gradients)(const Training<T>&, const BlockSums&, ParallelFor);
  void (*train_update)(const Training<T>&, const BlockSums&);
  void (*random_numbers)(const RandomNumbers<T>&);
  void (*sample_tasks)(const TaskSource<T>&, int64_t, T*);
  void (*register_update)(const RegisterUpdate<T>&, ParallelFor);
  void (*attention)(const Attention<T>&, ParallelFor);
};

template <class T>
const Kernels<T>& kernels();

// The name of the set in use, and the choice of another; false if this build or this processor does not have it.
const char* instruction_set();
bool use_instruction_set(const char* name);

}  // namespace memformer::cpu
