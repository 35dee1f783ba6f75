// Response-only networks in token space: the instance that serves a call.

#include "cuda/team/response_tokens.cuh"
#include "cuda/team/team_launch.cuh"
#include "cuda/team/token_rows_plan.cuh"
#include "instances/response_tokens.h"
#include "instances/token_rows.h"

namespace memformer::cuda {

template <class T>
int64_t response_tokens_scratch(const Network<T>& network, const Parameters& parameters) {
  if (fits_rows(network, parameters)) return token_rows_bytes(network, parameters);
  return response_tokens_layout(network, parameters).bytes;
}

template <class T>
int response_tokens(const Network<T>& network, const Parameters& parameters, const Launch& launch) {
  const DeviceMachine machine{launch};
  if constexpr (sizeof(T) == 4) {
    if (fits_rows(network, parameters)) return run_token_rows(network, parameters, launch.scratch, machine);
  }
  return run_response_tokens(network, parameters, launch.scratch, machine);
}

template int64_t response_tokens_scratch(const Network<float>&, const Parameters&);
template int64_t response_tokens_scratch(const Network<double>&, const Parameters&);
template int response_tokens(const Network<float>&, const Parameters&, const Launch&);
template int response_tokens(const Network<double>&, const Parameters&, const Launch&);

}  // namespace memformer::cuda
