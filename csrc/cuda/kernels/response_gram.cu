// Response-only networks in Gram space: the instance that serves a call. Instances: response_gram_*.cu.

#include "cuda/grid.cuh"
#include "cuda/instances.cuh"
#include "cuda/response_gram_plan.cuh"

namespace memformer::cuda {

template <class T, class Extent>
using Call = int(const Network<T>&, const Parameters&, void*, const DeviceMachine&, Extent);

extern template Call<float, core::Fixed<1>> run_response_gram;
extern template Call<float, core::Fixed<2>> run_response_gram;
extern template Call<float, core::Fixed<3>> run_response_gram;
extern template Call<float, core::Fixed<4>> run_response_gram;
extern template Call<float, core::Fixed<5>> run_response_gram;
extern template Call<float, core::Fixed<6>> run_response_gram;
extern template Call<float, core::Fixed<7>> run_response_gram;
extern template Call<float, core::Fixed<8>> run_response_gram;
extern template Call<float, core::UpTo<16>> run_response_gram;
extern template Call<double, core::UpTo<16>> run_response_gram;

template <class T>
int64_t response_gram_scratch(const Network<T>& network, const Parameters& parameters) {
  return response_gram_bytes(network, parameters);
}

template <class T>
int response_gram(const Network<T>& network, const Parameters& parameters, const Launch& launch) {
  const int d = network.width - 1;
  const auto run = [&](auto extent) {
    return run_response_gram(network, parameters, launch.scratch, DeviceMachine{launch}, extent);
  };
  return with_weights<T>(d, fits_shared(response_gram_call(network, parameters, core::UpTo<16>{d})), run);
}

template int64_t response_gram_scratch(const Network<float>&, const Parameters&);
template int64_t response_gram_scratch(const Network<double>&, const Parameters&);
template int response_gram(const Network<float>&, const Parameters&, const Launch&);
template int response_gram(const Network<double>&, const Parameters&, const Launch&);

}  // namespace memformer::cuda
