// One layer on tokens: the instance that serves a call. Instances: layer_*.cu.

#include "cuda/layer.cuh"
#include "cuda/team_launch.cuh"

namespace memformer::cuda {

extern template int launch_kernel<OneLayer<float, 3, 2, true>>(
    const OneLayer<float, 3, 2, true>::Arguments&, int64_t, int64_t, const Launch&);
extern template int launch_kernel<OneLayer<float, 4, 4, false>>(
    const OneLayer<float, 4, 4, false>::Arguments&, int64_t, int64_t, const Launch&);
extern template int launch_kernel<OneLayer<double, 4, 4, false>>(
    const OneLayer<double, 4, 4, false>::Arguments&, int64_t, int64_t, const Launch&);

template <class T>
int64_t layer_scratch(const Layer<T>& layer, const Parameters& parameters) {
  return layer.earlier > most_earlier ? -1 : layer_layout(layer, parameters).bytes;
}

template <class T>
int layer(const Layer<T>& layer, const Parameters& parameters, const Launch& launch) {
  return run_team_layer(layer, parameters, launch.scratch, DeviceMachine{launch});
}

template int64_t layer_scratch(const Layer<float>&, const Parameters&);
template int64_t layer_scratch(const Layer<double>&, const Parameters&);
template int layer(const Layer<float>&, const Parameters&, const Launch&);
template int layer(const Layer<double>&, const Parameters&, const Launch&);

}  // namespace memformer::cuda
