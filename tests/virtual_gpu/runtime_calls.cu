// Host code that uses the CUDA runtime rightly and wrongly, for test_cuda_runtime.py.

#include <cuda_runtime.h>

#include <cstdint>

namespace {

__global__ void add(int* to, int value) { to[threadIdx.x] += value; }

__global__ void use_shared(int* to) {
  extern __shared__ int cells[];
  cells[threadIdx.x] = static_cast<int>(threadIdx.x);
  __syncthreads();
  to[threadIdx.x] = cells[blockDim.x - 1 - threadIdx.x];
}

// to = 2 to + value
__global__ void shift(int* to, int value) { to[threadIdx.x] = 2 * to[threadIdx.x] + value; }

int launch(int* to, unsigned grid, unsigned block, unsigned shared, const cudaLaunchAttribute* attribute) {
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(grid);
  config.blockDim = dim3(block);
  config.dynamicSmemBytes = shared;
  cudaLaunchAttribute copy{};
  if (attribute) {
    copy = *attribute;
    config.attrs = &copy;
    config.numAttrs = 1;
  }
  return cudaLaunchKernelEx(&config, use_shared, to);
}

}  // namespace

extern "C" {

int plain(int* to, int value) {
  add<<<1, 32>>>(to, value);
  return cudaGetLastError();
}

int with_shared(int* to, unsigned grid, unsigned block, unsigned shared) {
  return launch(to, grid, block, shared, nullptr);
}

int allow(int bytes) { return cudaFuncSetAttribute(use_shared, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes); }

int in_clusters(int* to, unsigned grid, unsigned cluster) {
  cudaLaunchAttribute attribute{};
  attribute.id = cudaLaunchAttributeClusterDimension;
  attribute.val.clusterDim = {cluster, 1, 1};
  return launch(to, grid, 32, 128, &attribute);
}

int together(int* to, unsigned grid, unsigned shared) {
  cudaLaunchAttribute attribute{};
  attribute.id = cudaLaunchAttributeCooperative;
  attribute.val.cooperative = 1;
  return launch(to, grid, 32, shared, &attribute);
}

int with_priority(int* to) {
  cudaLaunchAttribute attribute{};
  attribute.id = cudaLaunchAttributePriority;
  return launch(to, 1, 32, 128, &attribute);
}

// Two shifts in a graph, the second after the first if `joined`.
int in_a_graph(int* to, int first, int second, int joined, int times) {
  cudaGraph_t graph;
  cudaGraphExec_t ready;
  cudaGraphNode_t nodes[2];
  cudaGraphCreate(&graph, 0);
  for (int k = 0; k < 2; ++k) {
    int value = k == 0 ? first : second;
    void* arguments[] = {&to, &value};
    cudaKernelNodeParams parameters{};
    parameters.func = reinterpret_cast<void*>(shift);
    parameters.gridDim = parameters.blockDim = dim3(1);
    parameters.blockDim = dim3(32);
    parameters.kernelParams = arguments;
    const bool after = k == 1 && joined;
    cudaGraphAddKernelNode(nodes + k, graph, after ? nodes : nullptr, after ? 1 : 0, &parameters);
  }
  cudaGraphInstantiate(&ready, graph, 0);
  cudaGraphDestroy(graph);
  int error = 0;
  for (int k = 0; k < times && !error; ++k) error = cudaGraphLaunch(ready, nullptr);
  cudaGraphExecDestroy(ready);
  return error;
}

int copy_in(int* to, const int* from, int64_t bytes) {
  return cudaMemcpyAsync(to, from, bytes, cudaMemcpyHostToDevice, nullptr);
}
int copy_out(int* to, const int* from, int64_t bytes) {
  return cudaMemcpyAsync(to, from, bytes, cudaMemcpyDeviceToHost, nullptr);
}
int wait_for(void* stream) { return cudaStreamSynchronize(static_cast<cudaStream_t>(stream)); }
int change_device(int index) { return cudaSetDevice(index); }
int multiprocessors(int index) {
  int value = -1;
  cudaDeviceGetAttribute(&value, cudaDevAttrMultiProcessorCount, index);
  return value;
}
int last_error() { return cudaGetLastError(); }
const char* words(int error) { return cudaGetErrorString(static_cast<cudaError_t>(error)); }
}
