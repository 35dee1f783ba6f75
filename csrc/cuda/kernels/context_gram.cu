// Context Gram matrices: the instance that serves a call. Instances: context_gram_*.cu.

#include "cuda/context_gram.cuh"
#include "cuda/team_launch.cuh"

namespace memformer::cuda {

extern template int launch_kernel<ContextGram<float, 3, 2>>(const ContextGram<float, 3, 2>::Arguments&, int64_t, int64_t,
                                                            const Launch&);
extern template int launch_kernel<ContextGram<float, 5, 4>>(const ContextGram<float, 5, 4>::Arguments&, int64_t, int64_t,
                                                            const Launch&);
extern template int launch_kernel<ContextGram<double, 5, 4>>(const ContextGram<double, 5, 4>::Arguments&, int64_t, int64_t,
                                                             const Launch&);

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
