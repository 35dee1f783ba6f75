// One layer on tokens: the instance that serves a call.

#include "cuda/team/layer.cuh"
#include "cuda/team/team_launch.cuh"
#include "instances/layer.h"

namespace memformer::cuda {

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
