// Context Gram matrices: double, tiles of 5 x 5, teams of 16 lanes.

#include "cuda/context_gram.cuh"
#include "cuda/grid.cuh"

namespace memformer::cuda {

template int launch_kernel<ContextGram<double, 5, 4>>(
    const ContextGram<double, 5, 4>::Arguments&, int64_t, int64_t, const Launch&);

}  // namespace memformer::cuda
