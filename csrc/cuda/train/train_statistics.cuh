// Tasks drawn as sufficient statistics, in registers.
//
// Nothing is read: of a task with d = 5, n = 20 and the query integrated out, 16 Philox blocks, 64 uniforms, 20 normals
// and 26 quick logarithms make H, b and w (core/bartlett.h). A block is a chain of ten products, so two are made side
// by side wherever their numbers are wanted one after another.

#pragma once

#include "cuda/train/train_tasks.cuh"

namespace memformer::cuda {

// chi[i] = the sum of the logarithms of the next (context - i) / 2 uniforms, from a block's first on. A logarithm is
// taken of the product of two, by one instruction, whose error is small against a sum of several; where a block holds
// the end of an i's uniforms, of each. `cells` have room for a number an i.
template <class Extent>
class ChiSums {
  static constexpr int no_end = 1 << 30;
  static constexpr float ln2 = 0.693147181f;

 public:
  MEMFORMER_DEVICE ChiSums(int context, Extent d, core::Cells<float, warp_threads> cells)
      : context_(context), d_(d), cells_(cells), to_(cells), left_(count(0)) {}

  // `all`: uniforms of all i.
  MEMFORMER_DEVICE void make(const core::Stream<float>& stream, uint32_t block, int all, float* chi) {
    const uint32_t end = block + static_cast<uint32_t>(core::blocks_of(all));
    float u[8];
    // An odd block by itself.
    if ((end - block) % 2) {
      stream.uniforms(block++, u);
      take(u);
    }
#pragma unroll 1
    for (; block < end; block += 2) {
      stream.uniforms(block, u);
      stream.uniforms(block + 1, u + 4);
      take(u);
      take(u + 4);
    }
    if (index_ < d_) {  // the last i's sum is empty where the context is d, whatever follows in its block
      sum_ = 0.0f;
      keep();
    }
    MEMFORMER_UNROLL
    for (int i = 0; i < d_; ++i) chi[i] = fminf(cells_[i] * ln2, 0.0f);  // of one uniform near 1 it may err above 0
  }

 private:
  MEMFORMER_DEVICE int count(int i) const { return static_cast<int>(static_cast<unsigned>(context_ - i) / 2); }

  // The next four uniforms: each belongs to the sum of the i that it lies in.
  MEMFORMER_DEVICE void take(const float* u) {
    if (left_ >= 4) {
      sum_ += core::quick_binary_logarithm(u[0] * u[1]) + core::quick_binary_logarithm(u[2] * u[3]);
      if (left_ == 4) keep();
    } else {
      MEMFORMER_UNROLL
      for (int k = 0; k < 4; ++k) {
        sum_ += core::quick_binary_logarithm(u[k]);
        if (left_ == k + 1) keep();
      }
    }
    left_ -= 4;
  }

  MEMFORMER_DEVICE void keep() {
    to_[0] = sum_;
    to_ = to_.at(1);
    sum_ = 0.0f;
    left_ = ++index_ < d_ ? left_ + count(index_) : no_end;
  }

  int context_;
  Extent d_;
  core::Cells<float, warp_threads> cells_;
  core::Cells<float, warp_threads> to_;
  float sum_ = 0.0f;
  int index_ = 0;
  int left_;  // of this i's uniforms, from a block's first on
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
    ChiSums<Extent>(source.context, d, cells)
        .make(stream, static_cast<uint32_t>(core::blocks_of(plan.normals())), plan.uniforms(), chi);
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
