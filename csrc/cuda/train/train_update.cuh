// One optimiser step of a model from its partial sums: added up in order, clipped, applied; by one block, in its own
// memory.
//
// A thread owns every 128th number. Sums of 1024 tasks are pairwise in float, 16 of those are added in double, and so
// are such groups, in order: whoever works them out, the bits are the same. Bytes: the partial sums once. Operations:
// for each of K sums an addition a unit, for each of the model's numbers those of core/optimizer.h.

#pragma once

#include "cuda/train/train_plan.cuh"

namespace memformer::cuda {

// One of K sums over a group of blocks of tasks.
MEMFORMER_DEVICE double sum_of_group(const TrainPlan& plan, const float* cells, int64_t group, int column) {
  Partials<float> partials{};
  partials.cells = const_cast<float*>(cells);
  partials.units = plan.units;
  partials.count = plan.sum_count();
  constexpr int units = block_tasks / train_unit;
  const int64_t first = group * group_blocks, all = plan.blocks();
  const int64_t last = first + group_blocks < all ? first + group_blocks : all;
  double sum = 0.0;
#pragma unroll 2
  for (int64_t block = first; block < last; ++block) {
    sum += static_cast<double>(pairwise_rows<units>(partials, units * block, column));
  }
  return sum;
}

// What a model's blocks keep in their memory from step to step.
template <class Block>
class TrainedModel {
 public:
  MEMFORMER_DEVICE TrainedModel(const TrainPlan& plan, const Block& block, int model, float* memory)
      : plan_(plan), block_(block), model_(model), memory_(memory), now_(plan.space.now), next_(plan.space.next) {}

  // From the tensors; barriers follow and end it. `draw`: the first one whose tasks are made.
  MEMFORMER_DEVICE void load(int64_t draw) {
    const TrainSpace& space = plan_.space;
    int* const to = reinterpret_cast<int*>(memory_ + space.tables);
    for (int k = block_.thread(); k < train_tables(plan_).count; k += Block::threads) to[k] = plan_.tables[k];
    set_keys(draw);
    if (block_.thread() == 0) {
      *reinterpret_cast<int64_t*>(memory_ + space.skipped) = plan_.call.skipped[model_];
    }
    for (int k = block_.thread(); k < hyper_count; k += Block::threads) {
      hyper()[k] = plan_.call.hyper[hyper_count * static_cast<int64_t>(model_) + k];
    }
    each_number([&](const TrainedTensor& tensor, int64_t from, int k) {
      memory_[now_ + k] = tensor.parameters[from];
      if (!plan_.updates) return;
      memory_[now_ + space.step + k] = tensor.first[from];
      memory_[now_ + 2 * space.step + k] = tensor.second ? tensor.second[from] : 0.0f;
      memory_[space.trained + k] = !tensor.trained || tensor.trained[from] ? 1.0f : 0.0f;
    });
    block_.sync();
    expand();
  }

  // The keys of a draw's words; barriers before and after are the caller's.
  MEMFORMER_DEVICE void set_keys(int64_t draw) const {
    if (block_.thread() > 0) return;
    *reinterpret_cast<core::PhiloxKeys*>(memory_ + plan_.space.keys) =
        core::philox_keys(static_cast<uint64_t>(plan_.call.source.seeds[model_]), draw);
  }

  MEMFORMER_DEVICE void store() const {
    const TrainSpace& space = plan_.space;
    each_number([&](const TrainedTensor& tensor, int64_t to, int k) {
      tensor.parameters[to] = memory_[now_ + k];
      tensor.first[to] = memory_[now_ + space.step + k];
      if (tensor.second) tensor.second[to] = memory_[now_ + 2 * space.step + k];
    });
  }

  // What differs from step to step: step number `index` of the call, the `taken`-th that is taken.
  struct Rates {
    double factor;
    core::BiasCorrections corrections;
  };
  MEMFORMER_DEVICE Rates rates(int index, int taken) const {
    Rates rates{plan_.call.factors[index], {1.0, 1.0}};
    if (plan_.corrections) {
      rates.corrections = plan_.corrections[static_cast<int64_t>(model_) * plan_.call.steps + taken];
    }
    return rates;
  }
  MEMFORMER_DEVICE core::StepScalars<float> scalars(const Rates& rates) const {
    return core::step_scalars<float>(plan_.call.rule, hyper(), rates.factor, rates.corrections);
  }

  // A step from its partial sums: whether it was taken. All threads learn the loss.
  MEMFORMER_DEVICE bool update(const float* cells, const core::StepScalars<float>& scalars, double& loss) {
    add_up(cells);
    loss = sums()[plan_.dense] * plan_.share;
    make_grads();
    if (plan_.call.clip_groups) clip();
    const bool stepped = isfinite(loss) && step_numbers(scalars);
    if (stepped) {
      const int before = now_;
      now_ = next_;
      next_ = before;
      expand();
    }
    return stepped;
  }

 private:
  MEMFORMER_DEVICE double* sums() const { return reinterpret_cast<double*>(memory_ + plan_.space.sums); }
  MEMFORMER_DEVICE double* hyper() const { return reinterpret_cast<double*>(memory_ + plan_.space.hyper); }
  MEMFORMER_DEVICE int* wrong() const { return reinterpret_cast<int*>(memory_ + plan_.space.wrong); }
  MEMFORMER_DEVICE const int* table(int begin) const {
    return reinterpret_cast<const int*>(memory_ + plan_.space.tables) + begin;
  }

  // body(tensor, its number, flat number) for this thread's numbers of the model.
  template <class Body>
  MEMFORMER_DEVICE void each_number(Body body) const {
    int begin = 0;
    for (int k = 0; k < plan_.call.tensor_count; ++k) {
      const TrainedTensor& tensor = plan_.call.tensors[k];
      for (int entry = block_.thread(); entry < tensor.count; entry += Block::threads) {
        body(tensor, static_cast<int64_t>(model_) * tensor.count + entry, begin + entry);
      }
      begin += tensor.count;
    }
  }

  // The dense form, from the flat one.
  MEMFORMER_DEVICE void expand() const {
    const int* const begins = table(0);
    const int* const links = table(train_tables(plan_).dense_links);
    const int* const places = table(train_tables(plan_).places);
    for (int k = block_.thread(); k < plan_.dense; k += Block::threads) {
      float sum = 0.0f;
      for (int link = begins[k]; link < begins[k + 1]; ++link) sum += memory_[now_ + links[link]];
      memory_[places[k]] = sum;
    }
    block_.sync();
  }

  MEMFORMER_DEVICE void add_up(const float* cells) const {
    const int64_t count = plan_.group_count();
    for (int k = block_.thread(); k < plan_.sum_count(); k += Block::threads) {
      double sum = 0.0;
      if (plan_.groups) {
        const double* const from = plan_.groups + model_ * count * plan_.sum_count() + k;
#pragma unroll 8
        for (int64_t group = 0; group < count; ++group) sum += from[group * plan_.sum_count()];
      } else {
#pragma unroll 1
        for (int64_t group = 0; group < count; ++group) sum += sum_of_group(plan_, cells, group, k);
      }
      sums()[k] = sum;
    }
    if (block_.thread() == 0) *wrong() = 0;
    block_.sync();
  }

  MEMFORMER_DEVICE void make_grads() const {
    const TrainSpace& space = plan_.space;
    const int* const begins = table(train_tables(plan_).flat_begins);
    const int* const links = table(train_tables(plan_).flat_links);
    for (int k = block_.thread(); k < plan_.call.flat; k += Block::threads) {
      double sum = 0.0;
      for (int link = begins[k]; link < begins[k + 1]; ++link) sum += sums()[links[link]];
      memory_[space.grad + k] = memory_[space.trained + k] != 0.0f ? static_cast<float>(sum * plan_.share) : 0.0f;
    }
    block_.sync();
  }

  // A warp takes every fourth group.
  MEMFORMER_DEVICE void clip() const {
    float* const grad = memory_ + plan_.space.grad;
    const int* const ends = table(train_tables(plan_).clip_ends);
    const double limit = hyper()[hyper_count - 1];
    for (int group = block_.warp(); group < plan_.call.clip_groups; group += Block::warps) {
      const int begin = group ? ends[group - 1] : 0, end = ends[group];
      double squared = 0.0;
      for (int k = begin + block_.lane(); k < end; k += warp_threads) {
        squared += static_cast<double>(grad[k]) * static_cast<double>(grad[k]);
      }
      for (int mask = warp_threads / 2; mask > 0; mask /= 2) squared += block_.shuffle_xor(squared, mask);
      const float scale = static_cast<float>(core::clip_scale(squared, limit));
      for (int k = begin + block_.lane(); k < end; k += warp_threads) grad[k] *= scale;
    }
    block_.sync();
  }

  // New numbers beside the present ones: whether all are finite.
  MEMFORMER_DEVICE bool step_numbers(const core::StepScalars<float>& scalars) const {
    const TrainSpace& space = plan_.space;
    for (int k = block_.thread(); k < plan_.call.flat; k += Block::threads) {
      const float grad = memory_[space.grad + k];
      float values[3];
      MEMFORMER_UNROLL
      for (int i = 0; i < 3; ++i) values[i] = memory_[now_ + i * space.step + k];
      if (memory_[space.trained + k] != 0.0f) core::step_number(scalars, grad, values[0], values[1], values[2]);
      float off = grad - grad;
      MEMFORMER_UNROLL
      for (int i = 0; i < 3; ++i) {
        off += values[i] - values[i];
        memory_[next_ + i * space.step + k] = values[i];
      }
      if (off != 0.0f) *wrong() = 1;
    }
    block_.sync();
    return *wrong() == 0;
  }

  const TrainPlan& plan_;
  const Block& block_;
  int model_;
  float* memory_;
  int now_;   // where the parameters and moments are
  int next_;  // and where a step leaves new ones
};

}  // namespace memformer::cuda
