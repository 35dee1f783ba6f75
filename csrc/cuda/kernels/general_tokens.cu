// Networks of any structure in token space: the instance that serves a call.

#include "cuda/team/general_tokens.cuh"
#include "cuda/team/team_launch.cuh"
#include "instances/general_tokens.h"

namespace memformer::cuda {

template <class T>
int64_t general_tokens_scratch(const Network<T>& network, const Parameters& parameters) {
  return network_layout<T, GeneralTokens>(network, parameters).bytes;
}

template <class T>
int general_tokens(const Network<T>& network, const Parameters& parameters, const Launch& launch) {
  return run_team_network<T, GeneralTokens>(network, parameters, launch.scratch, DeviceMachine{launch});
}

template int64_t general_tokens_scratch(const Network<float>&, const Parameters&);
template int64_t general_tokens_scratch(const Network<double>&, const Parameters&);
template int general_tokens(const Network<float>&, const Parameters&, const Launch&);
template int general_tokens(const Network<double>&, const Parameters&, const Launch&);

}  // namespace memformer::cuda
