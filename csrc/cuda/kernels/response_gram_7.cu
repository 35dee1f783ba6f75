// Response-only networks in Gram space: 7 features, float.

#include "cuda/grid.cuh"
#include "cuda/response_gram_plan.cuh"

namespace memformer::cuda {

template int run_response_gram(const Network<float>&, const Parameters&, void*, const DeviceMachine&, core::Fixed<7>);

}  // namespace memformer::cuda
