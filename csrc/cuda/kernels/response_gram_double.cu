// Response-only networks in Gram space: any number of features up to 16, any number of layers and heads, double.

#include "cuda/grid.cuh"
#include "cuda/response_gram_plan.cuh"

namespace memformer::cuda {

template int run_response_gram(const Network<double>&, const Parameters&, void*, const DeviceMachine&, core::UpTo<16>);

}  // namespace memformer::cuda
