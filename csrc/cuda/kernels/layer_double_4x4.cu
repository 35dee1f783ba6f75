// One layer on tokens: double, tiles of 4 x 4, teams of 16 lanes, cells in shared memory.

#include "cuda/layer.cuh"
#include "cuda/grid.cuh"

namespace memformer::cuda {

template int launch_kernel<OneLayer<double, 4, 4, true>>(const OneLayer<double, 4, 4, true>::Arguments&, int64_t, int64_t, const Launch&);

}  // namespace memformer::cuda
