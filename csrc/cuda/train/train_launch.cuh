// The trainer's launches on a device: single ones, groups of blocks that meet, and steps replayed as a graph.

#pragma once

#include <vector>

#include "cuda/machine/grid.cuh"
#include "cuda/train/train_run.cuh"

namespace memformer::cuda {

// A graph of launches, each after the one before it.
class LaunchGraph {
 public:
  LaunchGraph() = default;
  LaunchGraph(const LaunchGraph&) = delete;
  LaunchGraph& operator=(const LaunchGraph&) = delete;
  // What still runs is freed when it is done.
  ~LaunchGraph() {
    if (ready_) cudaGraphExecDestroy(ready_);
    if (graph_) cudaGraphDestroy(graph_);
  }

  int make() { return cudaGraphCreate(&graph_, 0); }

  template <class Kernel>
  int run(const TrainPlan& plan, int64_t blocks, int64_t shared_bytes) {
    if (const int error = allow_shared<Kernel>()) return error;
    TrainPlan copy = plan;
    void* arguments[] = {&copy};
    cudaKernelNodeParams parameters{};
    parameters.func = reinterpret_cast<void*>(run_kernel<Kernel>);
    parameters.gridDim = dim3(static_cast<unsigned>(blocks));
    parameters.blockDim = dim3(Kernel::threads);
    parameters.sharedMemBytes = static_cast<unsigned>(shared_bytes);
    parameters.kernelParams = arguments;
    const cudaGraphNode_t before = last_;
    return cudaGraphAddKernelNode(&last_, graph_, before ? &before : nullptr, before ? 1 : 0, &parameters);
  }

  int replay(int64_t times, const Launch& launch) {
    if (const int error = cudaGraphInstantiate(&ready_, graph_, 0)) return error;
    for (int64_t k = 0; k < times; ++k) {
      if (const int error = cudaGraphLaunch(ready_, static_cast<cudaStream_t>(launch.stream))) return error;
    }
    return 0;
  }

 private:
  cudaGraph_t graph_ = nullptr;
  cudaGraphExec_t ready_ = nullptr;
  cudaGraphNode_t last_ = nullptr;
};

struct TrainMachine {
  // Steps in one graph, and how many make it worth while to make one.
  static constexpr int64_t steps_of_graph = 8;
  static constexpr int64_t steps_worth_a_graph = 4 * steps_of_graph;

  const Launch& launch;

  // From memory that may go when this returns.
  int upload(int* to, const std::vector<int>& tables) const {
    return cudaMemcpyAsync(to, tables.data(), tables.size() * sizeof(int), cudaMemcpyHostToDevice,
                           static_cast<cudaStream_t>(launch.stream));
  }

  template <class Kernel>
  int run(const TrainPlan& plan, int64_t blocks, int64_t shared_bytes) const {
    return run_together<Kernel>(plan, blocks, shared_bytes, 1);
  }

  // Blocks of a group run at the same time: as a cluster, or all of the grid.
  template <class Kernel>
  int run_together(const TrainPlan& plan, int64_t blocks, int64_t shared_bytes, int group) const {
    if (const int error = allow_shared<Kernel>()) return error;
    cudaLaunchConfig_t config = launch_config<Kernel>(blocks, shared_bytes, launch);
    cudaLaunchAttribute attribute{};
    if (group > 1) {
      attribute.id = launch.capability >= 90 ? cudaLaunchAttributeClusterDimension : cudaLaunchAttributeCooperative;
      if (launch.capability >= 90) {
        attribute.val.clusterDim = {static_cast<unsigned>(group), 1, 1};
      } else {
        attribute.val.cooperative = 1;
      }
      config.attrs = &attribute;
      config.numAttrs = 1;
    }
    return cudaLaunchKernelEx(&config, run_kernel<Kernel>, plan);
  }

  template <class Launches>
  int repeat(int64_t steps, Launches launches) const {
    int64_t replayed = 0;
    if (steps >= steps_worth_a_graph) {
      LaunchGraph graph;
      if (const int error = graph.make()) return error;
      for (int64_t step = 0; step < steps_of_graph; ++step) {
        if (const int error = launches(graph)) return error;
      }
      if (const int error = graph.replay(steps / steps_of_graph, launch)) return error;
      replayed = steps / steps_of_graph * steps_of_graph;
    }
    for (; replayed < steps; ++replayed) {
      if (const int error = launches(*this)) return error;
    }
    return 0;
  }
};

// A whole call by one kernel.
template <class Kernel>
int run_train_on_device(const Train& call, TrainMode mode, const Launch& launch) {
  return run_train<Kernel>(call, mode, launch, TrainMachine{launch});
}

}  // namespace memformer::cuda

#include "instances/train_launch.h"
