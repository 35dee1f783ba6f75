// Response-only networks in Gram space: the instance that serves a call.

#include "cuda/machine/grid.cuh"
#include "cuda/team/split_gram_plan.cuh"
#include "cuda/thread/response_gram_plan.cuh"
#include "cuda/thread/sizes.cuh"
#include "instances/response_gram_plan.h"
#include "instances/split_gram.h"

namespace memformer::cuda {

template <class T>
int64_t response_gram_scratch(const Network<T>& network, const Parameters& parameters) {
  return fits_split(network, parameters) ? split_gram_bytes(network, parameters)
                                         : response_gram_bytes(network, parameters);
}

template <class T>
int response_gram(const Network<T>& network, const Parameters& parameters, const Launch& launch) {
  const int d = network.width - 1;
  const DeviceMachine machine{launch};
  if (fits_split(network, parameters)) return run_split_gram(network, parameters, launch.scratch, machine);
  const auto run = [&](auto extent) { return run_response_gram(network, parameters, launch.scratch, machine, extent); };
  return with_weights<T>(d, fits_shared(response_gram_call(network, parameters, core::UpTo<16>{d})), run);
}

template int64_t response_gram_scratch(const Network<float>&, const Parameters&);
template int64_t response_gram_scratch(const Network<double>&, const Parameters&);
template int response_gram(const Network<float>&, const Parameters&, const Launch&);
template int response_gram(const Network<double>&, const Parameters&, const Launch&);

}  // namespace memformer::cuda
