// Response-only networks in Gram space: 4 features, float.

#include "cuda/grid.cuh"
#include "cuda/response_gram_plan.cuh"

namespace memformer::cuda {

template int run_response_gram(const Network<float>&, const Parameters&, void*, const DeviceMachine&, core::Fixed<4>);

}  // namespace memformer::cuda
