// The tasks of a training step, made by the thread that works on them: their quadratics and squared errors.
//
// Nothing is read but given tokens: of a statistics task with d = 5, n = 20 and the query integrated out, 16 Philox
// blocks, 64 uniforms, 20 normals and 15 logarithms make H, b and w in registers (core/bartlett.h). Numbers come from
// the places of the stream where every other device takes them.

#pragma once

#include "core/bartlett.h"
#include "core/gram.h"
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
  int64_t draw;
  int model;

  MEMFORMER_DEVICE core::Stream<float> stream(int64_t task) const {
    return {keys, static_cast<uint64_t>(static_cast<uint32_t>(task)), static_cast<uint32_t>(draw),
            static_cast<uint32_t>(source.streams[model])};
  }
  MEMFORMER_DEVICE const float* covariate_factor() const { return factor(source.covariate_factor); }
  MEMFORMER_DEVICE const float* weight_factor() const { return factor(source.weight_factor); }

 private:
  MEMFORMER_DEVICE const float* factor(const float* all) const {
    return all ? all + static_cast<int64_t>(model) * source.features * source.features : nullptr;
  }
};

// The squared errors of drawn queries, or of all queries: `count` from the normal `first` of the stream on.
template <class Extent>
MEMFORMER_DEVICE float drawn_errors(const StepTasks& tasks, Extent extent, const core::Stream<float>& stream,
                                    int64_t first, const float* w, const float* s, float* grad) {
  const float* const factor = tasks.covariate_factor();
  if (!tasks.source.queries) return core::integrated_error(extent, factor, w, s, grad);
  const int d = extent;
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

// chi[i] = the sum of the logarithms of the next (context - i) / 2 uniforms, from a block's first on: a product whose
// exponent is kept apart after every second factor. Every index is a constant, so that all stays in registers.
template <class Extent>
MEMFORMER_DEVICE void chi_sums(const core::Stream<float>& stream, uint32_t block, int context, Extent d, float* chi) {
  constexpr int limit = Extent::limit;
  core::Split<float> sums[limit];
  int all = 0;
  MEMFORMER_UNROLL
  for (int i = 0; i < limit; ++i) {
    sums[i] = {0.0f, 1.0f};
    if (i < d) all += (context - i) / 2;
  }
  core::Split<float> product{0.0f, 1.0f};
  const auto keep_exponent = [&] {
    const core::Split<float> parts = core::split(product.fraction);
    product = {product.exponent + parts.exponent, parts.fraction};
  };
  int index = 0, end = context / 2;
#pragma unroll 1
  for (int first = 0; first < all; first += 4) {
    float u[4];
    stream.uniforms(block++, u);
    if (first + 4 < end) {
      product.fraction *= u[0] * u[1];
      keep_exponent();
      product.fraction *= u[2] * u[3];
      keep_exponent();
      continue;
    }
    MEMFORMER_UNROLL
    for (int k = 0; k < 4; ++k) {
      product.fraction *= u[k];
      if (first + k + 1 == end) {
        MEMFORMER_UNROLL
        for (int i = 0; i < limit; ++i) {
          if (i == index) sums[i] = product;
        }
        product = {0.0f, 1.0f};
        end += (context - ++index) / 2;
      } else if (k % 2) {
        keep_exponent();
      }
    }
  }
  MEMFORMER_UNROLL
  for (int i = 0; i < limit; ++i) {
    const core::Split<float> parts = core::split(sums[i].fraction);
    chi[i] = core::logarithm(core::Split<float>{sums[i].exponent + parts.exponent, parts.fraction});
  }
}

// A task drawn as sufficient statistics.
template <class Extent>
class StatisticsTask {
  static constexpr int limit = Extent::limit;
  static constexpr int most_blocks = core::blocks_of(limit + limit * (limit - 1) / 2 + limit + (limit + 1) / 2);

 public:
  MEMFORMER_DEVICE StatisticsTask(const StepTasks& tasks, Extent d, int64_t task)
      : tasks_(tasks), d_(d), stream_(tasks.stream(task)) {}

  MEMFORMER_DEVICE void make(core::SymmetricQuadratic<float, Extent>& quadratic, core::Cells<float, warp_threads>) {
    const TaskSource<float>& source = tasks_.source;
    const core::StatisticsPlan plan = make_plan();
    float normals[4 * most_blocks];
    if constexpr (core::is_fixed<Extent>) {
      MEMFORMER_UNROLL
      for (int block = 0; block < most_blocks; ++block) {
        if (4 * block < plan.first_query()) stream_.normals(block, normals + 4 * block);
      }
    } else {
#pragma unroll 1
      for (int block = 0; 4 * block < plan.first_query(); ++block) stream_.normals(block, normals + 4 * block);
    }
    float chi[limit];
    chi_sums(stream_, static_cast<uint32_t>(core::blocks_of(plan.normals())), source.context, d_, chi);
    core::sample_statistics(plan, d_, normals, chi, source.noise, tasks_.weight_factor(), tasks_.covariate_factor(),
                            quadratic, w_);
  }

  MEMFORMER_DEVICE float errors(const float* s, float* grad) const {
    return drawn_errors(tasks_, d_, stream_, make_plan().first_query(), w_, s, grad);
  }

 private:
  MEMFORMER_DEVICE core::StatisticsPlan make_plan() const {
    const TaskSource<float>& source = tasks_.source;
    return {d_, source.context, source.queries, source.noise != 0.0f};
  }

  const StepTasks& tasks_;
  Extent d_;
  core::Stream<float> stream_;
  float w_[limit];
};

// Cells for the sums of 32 rows of a task that wait for their pair.
inline int waiting_cells(const TaskSource<float>& source) {
  int cells = 0;
  for (int blocks = (source.context + core::gram_block - 1) / core::gram_block; blocks > 1; blocks = (blocks + 1) / 2) {
    cells += core::packed_size(source.features + 1);
  }
  return cells;
}

// A task with tokens, drawn or of a given set, of which a row is there at a time.
template <class Extent>
class TokenTask {
  using Width = decltype(core::successor(Extent{}));
  static constexpr int limit = Extent::limit;

 public:
  MEMFORMER_DEVICE TokenTask(const StepTasks& tasks, Extent d, int64_t task)
      : tasks_(tasks), d_(d), stream_(tasks.stream(task)) {
    const TaskSource<float>& source = tasks.source;
    if (source.sampler == Sampler::given) {
      const int64_t first = (tasks.draw - source.first_draw) * source.models + tasks.model;
      const int64_t row = source.index ? source.index[first * source.tasks + task] : task;
      rows_ = source.z + row * source.tokens * (d + 1);
      targets_ = source.target + row * source.queries;
    }
  }

  MEMFORMER_DEVICE void make(core::SymmetricQuadratic<float, Extent>& quadratic,
                             core::Cells<float, warp_threads> waiting) {
    const TaskSource<float>& source = tasks_.source;
    const Width width = core::successor(d_);
    const int d = d_, entries = core::packed_size(width) - 1;
    NormalsInOrder normals(stream_, 0);
    if (!rows_) {
      float drawn[limit];
      MEMFORMER_UNROLL
      for (int c = 0; c < d; ++c) drawn[c] = normals.next();
      core::transform(d_, tasks_.weight_factor(), drawn, w_);
    }
    const bool noisy = source.noise != 0.0f;
    NormalsInOrder noise(stream_, noisy ? d + static_cast<int64_t>(source.tokens) * d : 0);
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
          draw_row(normals, values);
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

  MEMFORMER_DEVICE float errors(const float* s, float* grad) const {
    const TaskSource<float>& source = tasks_.source;
    const int d = d_;
    if (!rows_) return drawn_errors(tasks_, d_, stream_, d + static_cast<int64_t>(source.context) * d, w_, s, grad);
    float squares = 0.0f;
    for (int query = 0; query < source.queries; ++query) {
      const float* const row = rows_ + static_cast<int64_t>(source.tokens - source.queries + query) * (d + 1);
      float x[limit];
      MEMFORMER_UNROLL
      for (int c = 0; c < d; ++c) x[c] = row[c];
      squares += core::query_error(d_, x, row[d] + targets_[query], s, grad);
    }
    return squares;
  }

 private:
  MEMFORMER_DEVICE void draw_row(NormalsInOrder& normals, float* values) const {
    const int d = d_;
    float drawn[limit];
    MEMFORMER_UNROLL
    for (int c = 0; c < d; ++c) drawn[c] = normals.next();
    core::transform(d_, tasks_.covariate_factor(), drawn, values);
    float response = values[0] * w_[0];
    MEMFORMER_UNROLL
    for (int c = 1; c < d; ++c) response += values[c] * w_[c];
    values[d] = response;
  }

  // Joins the sums of one more block of rows to those that wait, pairwise; after the last one they are the whole sum.
  MEMFORMER_DEVICE static void add_block(float* sums, int entries, int before, bool last,
                                         core::Cells<float, warp_threads> waiting) {
    const auto add = [&](int level) {
      for (int k = 0; k < entries; ++k) sums[k] = waiting[level * entries + k] + sums[k];
    };
    int level = 0;
    for (int carry = before; carry & 1; carry >>= 1) add(level++);
    if (!last) {
      for (int k = 0; k < entries; ++k) waiting[level * entries + k] = sums[k];
      return;
    }
    for (int carry = (before + 1) >> ++level; carry; carry >>= 1, ++level) {
      if (carry & 1) add(level);
    }
  }

  const StepTasks& tasks_;
  Extent d_;
  core::Stream<float> stream_;
  const float* rows_ = nullptr;
  const float* targets_ = nullptr;
  float w_[limit];
};

}  // namespace memformer::cuda
