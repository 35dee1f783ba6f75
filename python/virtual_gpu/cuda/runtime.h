// What the stand-in for the CUDA runtime asks of the process that holds the virtual devices.
//
// Calls of the runtime come from unmodified host code; functions of `Machine` answer them, each with a cudaError_t
// where it returns an int. There is one machine; nothing is called before `virtual_cuda_connect`.

#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

namespace virtual_gpu {

// A kernel's launch. `function` counts kernels in the order in which their libraries registered them.
struct Launch {
  int32_t device = 0;
  int32_t function = 0;
  uint32_t grid[3] = {1, 1, 1};
  uint32_t block[3] = {1, 1, 1};
  uint32_t cluster[3] = {1, 1, 1};
  int32_t clustered = 0;  // whether the launch asked for clusters
  int32_t cooperative = 0;
  uint64_t shared = 0;  // dynamic, in bytes
  void* stream = nullptr;
  const void* arguments = nullptr;  // of the kernel's parameters, each at its offset
  uint64_t argument_bytes = 0;
};

struct Machine {
  int32_t devices;
  int32_t latest_first;  // among nodes of a graph that may run next: the one added last
  // Copies arguments from where the host has them; their bytes, or the negative of an error.
  int64_t (*pack)(int32_t device, int32_t function, void** arguments, void* to, int64_t room);
  int32_t (*launch)(const Launch* launch);
  int32_t (*set_attribute)(int32_t device, int32_t function, int32_t attribute, int32_t value);
  int32_t (*attributes)(int32_t device, int32_t function, cudaFuncAttributes* found);
  int32_t (*device_attribute)(int32_t device, int32_t attribute, int32_t* value);
  int32_t (*copy)(int32_t device, void* to, const void* from, uint64_t bytes, int32_t kind, void* stream);
  int32_t (*synchronize)(int32_t device, void* stream);
  // Memory of a device that the host takes, gives back, or writes.
  void (*allocated)(int32_t device, void* address, uint64_t bytes);
  void (*freed)(int32_t device, void* address);
  void (*wrote)(int32_t device, void* address, uint64_t bytes);
};

const Machine& machine();

// Of the calling thread.
int current_device();

// Notes an error as the runtime does, which `cudaGetLastError` will tell, and returns it. After one that destroys a
// device's context every call returns that one.
cudaError_t noted(int error);

// A kernel's number by the address that host code knows it by; -1: none.
int function_at(const void* host);

// Arguments packed by the machine, and a launch of them on the current device.
cudaError_t pack_and_launch(Launch launch, void** arguments);

}  // namespace virtual_gpu
