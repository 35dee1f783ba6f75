// The calls of the CUDA runtime that launch kernels, set and ask for attributes, and copy: what host code compiled by
// nvcc links against in place of libcudart. Work is done when it is asked for, so every stream is in order.

#include "runtime.h"

#include <atomic>
#include <cstring>
#include <map>
#include <mutex>
#include <string>
#include <vector>

namespace virtual_gpu {
namespace {

struct Function {
  std::string name;
  int binary;
};

// What libraries registered when they were loaded, before and after a machine is there.
struct Registry {
  std::mutex lock;
  std::vector<const void*> binaries;  // fat binaries as they lie in their libraries
  std::vector<Function> functions;
  std::map<const void*, int> by_host;
};

Registry& registry() {
  static Registry made;
  return made;
}

Machine connected{};
thread_local int device_of_thread = 0;
thread_local cudaError_t last_error = cudaSuccess;
std::atomic<int> lost{cudaSuccess};

bool destroys_context(int error) {
  return error == cudaErrorIllegalAddress || error == cudaErrorLaunchTimeout ||
         (error >= cudaErrorAssert && error <= cudaErrorLaunchFailure && error != cudaErrorTooManyPeers &&
          error != cudaErrorHostMemoryAlreadyRegistered && error != cudaErrorHostMemoryNotRegistered);
}

struct Configuration {
  dim3 grid, block;
  size_t shared;
  cudaStream_t stream;
};
thread_local std::vector<Configuration> configurations;

Launch launch_of(dim3 grid, dim3 block, size_t shared, cudaStream_t stream, const void* host) {
  Launch made;
  made.device = device_of_thread;
  made.function = function_at(host);
  const dim3 given[] = {grid, block};
  for (int k = 0; k < 2; ++k) {
    uint32_t* const to = k == 0 ? made.grid : made.block;
    to[0] = given[k].x;
    to[1] = given[k].y;
    to[2] = given[k].z;
  }
  made.shared = shared;
  made.stream = stream;
  return made;
}

}  // namespace

const Machine& machine() { return connected; }

int current_device() { return device_of_thread; }

cudaError_t noted(int error) {
  if (const int known = lost.load()) return static_cast<cudaError_t>(known);
  if (destroys_context(error)) lost = error;
  if (error != cudaSuccess) last_error = static_cast<cudaError_t>(error);
  return static_cast<cudaError_t>(error);
}

int function_at(const void* host) {
  Registry& known = registry();
  const std::lock_guard<std::mutex> held(known.lock);
  const auto found = known.by_host.find(host);
  return found == known.by_host.end() ? -1 : found->second;
}

cudaError_t pack_and_launch(Launch launch, void** arguments) {
  if (launch.function < 0) return noted(cudaErrorInvalidDeviceFunction);
  if (lost.load()) return noted(cudaSuccess);
  std::vector<char> packed(4096);
  const auto room = static_cast<int64_t>(packed.size());
  const int64_t bytes = machine().pack(launch.device, launch.function, arguments, packed.data(), room);
  if (bytes < 0) return noted(static_cast<int>(-bytes));
  launch.arguments = packed.data();
  launch.argument_bytes = static_cast<uint64_t>(bytes);
  return noted(machine().launch(&launch));
}

}  // namespace virtual_gpu

using virtual_gpu::machine;
using virtual_gpu::noted;

extern "C" {

void virtual_cuda_connect(const virtual_gpu::Machine* made) { virtual_gpu::connected = *made; }

// What has been registered: fat binaries, and kernels with the number of the binary that holds them.
int virtual_cuda_binaries() { return static_cast<int>(virtual_gpu::registry().binaries.size()); }
const void* virtual_cuda_binary(int index) { return virtual_gpu::registry().binaries.at(index); }
int virtual_cuda_functions() { return static_cast<int>(virtual_gpu::registry().functions.size()); }
const char* virtual_cuda_function(int index, int* binary) {
  const virtual_gpu::Function& found = virtual_gpu::registry().functions.at(index);
  *binary = found.binary;
  return found.name.c_str();
}

// Registration, which code made by nvcc calls when its library is loaded. A handle is a binary's number.

void** __cudaRegisterFatBinary(void* wrapper) {
  struct Wrapper {
    int magic, version;
    const void* data;
    void* more;
  };
  virtual_gpu::Registry& known = virtual_gpu::registry();
  const std::lock_guard<std::mutex> held(known.lock);
  known.binaries.push_back(static_cast<const Wrapper*>(wrapper)->data);
  return reinterpret_cast<void**>(known.binaries.size());
}
void __cudaRegisterFatBinaryEnd(void**) {}
void __cudaUnregisterFatBinary(void**) {}
char __cudaInitModule(void**) { return 1; }
void __cudaRegisterFunction(void** binary, const char* host, char*, const char* name, int, uint3*, uint3*, dim3*, dim3*,
                            int*) {
  virtual_gpu::Registry& known = virtual_gpu::registry();
  const std::lock_guard<std::mutex> held(known.lock);
  known.by_host[host] = static_cast<int>(known.functions.size());
  known.functions.push_back({name, static_cast<int>(reinterpret_cast<uintptr_t>(binary)) - 1});
}

// What kernel<<<...>>>(...) becomes.

unsigned __cudaPushCallConfiguration(dim3 grid, dim3 block, size_t shared, CUstream_st* stream) {
  virtual_gpu::configurations.push_back({grid, block, shared, stream});
  return 0;
}
cudaError_t __cudaPopCallConfiguration(dim3* grid, dim3* block, size_t* shared, void* stream) {
  const auto top = virtual_gpu::configurations.back();
  virtual_gpu::configurations.pop_back();
  *grid = top.grid;
  *block = top.block;
  *shared = top.shared;
  *static_cast<cudaStream_t*>(stream) = top.stream;
  return cudaSuccess;
}
cudaError_t __cudaGetKernel(cudaKernel_t* kernel, const void* host) {
  *kernel = reinterpret_cast<cudaKernel_t>(const_cast<void*>(host));
  return cudaSuccess;
}
cudaError_t __cudaLaunchKernel(cudaKernel_t kernel, dim3 grid, dim3 block, void** arguments, size_t shared,
                               cudaStream_t stream) {
  return virtual_gpu::pack_and_launch(virtual_gpu::launch_of(grid, block, shared, stream, kernel), arguments);
}

cudaError_t cudaLaunchKernelExC(const cudaLaunchConfig_t* config, const void* host, void** arguments) {
  auto launch =
      virtual_gpu::launch_of(config->gridDim, config->blockDim, config->dynamicSmemBytes, config->stream, host);
  for (unsigned k = 0; k < config->numAttrs; ++k) {
    const cudaLaunchAttribute& given = config->attrs[k];
    if (given.id == cudaLaunchAttributeClusterDimension) {
      launch.clustered = 1;
      launch.cluster[0] = given.val.clusterDim.x;
      launch.cluster[1] = given.val.clusterDim.y;
      launch.cluster[2] = given.val.clusterDim.z;
    } else if (given.id == cudaLaunchAttributeCooperative) {
      launch.cooperative = given.val.cooperative;
    } else {
      return noted(cudaErrorNotSupported);
    }
  }
  return virtual_gpu::pack_and_launch(launch, arguments);
}

cudaError_t cudaFuncSetAttribute(const void* host, cudaFuncAttribute attribute, int value) {
  const int function = virtual_gpu::function_at(host);
  if (function < 0) return noted(cudaErrorInvalidDeviceFunction);
  return noted(machine().set_attribute(virtual_gpu::current_device(), function, attribute, value));
}

cudaError_t cudaFuncGetAttributes(cudaFuncAttributes* attributes, const void* host) {
  const int function = virtual_gpu::function_at(host);
  if (function < 0) return noted(cudaErrorInvalidDeviceFunction);
  *attributes = {};
  return noted(machine().attributes(virtual_gpu::current_device(), function, attributes));
}

cudaError_t cudaGetDevice(int* device) {
  *device = virtual_gpu::current_device();
  return noted(cudaSuccess);
}
cudaError_t cudaSetDevice(int device) {
  if (device < 0 || device >= machine().devices) return noted(cudaErrorInvalidDevice);
  virtual_gpu::device_of_thread = device;
  return noted(cudaSuccess);
}
cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int device) {
  if (device < 0 || device >= machine().devices) return noted(cudaErrorInvalidDevice);
  return noted(machine().device_attribute(device, attribute, value));
}
cudaError_t cudaDeviceReset() {
  virtual_gpu::lost = cudaSuccess;
  virtual_gpu::last_error = cudaSuccess;
  return cudaSuccess;
}

cudaError_t cudaGetLastError() {
  const cudaError_t found = virtual_gpu::last_error;
  if (const int known = virtual_gpu::lost.load()) return static_cast<cudaError_t>(known);
  virtual_gpu::last_error = cudaSuccess;
  return found;
}
cudaError_t cudaPeekAtLastError() {
  const int known = virtual_gpu::lost.load();
  return known ? static_cast<cudaError_t>(known) : virtual_gpu::last_error;
}

cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t bytes, cudaMemcpyKind kind, cudaStream_t stream) {
  if (virtual_gpu::lost.load()) return noted(cudaSuccess);
  if (const int error = machine().copy(virtual_gpu::current_device(), to, from, bytes, kind, stream))
    return noted(error);
  std::memmove(to, from, bytes);
  return noted(cudaSuccess);
}
cudaError_t cudaStreamSynchronize(cudaStream_t stream) {
  return noted(machine().synchronize(virtual_gpu::current_device(), stream));
}

const char* cudaGetErrorString(cudaError_t error) {
  switch (error) {
    case cudaSuccess: return "no error";
    case cudaErrorInvalidValue: return "invalid argument";
    case cudaErrorInvalidConfiguration: return "invalid configuration argument";
    case cudaErrorInvalidDevice: return "invalid device ordinal";
    case cudaErrorInvalidDeviceFunction: return "invalid device function";
    case cudaErrorNoKernelImageForDevice: return "no kernel image is available for execution on the device";
    case cudaErrorInvalidResourceHandle: return "invalid resource handle";
    case cudaErrorLaunchOutOfResources: return "too many resources requested for launch";
    case cudaErrorCooperativeLaunchTooLarge: return "too many blocks in cooperative launch";
    case cudaErrorInvalidClusterSize: return "the size of the clusters is not possible";
    case cudaErrorNotSupported: return "operation not supported";
    case cudaErrorLaunchFailure: return "unspecified launch failure";
    default: return "unrecognized error code";
  }
}

}  // extern "C"
