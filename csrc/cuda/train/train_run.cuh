// A call of the trainer on a machine that runs kernels: which instance, blocks, memory and launches.

#pragma once

#include "cuda/train/train.cuh"

namespace memformer::cuda {

// The instance that keeps traces in registers: that of workload W.
constexpr int hot_features = 5, hot_layers = 4;
// The least d with instances of its own.
constexpr int fewest_fixed_features = 2;
// Blocks of a model that wait for each other: what a cluster may have on every device with clusters.
constexpr int most_group = 8;

// Bytes of shared memory of a block: its own memory, or none where that does not fit.
inline int64_t shared_bytes(const TrainPlan& plan) {
  const int64_t own = plan.space.count * static_cast<int64_t>(sizeof(float));
  return own <= most_shared ? own : 0;
}

// A call's tasks and a block's own memory, before launches are chosen. `trace`: cells of a task; `used_slots`: of a
// warp.
inline TrainPlan plan_blocks(const Train& call, int trace, int used_slots) {
  TrainPlan plan{};
  plan.call = call;
  plan.dense = call.network.dense();
  plan.units = divided_up(call.source.tasks, train_unit);
  plan.share = 1.0 / (static_cast<double>(call.source.tasks) * (call.source.queries ? call.source.queries : 1));
  plan.space = train_space(plan, trace, used_slots);
  return plan;
}

template <class Kernel>
int trained_cells(const Train& call) {
  const int trace = Kernel::Sums::trace_cells(call.network, call.source.features);
  const int waiting = call.source.sampler == Sampler::statistics ? 0 : waiting_cells(call.source);
  return trace > waiting ? trace : waiting;
}

// Instances: one for each d from 2 on, where a block's memory is shared; for d = 5 and four layers of one register
// each, with gamma in full and no beta, one that keeps traces in registers; and any size, where a block's memory may be
// global.
template <int Features, template <class> class Task>
using TrainFixed = TrainSteps<core::Fixed<Features>, 0, Task>;
using TrainHot = TrainSteps<core::Fixed<hot_features>, hot_layers, StatisticsTask>;
template <template <class> class Task>
using TrainAny = TrainSteps<core::UpTo<most_trained_features>, 0, Task>;

template <class Kernel>
bool fits_shared(const Train& call) {
  return shared_bytes(plan_blocks(call, trained_cells<Kernel>(call), Kernel::Sums::used_slots)) > 0;
}

inline int64_t resident_blocks(const TrainPlan& plan, const Launch& launch) {
  const int64_t shared = shared_bytes(plan);
  const int64_t fit = launch.shared_of_multiprocessor / (shared + 1024);
  const int64_t allowed = train_blocks_of_multiprocessor(launch.capability), most = fit < allowed ? fit : allowed;
  return (most < 1 ? 1 : most) * launch.multiprocessors;
}

// Bytes of device memory, whose parts are placed in `scratch`.
inline int64_t place_memory(TrainPlan& plan, bool persistent, int64_t blocks, void* scratch) {
  const Train& call = plan.call;
  const int64_t models = call.source.models;
  int64_t bytes = 0;
  const auto part = [&](auto*& pointer, int64_t count) {
    using Number = std::remove_reference_t<decltype(*pointer)>;
    pointer = count ? reinterpret_cast<Number*>(static_cast<char*>(scratch) + bytes) : nullptr;
    bytes += divided_up(count * static_cast<int64_t>(sizeof(Number)), 256) * 256;
  };
  part(plan.progress, models);
  part(plan.corrections, core::corrects_bias(call.rule) ? models * call.steps : 0);
  part(plan.groups, persistent ? 0 : models * plan.group_count() * plan.sum_count());
  part(plan.cells, 2 * models * plan.units * plan.sum_count());
  part(plan.tables, train_tables(plan).count);
  part(plan.memory, shared_bytes(plan) ? 0 : blocks * plan.space.count);
  return bytes;
}

// A call's plan, and the bytes it needs.
struct PlannedTrain {
  TrainPlan plan;
  bool persistent;
  int64_t bytes;
};

// How long a step of all models takes with so many blocks a model, in turns of a block on a full multiprocessor (a unit
// of tasks), by the compiled code for 9.0: where blocks are few a turn takes as little as 3/7 of one; an update that
// is no launch takes half of one, and three launches take two. In fourteenths.
struct StepCost {
  int64_t models;
  int64_t units;
  int64_t resident;

  int64_t persistent(int64_t group) const {
    const int64_t rounds = divided_up(models * group, resident), turns = divided_up(units, group);
    const int64_t filled = models * group < resident ? models * group : resident;
    return rounds * (turns * (6 * resident + 8 * filled) / resident + 7);
  }
  int64_t replayed() const { return 14 * (divided_up(models * units, resident) + 2); }
};

template <class Kernel>
PlannedTrain plan_train(const Train& call, TrainMode mode, const Launch& launch) {
  PlannedTrain made{};
  TrainPlan& plan = made.plan;
  plan = plan_blocks(call, trained_cells<Kernel>(call), Kernel::Sums::used_slots);
  const int64_t models = call.source.models, resident = resident_blocks(plan, launch);
  // As many blocks a model as are there at the same time.
  int group = 1;
  while (2 * group <= most_group && 2 * group <= plan.units && 2 * group * models <= resident) group *= 2;
  const StepCost cost{models, plan.units, resident};
  made.persistent =
      mode == TrainMode::persistent || (mode == TrainMode::automatic && cost.persistent(group) <= cost.replayed());
  if (!made.persistent) {
    const int64_t share = resident / models;
    group = static_cast<int>(share < 1 ? 1 : share < plan.units ? share : plan.units);
  }
  plan.group = group;
  made.bytes = place_memory(plan, made.persistent, models * group, launch.scratch);
  return made;
}

// The launches of a call. Machine: upload(to, tables), run<Kernel>(plan, blocks, bytes of shared memory),
// run_together<Kernel>(the same, group) and repeat(steps, launches).
template <class Kernel, class Machine>
int run_train(const Train& call, TrainMode mode, const Launch& launch, const Machine& machine) {
  const auto [planned, persistent, bytes] = plan_train<Kernel>(call, mode, launch);
  TrainPlan plan = planned;
  const int64_t models = call.source.models, blocks = models * plan.group;
  const int64_t shared = shared_bytes(plan);
  if (const int error = machine.upload(plan.tables, fill_tables(plan))) return error;
  const int64_t starting = divided_up(models * call.steps, train_threads);
  if (const int error = machine.template run<TrainStart>(plan, starting < 256 ? starting : 256, 0)) return error;
  plan.makes_sums = true;
  plan.updates = persistent;
  if (persistent) return machine.template run_together<Kernel>(plan, blocks, shared, plan.group);
  TrainPlan update = plan;
  update.makes_sums = false;
  update.updates = true;
  update.group = 1;
  return machine.repeat(call.steps, [&](auto& to) {
    if (const int error = to.template run<Kernel>(plan, blocks, shared)) return error;
    if (const int error = to.template run<TrainGroups>(plan, models * plan.group_count(), 0)) return error;
    return to.template run<Kernel>(update, models, shared);
  });
}

template <template <class> class Task, int Features = most_trained_features, class Body>
auto with_fixed(const Train& call, Body body) {
  if constexpr (Features > fewest_fixed_features) {
    if (call.source.features < Features) return with_fixed<Task, Features - 1>(call, body);
  }
  return body(TrainFixed<Features, Task>{});
}

// Calls body with the kernel that serves a call.
template <class Body>
auto with_train_kernel(const Train& call, Body body) {
  const TrainedNetwork<float>& network = call.network;
  const bool statistics = call.source.sampler == Sampler::statistics;
  const bool lfom = network.kept == 1 && network.gamma_count && !network.diagonal && !network.beta_count;
  if (statistics && lfom && call.source.features == hot_features && network.layers == hot_layers &&
      fits_shared<TrainHot>(call)) {
    return body(TrainHot{});
  }
  if (call.source.features >= fewest_fixed_features && fits_shared<TrainAny<StatisticsTask>>(call)) {
    return statistics ? with_fixed<StatisticsTask>(call, body) : with_fixed<TokenTask>(call, body);
  }
  return statistics ? body(TrainAny<StatisticsTask>{}) : body(TrainAny<TokenTask>{});
}

}  // namespace memformer::cuda
