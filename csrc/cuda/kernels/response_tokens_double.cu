// Response-only networks in token space: double, any d, teams of 16 lanes, cells wherever they fit.

#include "cuda/grid.cuh"
#include "cuda/response_tokens.cuh"

namespace memformer::cuda {

template int launch_kernel<ResponseTokens<double, core::UpTo<16>, 16, false>>(
    const ResponseTokens<double, core::UpTo<16>, 16, false>::Arguments&, int64_t, int64_t, const Launch&);

}  // namespace memformer::cuda
