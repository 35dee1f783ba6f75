// Networks of any structure in Gram space: the instance that serves a call.

#include "cuda/team/general_gram.cuh"
#include "cuda/team/team_launch.cuh"
#include "cuda/thread/sizes.cuh"
#include "cuda/thread/thread_gram.cuh"
#include "instances/general_gram.h"
#include "instances/thread_gram.h"

namespace memformer::cuda {

template <class T>
int64_t general_gram_scratch(const Network<T>& network, const Parameters& parameters) {
  if (fits_thread(network, parameters)) return thread_gram_bytes(network, parameters);
  return network_layout<T, GeneralGram>(network, parameters).bytes;
}

template <class T>
int general_gram(const Network<T>& network, const Parameters& parameters, const Launch& launch) {
  const DeviceMachine machine{launch};
  if constexpr (sizeof(T) == 4) {
    if (network.tasks > 0 && fits_thread(network, parameters)) {
      return with_small_width(network.width, [&](auto width) {
        return run_thread_gram(network, parameters, launch.scratch, machine, width);
      });
    }
  }
  return run_team_network<T, GeneralGram>(network, parameters, launch.scratch, machine);
}

template int64_t general_gram_scratch(const Network<float>&, const Parameters&);
template int64_t general_gram_scratch(const Network<double>&, const Parameters&);
template int general_gram(const Network<float>&, const Parameters&, const Launch&);
template int general_gram(const Network<double>&, const Parameters&, const Launch&);

}  // namespace memformer::cuda
