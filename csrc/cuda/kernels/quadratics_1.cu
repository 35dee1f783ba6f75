// Learned first-order methods on given quadratics: one weight, float.

#include "cuda/grid.cuh"
#include "cuda/quadratics.cuh"

namespace memformer::cuda {

template int run_quadratics(const Quadratics<float>&, const Parameters&, void*, const DeviceMachine&, core::Fixed<1>);

}  // namespace memformer::cuda
