// Whole optimiser steps: the instance that serves a call. Instances: instances.txt.

#include "cuda/train/train_launch.cuh"

namespace memformer::cuda {

int64_t train_scratch(const Train& call, TrainMode mode, const Launch& launch) {
  return with_train_kernel(call, [&](auto kernel) { return plan_train<decltype(kernel)>(call, mode, launch).bytes; });
}

int train(const Train& call, TrainMode mode, const Launch& launch) {
  return with_train_kernel(call,
                           [&](auto kernel) { return run_train_on_device<decltype(kernel)>(call, mode, launch); });
}

}  // namespace memformer::cuda
