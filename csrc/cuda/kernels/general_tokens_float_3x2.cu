// Networks of any structure in token space: float, tiles of 3 x 3, teams of 4 lanes, cells in shared memory.

#include "cuda/general_tokens.cuh"
#include "cuda/grid.cuh"

namespace memformer::cuda {

template int launch_kernel<GeneralTokens<float, 3, 2, true>>(
    const GeneralTokens<float, 3, 2, true>::Arguments&, int64_t, int64_t, const Launch&);

}  // namespace memformer::cuda
