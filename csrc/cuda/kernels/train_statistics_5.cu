// Whole optimiser steps: d = 5, at most four layers with one register each, tasks drawn as sufficient statistics: all in registers.

#include "cuda/train_launch.cuh"

namespace memformer::cuda {

template int run_train_on_device<TrainHot>(const Train&, TrainMode, const Launch&);

}  // namespace memformer::cuda
