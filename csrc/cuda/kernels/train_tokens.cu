// Whole optimiser steps: any d up to 8, tasks with tokens, drawn or given.

#include "cuda/train_launch.cuh"

namespace memformer::cuda {

template int run_train_on_device<TrainTokens>(const Train&, TrainMode, const Launch&);

}  // namespace memformer::cuda
