// Learned first-order methods on given quadratics: the instance that serves a call. Instances: quadratics_*.cu.

#include "cuda/grid.cuh"
#include "cuda/instances.cuh"
#include "cuda/quadratics.cuh"

namespace memformer::cuda {

template <class T, class Extent>
using Call = int(const Quadratics<T>&, const Parameters&, void*, const DeviceMachine&, Extent);

extern template Call<float, core::Fixed<1>> run_quadratics;
extern template Call<float, core::Fixed<2>> run_quadratics;
extern template Call<float, core::Fixed<3>> run_quadratics;
extern template Call<float, core::Fixed<4>> run_quadratics;
extern template Call<float, core::Fixed<5>> run_quadratics;
extern template Call<float, core::Fixed<6>> run_quadratics;
extern template Call<float, core::Fixed<7>> run_quadratics;
extern template Call<float, core::Fixed<8>> run_quadratics;
extern template Call<float, core::UpTo<16>> run_quadratics;
extern template Call<double, core::UpTo<16>> run_quadratics;

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
