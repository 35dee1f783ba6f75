// Context Gram matrices: float, tiles of 3 x 3, teams of 4 lanes.

#include "cuda/context_gram.cuh"
#include "cuda/grid.cuh"

namespace memformer::cuda {

template int launch_kernel<ContextGram<float, 3, 2>>(
    const ContextGram<float, 3, 2>::Arguments&, int64_t, int64_t, const Launch&);

}  // namespace memformer::cuda
