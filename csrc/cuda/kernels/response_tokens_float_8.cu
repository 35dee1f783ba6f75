// Response-only networks in token space: float, d <= 8, teams of 8 lanes, cells in shared memory.

#include "cuda/grid.cuh"
#include "cuda/response_tokens.cuh"

namespace memformer::cuda {

template int launch_kernel<ResponseTokens<float, core::UpTo<8>, 8, true>>(
    const ResponseTokens<float, core::UpTo<8>, 8, true>::Arguments&, int64_t, int64_t, const Launch&);

}  // namespace memformer::cuda
