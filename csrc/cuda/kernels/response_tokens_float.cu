// Response-only networks in token space: float, any d, teams of 16 lanes, cells wherever they fit.

#include "cuda/grid.cuh"
#include "cuda/response_tokens.cuh"

namespace memformer::cuda {

template int launch_kernel<ResponseTokens<float, core::UpTo<16>, 16, false>>(
    const ResponseTokens<float, core::UpTo<16>, 16, false>::Arguments&, int64_t, int64_t, const Launch&);

}  // namespace memformer::cuda
