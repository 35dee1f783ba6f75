// Response-only networks in token space: float, d = 5, teams of 4 lanes, cells in shared memory.

#include "cuda/grid.cuh"
#include "cuda/response_tokens.cuh"

namespace memformer::cuda {

template int launch_kernel<ResponseTokens<float, core::Fixed<5>, 4, true>>(
    const ResponseTokens<float, core::Fixed<5>, 4, true>::Arguments&, int64_t, int64_t, const Launch&);

}  // namespace memformer::cuda
