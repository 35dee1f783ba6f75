// Context Gram matrices: the instance that serves a call.

#include "cuda/team/context_gram.cuh"
#include "cuda/team/team_launch.cuh"
#include "cuda/thread/sizes.cuh"
#include "cuda/thread/thread_context.cuh"
#include "instances/context_gram.h"
#include "instances/thread_context.h"

namespace memformer::cuda {

template <class T>
int64_t context_gram_scratch(const Gram<T>& call) {
  return fits_thread(call) ? 0 : gram_bytes(call);
}

template <class T>
int context_gram(const Gram<T>& call, const Launch& launch) {
  const DeviceMachine machine{launch};
  if constexpr (sizeof(T) == 4) {
    if (fits_thread(call)) {
      return with_context_width(call.width, [&](auto width) { return run_thread_context(call, machine, width); });
    }
  }
  return run_context_gram(call, launch.scratch, machine);
}

template int64_t context_gram_scratch(const Gram<float>&);
template int64_t context_gram_scratch(const Gram<double>&);
template int context_gram(const Gram<float>&, const Launch&);
template int context_gram(const Gram<double>&, const Launch&);

}  // namespace memformer::cuda
