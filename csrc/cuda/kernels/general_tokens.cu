// Networks of any structure in token space: the instance that serves a call. Instances: general_tokens_*.cu.

#include "cuda/general_tokens.cuh"
#include "cuda/team_launch.cuh"

namespace memformer::cuda {

extern template int launch_kernel<GeneralTokens<float, 3, 2, true>>(
    const GeneralTokens<float, 3, 2, true>::Arguments&, int64_t, int64_t, const Launch&);
extern template int launch_kernel<GeneralTokens<float, 4, 4, false>>(
    const GeneralTokens<float, 4, 4, false>::Arguments&, int64_t, int64_t, const Launch&);
extern template int launch_kernel<GeneralTokens<double, 4, 4, false>>(
    const GeneralTokens<double, 4, 4, false>::Arguments&, int64_t, int64_t, const Launch&);

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
