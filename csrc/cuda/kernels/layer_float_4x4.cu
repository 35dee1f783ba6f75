// One layer on tokens: float, tiles of 4 x 4, teams of 16 lanes, cells wherever they fit.

#include "cuda/layer.cuh"
#include "cuda/grid.cuh"

namespace memformer::cuda {

template int launch_kernel<OneLayer<float, 4, 4, false>>(
    const OneLayer<float, 4, 4, false>::Arguments&, int64_t, int64_t, const Launch&);

}  // namespace memformer::cuda
