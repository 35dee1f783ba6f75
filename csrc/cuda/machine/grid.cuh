// Launching a kernel: a grid sized to the machine, whose blocks take work until none is left.

#pragma once

#include <cuda_runtime.h>

#include <atomic>
#include <type_traits>

#include "cuda/launch.h"
#include "cuda/machine/execution.cuh"
#include "cuda/machine/reduce.cuh"

namespace memformer::cuda {

// Shared memory that the driver keeps of every block's.
constexpr int64_t reserved_shared = 1024;

// Whether a kernel keeps arrays in local memory, and so wants the cache that shared memory leaves.
template <class Kernel, class = void>
constexpr bool wants_cache = false;
template <class Kernel>
constexpr bool wants_cache<Kernel, std::void_t<decltype(Kernel::in_local_memory)>> = Kernel::in_local_memory;

// Lets a kernel use as much shared memory as the device has to give, and has it rather than cache: once for every
// device.
template <class Kernel>
int allow_shared() {
  static std::atomic<uint64_t> allowed{0};
  int device = 0, limit = 0;
  if (const int error = cudaGetDevice(&device)) return error;
  const uint64_t bit = uint64_t{1} << (device % 64);
  if (device < 64 && (allowed.load() & bit)) return 0;
  if (const int error = cudaDeviceGetAttribute(&limit, cudaDevAttrMaxSharedMemoryPerBlockOptin, device)) return error;
  const auto kernel = run_kernel<Kernel>;
  if (const int error = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, limit)) return error;
  if (const int error = cudaFuncSetAttribute(kernel, cudaFuncAttributePreferredSharedMemoryCarveout,
                                             cudaSharedmemCarveoutMaxShared)) {
    return error;
  }
  allowed.fetch_or(bit);
  return 0;
}

// Brings a kernel's code to the current device, which the driver else does when it is first launched.
template <class Kernel>
int load_kernel() {
  cudaFuncAttributes unused;
  return cudaFuncGetAttributes(&unused, run_kernel<Kernel>);
}

// Blocks of a kernel that a multiprocessor holds at a time.
template <class Kernel>
int64_t resident_blocks(int64_t shared_bytes, const Launch& launch) {
  const int64_t fit = launch.shared_of_multiprocessor / (shared_bytes + reserved_shared);
  const int64_t most = fit < Kernel::blocks_of_multiprocessor ? fit : Kernel::blocks_of_multiprocessor;
  return most < 1 ? 1 : most;
}

// Leaves to the cache what a launch does not use of shared memory.
template <class Kernel>
int leave_cache(int64_t shared_bytes, const Launch& launch) {
  const int64_t used = resident_blocks<Kernel>(shared_bytes, launch) * (shared_bytes + reserved_shared);
  const int64_t percent = divided_up(100 * used, launch.shared_of_multiprocessor);
  return cudaFuncSetAttribute(run_kernel<Kernel>, cudaFuncAttributePreferredSharedMemoryCarveout,
                              static_cast<int>(percent < 100 ? percent : 100));
}

// A launch's kernel and sizes, as the runtime takes them.
template <class Kernel>
cudaLaunchConfig_t launch_config(int64_t blocks, int64_t shared_bytes, const Launch& launch) {
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(static_cast<unsigned>(blocks));
  config.blockDim = dim3(Kernel::threads);
  config.dynamicSmemBytes = static_cast<std::size_t>(shared_bytes);
  config.stream = static_cast<cudaStream_t>(launch.stream);
  return config;
}

// Runs a kernel on `work` pieces of work, which its blocks share by index: piece k is block k % grid's.
template <class Kernel>
int launch_kernel(const typename Kernel::Arguments& arguments, int64_t work, int64_t shared_bytes,
                  const Launch& launch) {
  if (work == 0) return 0;
  if (launch.rehearsal) return load_kernel<Kernel>();
  if (const int error = allow_shared<Kernel>()) return error;
  if constexpr (wants_cache<Kernel>) {
    if (const int error = leave_cache<Kernel>(shared_bytes, launch)) return error;
  }
  const int64_t fit = resident_blocks<Kernel>(shared_bytes, launch) * launch.multiprocessors;
  const int64_t grid = work < fit ? work : fit;
  const cudaLaunchConfig_t config = launch_config<Kernel>(grid, shared_bytes, launch);
  return cudaLaunchKernelEx(&config, run_kernel<Kernel>, arguments);
}

// Adds up partial sums and writes gradients and loss: the last launch of a call.
template <class T>
int launch_totals(const Partials<T>& partials, const Parameters& parameters, int64_t tasks, double loss_scale,
                  const Launch& launch) {
  using Kernel = Totals<T>;
  if (launch.rehearsal) return load_kernel<Kernel>();
  const int64_t blocks = total_groups(tasks) * column_blocks(partials.count);
  const cudaLaunchConfig_t config = launch_config<Kernel>(blocks, Kernel::shared_bytes, launch);
  const typename Kernel::Arguments arguments{partials, parameters, loss_scale, divided_up(tasks, block_tasks)};
  return cudaLaunchKernelEx(&config, run_kernel<Kernel>, arguments);
}

// Launches on one stream.
struct DeviceMachine {
  const Launch& launch;

  template <class Kernel>
  int run(const typename Kernel::Arguments& arguments, int64_t work, int64_t shared_bytes) const {
    return launch_kernel<Kernel>(arguments, work, shared_bytes, launch);
  }
  template <class T>
  int totals(const Partials<T>& partials, const Parameters& parameters, int64_t tasks, double scale) const {
    return launch_totals(partials, parameters, tasks, scale, launch);
  }
};

}  // namespace memformer::cuda

#include "instances/grid.h"
