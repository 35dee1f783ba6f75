// Tasks drawn as sufficient statistics, in registers.
//
// Nothing is read: of a task with d = 5, n = 20 and the query integrated out, 16 Philox blocks, 64 uniforms, 20 normals
// and 15 logarithms make H, b and w (core/bartlett.h). A block is a chain of ten products, so two are made side by side
// wherever their numbers are wanted one after another.

#pragma once

#include "cuda/train/train_tasks.cuh"

namespace memformer::cuda {

// chi[i] = the sum of the logarithms of the next (context - i) / 2 uniforms, from a block's first on: the logarithm of
// a product whose exponent is kept apart after every block. `cells` have room for two numbers an i.
//
// Uniforms come 2^8 times as large as they are, so that the product of a block's four with a fraction is a normal
// number: from 2^-101 on.
template <class Extent>
class ChiSums {
  static constexpr float scale = 0x1p8f, scale_exponent = 8.0f;

 public:
  MEMFORMER_DEVICE ChiSums(int context, Extent d, core::Cells<float, warp_threads> cells)
      : context_(context), d_(d), cells_(cells), end_(context / 2) {}

  MEMFORMER_DEVICE void make(const core::Stream<float>& stream, uint32_t block, float* chi) {
    int all = 0;
    MEMFORMER_EACH(i, d_) all += (context_ - i) / 2;
    float u[8];
    int first = 0;
    // An odd block by itself.
    if (core::blocks_of(all) % 2) {
      stream.scaled_uniforms(block++, u, scale);
      take(u, first);
      first += 4;
    }
#pragma unroll 1
    for (; first < all; first += 8) {
      stream.scaled_uniforms(block++, u, scale);
      stream.scaled_uniforms(block++, u + 4, scale);
      take(u, first);
      take(u + 4, first + 4);
    }
    if (index_ < d_) keep();  // the last i's product is empty where the context is d
    MEMFORMER_UNROLL
    for (int i = 0; i < d_; ++i) chi[i] = core::logarithm(core::Split<float>{cells_[2 * i], cells_[2 * i + 1]});
  }

 private:
  // Four uniforms, numbers `first` and on of all: each belongs to the product of the i that it lies in.
  MEMFORMER_DEVICE void take(const float* u, int first) {
    const int left = end_ - first;
    if (left > 4) {
      product_.fraction *= u[0] * u[1];
      product_.fraction *= u[2] * u[3];
      keep_exponent(4.0f);
      return;
    }
    product_.fraction *= u[0];
    MEMFORMER_UNROLL
    for (int k = 1; k < 4; ++k) {
      if (k < left) product_.fraction *= u[k];
    }
    keep_exponent(static_cast<float>(left));
    keep();
    for (int begin = left; begin < 4 && index_ < d_;) {
      const int next = end_ - first, stop = next < 4 ? next : 4;
      MEMFORMER_UNROLL
      for (int k = 1; k < 4; ++k) {
        if (begin <= k && k < stop) product_.fraction *= u[k];
      }
      keep_exponent(static_cast<float>(stop - begin));
      if (next <= 4) keep();
      begin = stop;
    }
  }

  MEMFORMER_DEVICE void keep_exponent(float factors) {
    const core::Split<float> parts = core::split(product_.fraction, factors * scale_exponent);
    product_ = {product_.exponent + parts.exponent, parts.fraction};
  }

  MEMFORMER_DEVICE void keep() {
    cells_[2 * index_] = product_.exponent;
    cells_[2 * index_ + 1] = product_.fraction;
    product_ = {0.0f, 1.0f};
    end_ += (context_ - ++index_) / 2;
  }

  int context_;
  Extent d_;
  core::Cells<float, warp_threads> cells_;
  core::Split<float> product_{0.0f, 1.0f};
  int index_ = 0;
  int end_;
};

// A task drawn as sufficient statistics: of what makes it, its weights are kept.
template <class Extent>
class StatisticsTask {
  static constexpr int limit = Extent::limit;
  static constexpr int most_blocks = core::blocks_of(limit + limit * (limit - 1) / 2 + limit + (limit + 1) / 2);

 public:
  MEMFORMER_DEVICE void make(const StepTasks& tasks, Extent d, int64_t task,
                             core::SymmetricQuadratic<float, Extent>& quadratic,
                             core::Cells<float, warp_threads> cells) {
    const TaskSource<float>& source = tasks.source;
    const core::Stream<float> stream = tasks.stream(task);
    const core::StatisticsPlan plan = make_plan(source, d);
    float normals[4 * most_blocks];
    if constexpr (core::is_fixed<Extent>) {
      MEMFORMER_UNROLL
      for (int block = 0; block < most_blocks; ++block) {
        if (4 * block < plan.first_query()) stream.normals(block, normals + 4 * block);
      }
    } else {
#pragma unroll 1
      for (int block = 0; 4 * block < plan.first_query(); ++block) stream.normals(block, normals + 4 * block);
    }
    float chi[limit];
    ChiSums<Extent>(source.context, d, cells).make(stream, static_cast<uint32_t>(core::blocks_of(plan.normals())), chi);
    core::sample_statistics(plan, d, normals, chi, source.noise, tasks.weight_factor(), tasks.covariate_factor(),
                            quadratic, w_);
  }

  MEMFORMER_DEVICE float errors(const StepTasks& tasks, Extent d, int64_t task, const float* s, float* grad) const {
    return drawn_errors(tasks, d, task, make_plan(tasks.source, d).first_query(), w_, s, grad);
  }

 private:
  static MEMFORMER_DEVICE core::StatisticsPlan make_plan(const TaskSource<float>& source, Extent d) {
    return {d, source.context, source.queries, source.noise != 0.0f};
  }

  float w_[limit];
};

}  // namespace memformer::cuda
