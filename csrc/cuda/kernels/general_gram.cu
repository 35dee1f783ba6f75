// Networks of any structure in Gram space: the instance that serves a call. Instances: thread_gram_*.cu, one task a
// thread, and general_gram_*.cu, a team to a task.

#include "cuda/general_gram.cuh"
#include "cuda/instances.cuh"
#include "cuda/team_launch.cuh"
#include "cuda/thread_gram.cuh"

namespace memformer::cuda {

extern template int launch_kernel<GeneralGram<float, 3, 2, true>>(
    const GeneralGram<float, 3, 2, true>::Arguments&, int64_t, int64_t, const Launch&);
extern template int launch_kernel<GeneralGram<float, 4, 4, false>>(
    const GeneralGram<float, 4, 4, false>::Arguments&, int64_t, int64_t, const Launch&);
extern template int launch_kernel<GeneralGram<double, 4, 4, false>>(
    const GeneralGram<double, 4, 4, false>::Arguments&, int64_t, int64_t, const Launch&);

template <class Extent>
using Call = int(const Network<float>&, const Parameters&, void*, const DeviceMachine&, Extent);

extern template Call<core::Fixed<4>> run_thread_gram;
extern template Call<core::Fixed<5>> run_thread_gram;
extern template Call<core::Fixed<6>> run_thread_gram;

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
