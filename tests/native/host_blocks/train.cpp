// The trainer's launches on the host: every block of a model at a time, thread by thread.

#include <cstdlib>

#include "host_group.h"

#include "cuda/train/train_run.cuh"
#include "numbers.h"
#include "team_machine.h"

namespace memformer::cuda {
namespace {

struct HostTrainMachine {
  unsigned order;

  int upload(int* to, const std::vector<int>& tables) const {
    std::memcpy(to, tables.data(), tables.size() * sizeof(int));
    return 0;
  }
  template <class Kernel>
  int run(const TrainPlan& plan, int64_t blocks, int64_t shared) const {
    return run_together<Kernel>(plan, blocks, shared, 1);
  }
  template <class Kernel>
  int run_together(const TrainPlan& plan, int64_t blocks, int64_t shared, int group) const {
    run_groups<Kernel>(plan, blocks, static_cast<std::size_t>(shared), group, order);
    return 0;
  }
  template <class Body>
  int repeat(int64_t steps, Body launches) const {
    for (int64_t step = 0; step < steps; ++step) launches(*this);
    return 0;
  }
};

template <class Pointer>
void read(Numbers& given, Pointer*& pointer) {
  pointer = static_cast<Pointer*>(given.pointer());
}

Train read_call(const int64_t* numbers) {
  Numbers given(numbers);
  Train call;
  TrainedNetwork<float>& network = call.network;
  network.response = true;
  network.diagonal = given.number();
  for (int* field : {&network.width, &network.layers, &network.heads, &network.kept, &network.q_count,
                     &network.gamma_count, &network.beta_count, &network.links}) {
    *field = given.size();
  }
  read(given, network.link_dense);
  read(given, network.link_flat);
  TaskSource<float>& source = call.source;
  source.sampler = static_cast<Sampler>(given.number());
  source.models = given.size();
  source.tasks = given.number();
  source.features = given.size();
  source.tokens = given.size();
  source.context = given.size();
  source.queries = given.size();
  source.prefixes = false;
  source.noise = *static_cast<const float*>(given.pointer());
  read(given, source.seeds);
  read(given, source.streams);
  read(given, source.weight_factor);
  read(given, source.covariate_factor);
  read(given, source.z);
  read(given, source.target);
  read(given, source.index);
  source.first_draw = given.number();
  call.tensor_count = given.size();
  call.flat = given.size();
  for (int k = 0; k < call.tensor_count; ++k) {
    read(given, call.tensors[k].parameters);
    read(given, call.tensors[k].first);
    read(given, call.tensors[k].second);
    read(given, call.tensors[k].trained);
    call.tensors[k].count = given.size();
  }
  call.rule = static_cast<Rule>(given.number());
  call.clip_groups = given.size();
  read(given, call.clip_ends);
  call.max_skipped = given.number();
  read(given, call.hyper);
  read(given, call.factors);
  read(given, call.skipped);
  read(given, call.losses);
  call.step = given.number();
  call.steps = given.size();
  call.resample_every = given.number();
  return call;
}

template <class Kernel>
void run(const Train& call, TrainMode mode, Launch launch, unsigned order) {
  Scratch scratch(plan_train<Kernel>(call, mode, launch).bytes);
  launch.scratch = scratch.start();
  run_train<Kernel>(call, mode, launch, HostTrainMachine{order});
  scratch.check();
}

Launch device(int capability, int multiprocessors) {
  Launch launch;
  launch.capability = capability;
  launch.multiprocessors = multiprocessors;
  launch.shared_of_multiprocessor = 164 * 1024;
  return launch;
}

}  // namespace

// `mode` as TrainMode. `any`: the instance for every size, whatever the call.
extern "C" void train(const int64_t* numbers, int mode, unsigned order, int any, int multiprocessors) {
  const Train call = read_call(numbers);
  const auto way = static_cast<TrainMode>(mode);
  const Launch launch = device(90, multiprocessors);
  if (any && call.source.sampler == Sampler::statistics) {
    return run<TrainSteps<core::UpTo<8>, 0, StatisticsTask>>(call, way, launch, order);
  }
  with_train_kernel(call, [&](auto kernel) { run<decltype(kernel)>(call, way, launch, order); });
}

// Whether a call would run persistently, and with how many blocks a model.
extern "C" int train_is_persistent(const int64_t* numbers, int capability, int multiprocessors) {
  const Train call = read_call(numbers);
  return with_train_kernel(call, [&](auto kernel) {
    const auto made = plan_train<decltype(kernel)>(call, TrainMode::automatic, device(capability, multiprocessors));
    return made.persistent ? made.plan.group : 0;
  });
}

}  // namespace memformer::cuda
