// Response-only networks in Gram space: 3 features, float.

#include "cuda/grid.cuh"
#include "cuda/response_gram_plan.cuh"

namespace memformer::cuda {

template int run_response_gram(const Network<float>&, const Parameters&, void*, const DeviceMachine&, core::Fixed<3>);

}  // namespace memformer::cuda
