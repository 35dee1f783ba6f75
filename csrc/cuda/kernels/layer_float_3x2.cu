// One layer on tokens: float, tiles of 3 x 3, teams of 4 lanes, cells in shared memory.

#include "cuda/layer.cuh"
#include "cuda/grid.cuh"

namespace memformer::cuda {

template int launch_kernel<OneLayer<float, 3, 2, true>>(
    const OneLayer<float, 3, 2, true>::Arguments&, int64_t, int64_t, const Launch&);

}  // namespace memformer::cuda
