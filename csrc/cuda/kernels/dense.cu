// The dense forms of parameters in device memory.

#include "cuda/dense.cuh"
#include "cuda/grid.cuh"

namespace memformer::cuda {

template int launch_kernel<DenseParameters<float>>(
    const DenseParameters<float>::Arguments&, int64_t, int64_t, const Launch&);
template int launch_kernel<DenseParameters<double>>(
    const DenseParameters<double>::Arguments&, int64_t, int64_t, const Launch&);

}  // namespace memformer::cuda
