// Whole optimiser steps: any d up to 8, tasks drawn as sufficient statistics.

#include "cuda/train_launch.cuh"

namespace memformer::cuda {

template int run_train_on_device<TrainStatistics>(const Train&, TrainMode, const Launch&);

}  // namespace memformer::cuda
