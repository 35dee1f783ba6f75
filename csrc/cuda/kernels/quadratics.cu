// Learned first-order methods on given quadratics: the instance that serves a call.

#include "cuda/machine/grid.cuh"
#include "cuda/thread/quadratics.cuh"
#include "cuda/thread/sizes.cuh"
#include "instances/quadratics.h"

namespace memformer::cuda {

template <class T>
int64_t quadratics_scratch(const Quadratics<T>& call, const Parameters& parameters) {
  return quadratics_bytes(call, parameters);
}

template <class T>
int quadratics(const Quadratics<T>& call, const Parameters& parameters, const Launch& launch) {
  const int d = call.weights;
  const auto run = [&](auto extent) {
    return run_quadratics(call, parameters, launch.scratch, DeviceMachine{launch}, extent);
  };
  return with_weights<T>(d, fits_shared(quadratics_plan(call, parameters, core::UpTo<16>{d})), run);
}

template int64_t quadratics_scratch(const Quadratics<float>&, const Parameters&);
template int64_t quadratics_scratch(const Quadratics<double>&, const Parameters&);
template int quadratics(const Quadratics<float>&, const Parameters&, const Launch&);
template int quadratics(const Quadratics<double>&, const Parameters&, const Launch&);

}  // namespace memformer::cuda
