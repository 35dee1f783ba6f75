// What the tasks of a training step share, and what every kind of drawn task does: its stream, and its queries' errors.
//
// A task is made by the thread that works on it. Numbers come from the places of the stream where every other device
// takes them.

#pragma once

#include "core/bartlett.h"
#include "core/squared_error.h"
#include "core/training.h"
#include "cuda/machine/execution.cuh"

namespace memformer::cuda {

// Normals one after another, from any place of the stream on.
class NormalsInOrder {
 public:
  MEMFORMER_DEVICE NormalsInOrder(const core::Stream<float>& stream, int64_t first)
      : stream_(stream), block_(static_cast<uint32_t>(first / 4)), left_(0) {
    for (int skipped = static_cast<int>(first % 4); skipped > 0; --skipped) next();
  }

  // The waiting numbers move up, so that they stay in registers.
  MEMFORMER_DEVICE float next() {
    if (left_ == 0) {
      stream_.normals(block_++, waiting_);
      left_ = 4;
    }
    --left_;
    const float first = waiting_[0];
    MEMFORMER_UNROLL
    for (int k = 0; k < 3; ++k) waiting_[k] = waiting_[k + 1];
    return first;
  }

 private:
  const core::Stream<float>& stream_;
  uint32_t block_;
  int left_;
  float waiting_[4];
};

// What all tasks of a model share in a step.
struct StepTasks {
  const TaskSource<float>& source;
  const core::PhiloxKeys& keys;
  uint32_t of_model;  // its stream
  int64_t draw;
  int model;

  MEMFORMER_DEVICE core::Stream<float> stream(int64_t task) const {
    return {keys, static_cast<uint32_t>(task), static_cast<uint32_t>(draw), of_model};
  }
  MEMFORMER_DEVICE const float* covariate_factor() const { return factor(source.covariate_factor); }
  MEMFORMER_DEVICE const float* weight_factor() const { return factor(source.weight_factor); }

 private:
  MEMFORMER_DEVICE const float* factor(const float* all) const {
    return all ? all + static_cast<int64_t>(model) * source.features * source.features : nullptr;
  }
};

// The squared errors of a task's drawn queries, from the normal `first` of its stream on, or of all queries.
template <class Extent>
MEMFORMER_DEVICE float drawn_errors(const StepTasks& tasks, Extent extent, int64_t task, int64_t first, const float* w,
                                    const float* s, float* grad) {
  const float* const factor = tasks.covariate_factor();
  if (!tasks.source.queries) return core::integrated_error(extent, factor, w, s, grad);
  const int d = extent;
  const core::Stream<float> stream = tasks.stream(task);
  NormalsInOrder normals(stream, first);
  float squares = 0.0f;
  for (int query = 0; query < tasks.source.queries; ++query) {
    float drawn[Extent::limit], x[Extent::limit];
    MEMFORMER_UNROLL
    for (int c = 0; c < d; ++c) drawn[c] = normals.next();
    core::transform(extent, factor, drawn, x);
    float target = x[0] * w[0];
    MEMFORMER_UNROLL
    for (int c = 1; c < d; ++c) target += x[c] * w[c];
    squares += core::query_error(extent, x, target, s, grad);
  }
  return squares;
}

}  // namespace memformer::cuda
