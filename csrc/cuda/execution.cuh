// What a kernel knows of the machine it runs on: a block of threads, its barrier, its warps, its shared memory.
//
// A kernel is a type:
//
//   struct Kernel {
//     struct Arguments { ... };                           // plain data, passed by value
//     static constexpr int threads = 32;                  // of a block
//     static constexpr int blocks_of_multiprocessor = 7;  // that registers must allow
//     template <class Block>
//     static MEMFORMER_DEVICE void run(const Arguments& arguments, const Block& block);
//   };
//
// `run` is ordinary code of one thread. Block is DeviceBlock on a GPU, where every function below is one instruction or
// none, and a host type with the same functions in the tests, where the threads of a block take turns on one core and
// change places at barriers and shuffles. Nothing else of CUDA may be used in a kernel, but for the copies of stage.cuh.

#pragma once

#include <cstdint>

#include "core/scalar.h"

#ifdef __CUDACC__
#define MEMFORMER_DEVICE __device__ __forceinline__
#else
#define MEMFORMER_DEVICE inline
#endif

namespace memformer::cuda {

constexpr int warp_threads = 32;

#ifdef __CUDACC__

template <int Threads>
struct DeviceBlock {
  static constexpr int threads = Threads;
  static constexpr int warps = Threads / warp_threads;

  // This thread's index in its block, and the block's in the grid.
  MEMFORMER_DEVICE int thread() const { return static_cast<int>(threadIdx.x); }
  MEMFORMER_DEVICE int lane() const { return thread() % warp_threads; }
  MEMFORMER_DEVICE int warp() const { return Threads == warp_threads ? 0 : thread() / warp_threads; }
  MEMFORMER_DEVICE int64_t index() const { return blockIdx.x; }
  MEMFORMER_DEVICE int64_t count() const { return gridDim.x; }

  // Shared memory of the launch, 128-byte aligned.
  MEMFORMER_DEVICE char* shared() const {
    extern __shared__ __align__(128) char memformer_shared[];
    return memformer_shared;
  }

  // All threads of the block (of the warp) have arrived, and see what the others have written to shared memory.
  MEMFORMER_DEVICE void sync() const {
    if constexpr (Threads == warp_threads) {
      __syncwarp();
    } else {
      __syncthreads();
    }
  }
  MEMFORMER_DEVICE void sync_warp() const { __syncwarp(); }

  // The value of the lane whose index differs by `mask`, of all 32 lanes.
  template <class T>
  MEMFORMER_DEVICE T shuffle_xor(T value, int mask) const {
    return __shfl_xor_sync(0xffffffffu, value, mask);
  }
  // The value of lane `source`.
  template <class T>
  MEMFORMER_DEVICE T shuffle(T value, int source) const {
    return __shfl_sync(0xffffffffu, value, source);
  }

  // Whether this block is the last of the grid to get here: then all that the others had written to global memory before is
  // visible. All threads call it. `arrivals` starts at 0 and is left at 0.
  MEMFORMER_DEVICE bool is_last(unsigned* arrivals) const {
    __shared__ bool last;
    __threadfence();
    sync();
    if (thread() == 0) last = atomicInc(arrivals, gridDim.x - 1) == gridDim.x - 1;
    sync();
    __threadfence();
    return last;
  }
};

template <class Kernel>
__global__ void __launch_bounds__(Kernel::threads, Kernel::blocks_of_multiprocessor)
    run_kernel(const __grid_constant__ typename Kernel::Arguments arguments) {
  Kernel::run(arguments, DeviceBlock<Kernel::threads>{});
}

#endif

}  // namespace memformer::cuda
