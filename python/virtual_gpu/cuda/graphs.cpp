// Graphs of launches: made node by node, copied when instantiated, run in an order that their edges allow.

#include <algorithm>
#include <vector>

#include "runtime.h"

namespace virtual_gpu {
namespace {

struct Node {
  Launch launch;
  std::vector<char> arguments;
  std::vector<const Node*> before;
};

// Nodes do not move: their addresses are the handles that edges name.
struct Graph {
  std::vector<Node*> nodes;
};

struct Ready {
  struct Step {
    Launch launch;
    std::vector<char> arguments;
    std::vector<std::size_t> before;
  };
  std::vector<Step> steps;
};

Ready* instantiate(const Graph& graph) {
  auto* const made = new Ready;
  for (const Node* node : graph.nodes) {
    Ready::Step step{node->launch, node->arguments, {}};
    for (const Node* earlier : node->before) {
      const auto found = std::find(graph.nodes.begin(), graph.nodes.end(), earlier);
      step.before.push_back(static_cast<std::size_t>(found - graph.nodes.begin()));
    }
    made->steps.push_back(step);
  }
  return made;
}

// The steps in one of the orders that edges allow.
std::vector<std::size_t> order(const Ready& graph, bool latest_first) {
  const std::size_t count = graph.steps.size();
  std::vector<std::size_t> made;
  std::vector<bool> done(count, false);
  const auto may_run = [&](std::size_t k) {
    const auto& before = graph.steps[k].before;
    return !done[k] && std::all_of(before.begin(), before.end(), [&](std::size_t earlier) { return done[earlier]; });
  };
  while (made.size() < count) {
    std::size_t next = 0;
    for (std::size_t k = 0; k < count; ++k) {
      const std::size_t candidate = latest_first ? count - 1 - k : k;
      if (may_run(candidate)) {
        next = candidate;
        break;
      }
    }
    done[next] = true;
    made.push_back(next);
  }
  return made;
}

}  // namespace
}  // namespace virtual_gpu

using virtual_gpu::Graph;
using virtual_gpu::machine;
using virtual_gpu::Node;
using virtual_gpu::noted;
using virtual_gpu::Ready;

extern "C" {

cudaError_t cudaGraphCreate(cudaGraph_t* graph, unsigned flags) {
  if (flags != 0) return noted(cudaErrorInvalidValue);
  *graph = reinterpret_cast<cudaGraph_t>(new Graph);
  return noted(cudaSuccess);
}

cudaError_t cudaGraphDestroy(cudaGraph_t given) {
  auto* const graph = reinterpret_cast<Graph*>(given);
  for (const Node* node : graph->nodes) delete node;
  delete graph;
  return noted(cudaSuccess);
}

cudaError_t cudaGraphAddKernelNode(cudaGraphNode_t* node, cudaGraph_t given, const cudaGraphNode_t* before,
                                   size_t count, const cudaKernelNodeParams* parameters) {
  auto* const graph = reinterpret_cast<Graph*>(given);
  virtual_gpu::Launch launch;
  launch.device = virtual_gpu::current_device();
  launch.function = virtual_gpu::function_at(parameters->func);
  if (launch.function < 0) return noted(cudaErrorInvalidDeviceFunction);
  const dim3 grid = parameters->gridDim, block = parameters->blockDim;
  const unsigned sizes[] = {grid.x, grid.y, grid.z, block.x, block.y, block.z};
  std::copy(sizes, sizes + 3, launch.grid);
  std::copy(sizes + 3, sizes + 6, launch.block);
  launch.shared = parameters->sharedMemBytes;
  std::vector<char> packed(4096);
  const auto room = static_cast<int64_t>(packed.size());
  const int64_t bytes = machine().pack(launch.device, launch.function, parameters->kernelParams, packed.data(), room);
  if (bytes < 0) return noted(static_cast<int>(-bytes));
  packed.resize(static_cast<std::size_t>(bytes));
  auto* const made = new Node{launch, packed, {}};
  for (size_t k = 0; k < count; ++k) made->before.push_back(reinterpret_cast<const Node*>(before[k]));
  graph->nodes.push_back(made);
  *node = reinterpret_cast<cudaGraphNode_t>(made);
  return noted(cudaSuccess);
}

cudaError_t cudaGraphInstantiate(cudaGraphExec_t* ready, cudaGraph_t graph, unsigned long long flags) {
  if (flags != 0) return noted(cudaErrorInvalidValue);
  *ready = reinterpret_cast<cudaGraphExec_t>(virtual_gpu::instantiate(*reinterpret_cast<Graph*>(graph)));
  return noted(cudaSuccess);
}

cudaError_t cudaGraphExecDestroy(cudaGraphExec_t ready) {
  delete reinterpret_cast<Ready*>(ready);
  return noted(cudaSuccess);
}

cudaError_t cudaGraphLaunch(cudaGraphExec_t given, cudaStream_t stream) {
  const auto& graph = *reinterpret_cast<const Ready*>(given);
  for (const std::size_t index : virtual_gpu::order(graph, machine().latest_first)) {
    virtual_gpu::Launch launch = graph.steps[index].launch;
    launch.stream = stream;
    launch.arguments = graph.steps[index].arguments.data();
    launch.argument_bytes = graph.steps[index].arguments.size();
    if (const cudaError_t error = noted(machine().launch(&launch))) return error;
  }
  return noted(cudaSuccess);
}

}  // extern "C"
