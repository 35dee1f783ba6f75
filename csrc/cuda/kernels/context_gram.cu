// Context Gram matrices: the instance that serves a call.

#include "cuda/team/context_gram.cuh"
#include "cuda/team/team_launch.cuh"
#include "instances/context_gram.h"

namespace memformer::cuda {

template <class T>
int64_t context_gram_scratch(const Gram<T>& call) {
  return gram_bytes(call);
}

template <class T>
int context_gram(const Gram<T>& call, const Launch& launch) {
  return run_context_gram(call, launch.scratch, DeviceMachine{launch});
}

template int64_t context_gram_scratch(const Gram<float>&);
template int64_t context_gram_scratch(const Gram<double>&);
template int context_gram(const Gram<float>&, const Launch&);
template int context_gram(const Gram<double>&, const Launch&);

}  // namespace memformer::cuda
