// Networks of any structure in Gram space: float, tiles of 3 x 3, teams of 4 lanes, cells in shared memory.

#include "cuda/general_gram.cuh"
#include "cuda/grid.cuh"

namespace memformer::cuda {

template int launch_kernel<GeneralGram<float, 3, 2, true>>(
    const GeneralGram<float, 3, 2, true>::Arguments&, int64_t, int64_t, const Launch&);

}  // namespace memformer::cuda
