// Networks of any structure in token space: double, tiles of 4 x 4, teams of 16 lanes, cells wherever they fit.

#include "cuda/general_tokens.cuh"
#include "cuda/grid.cuh"

namespace memformer::cuda {

template int launch_kernel<GeneralTokens<double, 4, 4, false>>(
    const GeneralTokens<double, 4, 4, false>::Arguments&, int64_t, int64_t, const Launch&);

}  // namespace memformer::cuda
