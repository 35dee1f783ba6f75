// Tasks with tokens, drawn or of a given set: a row of a task is there at a time.

#pragma once

#include "core/gram.h"
#include "cuda/train/train_tasks.cuh"

namespace memformer::cuda {

// Cells for the sums of 32 rows of a task that wait for their pair.
inline int waiting_cells(const TaskSource<float>& source) {
  int cells = 0;
  for (int blocks = (source.context + core::gram_block - 1) / core::gram_block; blocks > 1; blocks = (blocks + 1) / 2) {
    cells += core::packed_size(source.features + 1);
  }
  return cells;
}

// A task with tokens, drawn or of a given set, of which a row is there at a time; its weights are kept, or where it
// lies.
template <class Extent>
class TokenTask {
  using Width = decltype(core::successor(Extent{}));
  static constexpr int limit = Extent::limit;

 public:
  MEMFORMER_DEVICE void make(const StepTasks& tasks, Extent extent, int64_t task,
                             core::SymmetricQuadratic<float, Extent>& quadratic,
                             core::Cells<float, warp_threads> waiting) {
    const TaskSource<float>& source = tasks.source;
    const core::Stream<float> stream = tasks.stream(task);
    rows_ = nullptr;
    if (source.sampler == Sampler::given) {
      const int64_t first = (tasks.draw - source.first_draw) * source.models + tasks.model;
      const int64_t row = source.index ? source.index[first * source.tasks + task] : task;
      rows_ = source.z + row * source.tokens * (extent + 1);
      targets_ = source.target + row * source.queries;
    }
    const Width width = core::successor(extent);
    const int d = extent, entries = core::packed_size(width) - 1;
    NormalsInOrder normals(stream, 0);
    if (!rows_) {
      float drawn[limit];
      MEMFORMER_UNROLL
      for (int c = 0; c < d; ++c) drawn[c] = normals.next();
      core::transform(extent, tasks.weight_factor(), drawn, w_);
    }
    const bool noisy = source.noise != 0.0f;
    NormalsInOrder noise(stream, noisy ? d + static_cast<int64_t>(source.tokens) * d : 0);
    float sums[core::packed_size(Width::limit)];
    int blocks = 0;
    for (int first = 0; first < source.context; first += core::gram_block) {
      const int last = source.context - first < core::gram_block ? source.context : first + core::gram_block;
      MEMFORMER_UNROLL
      for (int k = 0; k < entries; ++k) sums[k] = 0.0f;
#pragma unroll 1
      for (int row = first; row < last; ++row) {
        float values[Width::limit];
        if (rows_) {
          MEMFORMER_UNROLL
          for (int c = 0; c < width; ++c) values[c] = rows_[static_cast<int64_t>(row) * width + c];
        } else {
          draw_row(tasks, extent, normals, values);
          if (noisy) values[d] += noise.next() * source.noise;
        }
        core::add_gram_row<false>(values, width, sums);
      }
      add_block(sums, entries, blocks++, last == source.context, waiting);
    }
    const float share = 1.0f / static_cast<float>(source.context);
    MEMFORMER_UNROLL
    for (int k = 0; k < core::packed_size(d); ++k) quadratic.h[k] = sums[k] * share;
    MEMFORMER_UNROLL
    for (int c = 0; c < d; ++c) quadratic.b[c] = sums[core::packed_size(d) + c] * share;
  }

  MEMFORMER_DEVICE float errors(const StepTasks& tasks, Extent extent, int64_t task, const float* s,
                                float* grad) const {
    const TaskSource<float>& source = tasks.source;
    const int d = extent;
    if (!rows_) return drawn_errors(tasks, extent, task, d + static_cast<int64_t>(source.context) * d, w_, s, grad);
    float squares = 0.0f;
    for (int query = 0; query < source.queries; ++query) {
      const float* const row = rows_ + static_cast<int64_t>(source.tokens - source.queries + query) * (d + 1);
      float x[limit];
      MEMFORMER_UNROLL
      for (int c = 0; c < d; ++c) x[c] = row[c];
      squares += core::query_error(extent, x, row[d] + targets_[query], s, grad);
    }
    return squares;
  }

 private:
  MEMFORMER_DEVICE void draw_row(const StepTasks& tasks, Extent extent, NormalsInOrder& normals, float* values) const {
    const int d = extent;
    float drawn[limit];
    MEMFORMER_UNROLL
    for (int c = 0; c < d; ++c) drawn[c] = normals.next();
    core::transform(extent, tasks.covariate_factor(), drawn, values);
    float response = values[0] * w_[0];
    MEMFORMER_UNROLL
    for (int c = 1; c < d; ++c) response += values[c] * w_[c];
    values[d] = response;
  }

  // Joins the sums of one more block of rows to those that wait, pairwise; after the last one they are the whole sum.
  MEMFORMER_DEVICE static void add_block(float* sums, int entries, int before, bool last,
                                         core::Cells<float, warp_threads> waiting) {
    const auto add = [&](int level) {
      MEMFORMER_UNROLL
      for (int k = 0; k < entries; ++k) sums[k] = waiting[level * entries + k] + sums[k];
    };
    int level = 0;
    for (int carry = before; carry & 1; carry >>= 1) add(level++);
    if (!last) {
      MEMFORMER_UNROLL
      for (int k = 0; k < entries; ++k) waiting[level * entries + k] = sums[k];
      return;
    }
    for (int carry = (before + 1) >> ++level; carry; carry >>= 1, ++level) {
      if (carry & 1) add(level);
    }
  }

  const float* rows_ = nullptr;
  const float* targets_ = nullptr;
  float w_[limit];
};

}  // namespace memformer::cuda
