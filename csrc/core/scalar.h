// What the core asks of a number.
//
// Every formula of the core is a template over S, one number of every task that is worked on at once: a SIMD vector on
// the CPU (one task per lane), a float in a GPU thread (one task per thread). S must have +, -, *, +=, construction
// from its Value, products with a Value on the right, and `where_less`.

#pragma once

#ifdef __CUDACC__
#define MEMFORMER_INLINE __host__ __device__ __forceinline__
#else
#define MEMFORMER_INLINE inline __attribute__((always_inline))
#endif

// Loops over compile-time extents become straight code, so that small arrays live in registers; loops over run-time
// ones stay loops. (GCC has no pragma for the one without the other, and unrolls loops as short as these by itself.)
#if defined(__CUDACC__)
#define MEMFORMER_UNROLL _Pragma("unroll")
#elif defined(__clang__)
#define MEMFORMER_UNROLL _Pragma("clang loop unroll(full)")
#else
#define MEMFORMER_UNROLL
#endif

// Loops over layers, which are `most` at most where that is not 0: straight code too, left at the last layer there is.
// Loops over heads, of which there mostly is one, stay loops.
#if defined(__CUDACC__)
#define MEMFORMER_UNROLL_LAYERS _Pragma("unroll (most ? most : 1)")
#define MEMFORMER_NO_UNROLL _Pragma("unroll 1")
#else
#define MEMFORMER_UNROLL_LAYERS
#define MEMFORMER_NO_UNROLL
#endif

namespace memformer::core {

// The number type of one task: float for float and for vectors of floats.
template <class S>
struct NumberOf {
  using Value = S;
};

template <class S>
using ValueOf = typename NumberOf<S>::Value;

// `chosen` for the tasks with index < count, else 0: selection, so that a NaN that is not chosen goes nowhere.
MEMFORMER_INLINE float where_less(float index, float count, float chosen) { return index < count ? chosen : 0.0f; }
MEMFORMER_INLINE double where_less(double index, double count, double chosen) { return index < count ? chosen : 0.0; }

// Numbers of a task kept in memory, Stride apart: 1 on the CPU, the block's threads in a GPU's shared memory.
template <class S, int Stride = 1>
struct Cells {
  S* data;
  MEMFORMER_INLINE S& operator[](int index) const { return data[static_cast<long>(index) * Stride]; }
  MEMFORMER_INLINE Cells at(int index) const { return {data + static_cast<long>(index) * Stride}; }
};

}  // namespace memformer::core
