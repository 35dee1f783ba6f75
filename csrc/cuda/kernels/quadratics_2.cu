// Learned first-order methods on given quadratics: 2 weights, float.

#include "cuda/grid.cuh"
#include "cuda/quadratics.cuh"

namespace memformer::cuda {

template int run_quadratics(const Quadratics<float>&, const Parameters&, void*, const DeviceMachine&, core::Fixed<2>);

}  // namespace memformer::cuda
