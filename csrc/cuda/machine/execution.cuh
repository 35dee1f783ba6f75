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
// change places at barriers and shuffles. Nothing else of CUDA is used in a kernel.
//
// Copies from global to shared memory run beside the threads, and report to a barrier in shared memory (Arrivals): its
// phase ends when as many arrivals and as many bytes as announced have come. Phases count 0, 1, 0, 1, ...

#pragma once

#include <cstdint>

#include "core/scalar.h"

// MEMFORMER_CALL: functions of some length that are called from many places, and never where much is kept in registers.
#ifdef __CUDACC__
#define MEMFORMER_DEVICE __device__ __forceinline__
#define MEMFORMER_CALL __device__ __noinline__
#else
#define MEMFORMER_DEVICE inline
#define MEMFORMER_CALL inline
#endif

namespace memformer::cuda {

constexpr int warp_threads = 32;

using Arrivals = uint64_t;

#ifdef __CUDACC__

template <int Threads>
struct DeviceBlock {
  static constexpr int threads = Threads;
  static constexpr int warps = Threads / warp_threads;
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 900
  static constexpr bool has_bulk_copies = false;
#else
  static constexpr bool has_bulk_copies = true;
#endif

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

  // An address of shared memory, told to the compiler as one: there and back between the kinds of addresses, which it
  // sees through. Not by __builtin_assume(__isShared(address)), from which nvcc 13.0 draws wrong conclusions: it
  // deletes tests of other pointers for null.
  template <class T>
  MEMFORMER_DEVICE T* in_shared(T* address) const {
    return static_cast<T*>(__cvta_shared_to_generic(__cvta_generic_to_shared(address)));
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

  // Whether this block is the last of the grid to get here: then all that the others had written to global memory
  // before is visible. All threads call it. `arrivals` starts at 0 and is left at 0.
  MEMFORMER_DEVICE bool is_last(unsigned* arrivals) const {
    __shared__ bool last;
    __threadfence();
    sync();
    if (thread() == 0) last = atomicInc(arrivals, gridDim.x - 1) == gridDim.x - 1;
    sync();
    __threadfence();
    return last;
  }

  // One thread makes the barrier, before one of the block's; every phase takes `count` arrivals.
  MEMFORMER_DEVICE void make_arrivals(Arrivals* arrivals, int count) const {
    asm volatile("mbarrier.init.shared.b64 [%0], %1;" ::"r"(address(arrivals)), "r"(count) : "memory");
    fence_copies();
  }
  MEMFORMER_DEVICE void arrive(Arrivals* arrivals) const {
    asm volatile("{ .reg .b64 state; mbarrier.arrive.shared.b64 state, [%0]; }" ::"r"(address(arrivals)) : "memory");
  }
  // Arrives when this thread's `copy`s have.
  MEMFORMER_DEVICE void arrive_after_copies(Arrivals* arrivals) const {
    asm volatile("cp.async.mbarrier.arrive.noinc.shared.b64 [%0];" ::"r"(address(arrivals)) : "memory");
  }
  // Arrives, and announces the bytes of bulk copies that this phase waits for too.
  MEMFORMER_DEVICE void arrive_and_expect(Arrivals* arrivals, unsigned bytes) const {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
    asm volatile("{ .reg .b64 state; mbarrier.arrive.expect_tx.shared.b64 state, [%0], %1; }" ::"r"(address(arrivals)),
                 "r"(bytes)
                 : "memory");
#endif
  }
  // Returns when the phase of this parity has ended.
  MEMFORMER_DEVICE void wait(Arrivals* arrivals, unsigned parity) const {
    unsigned done = 0;
    while (!done) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
      asm volatile("{ .reg .pred p; mbarrier.try_wait.parity.shared.b64 p, [%1], %2; selp.u32 %0, 1, 0, p; }"
                   : "=r"(done)
                   : "r"(address(arrivals)), "r"(parity)
                   : "memory");
#else
      asm volatile("{ .reg .pred p; mbarrier.test_wait.parity.shared.b64 p, [%1], %2; selp.u32 %0, 1, 0, p; }"
                   : "=r"(done)
                   : "r"(address(arrivals)), "r"(parity)
                   : "memory");
#endif
    }
  }
  // One instruction for any number of bytes; addresses and size multiples of 16.
  MEMFORMER_DEVICE void copy_bulk(void* to, const void* from, unsigned bytes, Arrivals* arrivals) const {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
    asm volatile(
        "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(address(to)),
        "l"(from), "r"(bytes), "r"(address(arrivals))
        : "memory");
#endif
  }
  // 4, 8 or 16 bytes, aligned.
  template <int Bytes>
  MEMFORMER_DEVICE void copy(void* to, const void* from) const {
    if constexpr (Bytes == 16) {
      asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(address(to)), "l"(from) : "memory");
    } else {
      asm volatile("cp.async.ca.shared.global [%0], [%1], %2;" ::"r"(address(to)), "l"(from), "n"(Bytes) : "memory");
    }
  }
  // Between this thread's own writes to shared memory and bulk copies into it: every writer, before a barrier.
  MEMFORMER_DEVICE void fence_copies() const {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
#endif
  }

 private:
  MEMFORMER_DEVICE static unsigned address(const void* shared) {
    return static_cast<unsigned>(__cvta_generic_to_shared(shared));
  }
};

template <class Kernel>
__global__ void __launch_bounds__(Kernel::threads, Kernel::blocks_of_multiprocessor)
    run_kernel(const __grid_constant__ typename Kernel::Arguments arguments) {
  Kernel::run(arguments, DeviceBlock<Kernel::threads>{});
}

#endif

}  // namespace memformer::cuda
