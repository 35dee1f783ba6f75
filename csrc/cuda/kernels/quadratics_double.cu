// Learned first-order methods on given quadratics: any number of weights up to 16, any number of layers, double.

#include "cuda/grid.cuh"
#include "cuda/quadratics.cuh"

namespace memformer::cuda {

template int run_quadratics(const Quadratics<double>&, const Parameters&, void*, const DeviceMachine&, core::UpTo<16>);

}  // namespace memformer::cuda
