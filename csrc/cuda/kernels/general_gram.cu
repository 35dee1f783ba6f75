// Networks of any structure in Gram space: the instance that serves a call. Instances: general_gram_*.cu.

#include "cuda/general_gram.cuh"
#include "cuda/team_launch.cuh"

namespace memformer::cuda {

extern template int launch_kernel<GeneralGram<float, 3, 2, true>>(
    const GeneralGram<float, 3, 2, true>::Arguments&, int64_t, int64_t, const Launch&);
extern template int launch_kernel<GeneralGram<float, 4, 4, false>>(
    const GeneralGram<float, 4, 4, false>::Arguments&, int64_t, int64_t, const Launch&);
extern template int launch_kernel<GeneralGram<double, 4, 4, false>>(
    const GeneralGram<double, 4, 4, false>::Arguments&, int64_t, int64_t, const Launch&);

template <class T>
int64_t general_gram_scratch(const Network<T>& network, const Parameters& parameters) {
  return network_layout<T, GeneralGram>(network, parameters).bytes;
}

template <class T>
int general_gram(const Network<T>& network, const Parameters& parameters, const Launch& launch) {
  return run_team_network<T, GeneralGram>(network, parameters, launch.scratch, DeviceMachine{launch});
}

template int64_t general_gram_scratch(const Network<float>&, const Parameters&);
template int64_t general_gram_scratch(const Network<double>&, const Parameters&);
template int general_gram(const Network<float>&, const Parameters&, const Launch&);
template int general_gram(const Network<double>&, const Parameters&, const Launch&);

}  // namespace memformer::cuda
