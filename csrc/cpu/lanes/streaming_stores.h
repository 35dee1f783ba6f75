// Stores that bypass the caches, for results larger than these: memory need not be read before it is overwritten.

#pragma once

#include "cpu/lanes/simd.h"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace memformer::cpu::MEMFORMER_ISA {

// `to` is a multiple of the vector's size.
template <class T>
MEMFORMER_INLINE void store_streaming(T* to, Lanes<T> value) {
#if defined(__x86_64__) && MEMFORMER_VECTOR_BYTES == 64
  if constexpr (sizeof(T) == 4) {
    _mm512_stream_ps(to, (__m512)value.v);
  } else {
    _mm512_stream_pd(to, (__m512d)value.v);
  }
#elif defined(__x86_64__) && MEMFORMER_VECTOR_BYTES == 32
  if constexpr (sizeof(T) == 4) {
    _mm256_stream_ps(to, (__m256)value.v);
  } else {
    _mm256_stream_pd(to, (__m256d)value.v);
  }
#elif defined(__x86_64__)
  if constexpr (sizeof(T) == 4) {
    _mm_stream_ps(to, (__m128)value.v);
  } else {
    _mm_stream_pd(to, (__m128d)value.v);
  }
#else
  value.store(to);
#endif
}

// Makes the stores above visible to other threads in the order in which they were made.
MEMFORMER_INLINE void finish_stores() {
#if defined(__x86_64__)
  _mm_sfence();
#endif
}

}  // namespace memformer::cpu::MEMFORMER_ISA
