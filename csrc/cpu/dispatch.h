// The kernels of the instruction set in use: the widest that the processor has, unless another was asked for.
//
// lanes/    SIMD vectors: numbers of neighbouring tasks, or of one, in the lanes
// tasks/    kernels' groups of tasks, one task per lane: tokens in, results out, sums over tasks
// wide/     the same for tasks that are not tiny: vectors along one task
// kernels/  the kernels, compiled for each instruction set

#pragma once

#include "cpu/kernels.h"

namespace memformer::cpu {

#define MEMFORMER_POINTER(result, name, ...) result (*name)(__VA_ARGS__);
template <class T>
struct Kernels {
  MEMFORMER_KERNELS(MEMFORMER_POINTER, T)
};
#undef MEMFORMER_POINTER

template <class T>
const Kernels<T>& kernels();

// The name of the set in use, "" if this processor has none of this build's; and the choice of another, false if this
// build or this processor does not have it. There are kernels where there is a set.
const char* instruction_set();
bool use_instruction_set(const char* name);

}  // namespace memformer::cpu
