// Response-only networks in Gram space: one feature, float.

#include "cuda/grid.cuh"
#include "cuda/response_gram_plan.cuh"

namespace memformer::cuda {

template int run_response_gram(const Network<float>&, const Parameters&, void*, const DeviceMachine&, core::Fixed<1>);

}  // namespace memformer::cuda
