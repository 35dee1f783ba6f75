// Response-only networks in token space: the instance that serves a call. Instances: response_tokens_*.cu.

#include "cuda/response_tokens.cuh"
#include "cuda/team_launch.cuh"

namespace memformer::cuda {

extern template int launch_kernel<ResponseTokens<float, core::Fixed<5>, 4, true>>(
    const ResponseTokens<float, core::Fixed<5>, 4, true>::Arguments&, int64_t, int64_t, const Launch&);
extern template int launch_kernel<ResponseTokens<float, core::UpTo<8>, 8, true>>(
    const ResponseTokens<float, core::UpTo<8>, 8, true>::Arguments&, int64_t, int64_t, const Launch&);
extern template int launch_kernel<ResponseTokens<float, core::UpTo<16>, 16, false>>(
    const ResponseTokens<float, core::UpTo<16>, 16, false>::Arguments&, int64_t, int64_t, const Launch&);
extern template int launch_kernel<ResponseTokens<double, core::UpTo<8>, 8, true>>(
    const ResponseTokens<double, core::UpTo<8>, 8, true>::Arguments&, int64_t, int64_t, const Launch&);
extern template int launch_kernel<ResponseTokens<double, core::UpTo<16>, 16, false>>(
    const ResponseTokens<double, core::UpTo<16>, 16, false>::Arguments&, int64_t, int64_t, const Launch&);

template <class T>
int64_t response_tokens_scratch(const Network<T>& network, const Parameters& parameters) {
  return response_tokens_layout(network, parameters).bytes;
}

template <class T>
int response_tokens(const Network<T>& network, const Parameters& parameters, const Launch& launch) {
  return run_response_tokens(network, parameters, launch.scratch, DeviceMachine{launch});
}

template int64_t response_tokens_scratch(const Network<float>&, const Parameters&);
template int64_t response_tokens_scratch(const Network<double>&, const Parameters&);
template int response_tokens(const Network<float>&, const Parameters&, const Launch&);
template int response_tokens(const Network<double>&, const Parameters&, const Launch&);

}  // namespace memformer::cuda
