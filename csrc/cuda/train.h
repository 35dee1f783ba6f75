// What the binding calls to train models on a CUDA device: plain C++, no CUDA types, no torch.
//
// Response-only models in Gram space, float, d <= 8. Parameters and moments stay in the tensors that hold them and are
// changed there; nothing waits for the device.

#pragma once

#include <cstdint>

#include "core/training.h"
#include "cuda/launch.h"

namespace memformer::cuda {

// The largest d that is served.
constexpr int most_trained_features = 8;

// One parameter of M models, each with `count` numbers: contiguous device memory.
struct TrainedTensor {
  float* parameters = nullptr;
  float* first = nullptr;
  float* second = nullptr;        // null: SGD
  const bool* trained = nullptr;  // null: all
  int count = 0;
};

// Steps [step, step + steps) of M models. Pointers are device memory, but for the links of `network` and `clip_ends`.
// A model's flat numbers are those of its tensors, one after another.
struct Train {
  TrainedNetwork<float> network{};
  TaskSource<float> source{};
  TrainedTensor tensors[3];
  int tensor_count = 0;
  int flat = 0;
  Rule rule = Rule::sgd;
  int clip_groups = 0;
  const int* clip_ends = nullptr;  // host memory
  int64_t max_skipped = -1;
  const double* hyper = nullptr;    // (M, 6)
  const double* factors = nullptr;  // (steps,)
  int64_t* skipped = nullptr;       // (M,)
  double* losses = nullptr;         // (steps, M)
  int64_t step = 0;
  int steps = 0;
  int64_t resample_every = 1;
};

// How steps are run. `automatic` takes what is predicted to be quicker, by the number of tasks and by how many blocks
// the device holds (train/train_run.cuh).
enum class TrainMode : int {
  automatic,
  persistent,  // one launch for all steps; a few blocks a model, which wait for each other once a step
  replay       // three launches a step over the whole device, replayed as a graph
};

int64_t train_scratch(const Train& call, TrainMode mode, const Launch& launch);
int train(const Train& call, TrainMode mode, const Launch& launch);

}  // namespace memformer::cuda
