// Half precision tokens to lanes and back: widened to floats or narrowed from them by vectors, a few dozen numbers of
// every task at a time, beside each other in the first-level cache.

#pragma once

#include <cstring>

#include "core/calls.h"
#include "core/half.h"
#include "cpu/lanes/columns.h"

namespace memformer::cpu::MEMFORMER_ISA {

// Half precision, `count` numbers one after the other, to floats.
inline void widen(Storage storage, const uint16_t* from, int count, float* to) {
  int k = 0;
#if MEMFORMER_VECTOR_BYTES > 16
  constexpr int width = Lanes<float>::width;
  using Vector = typename Lanes<float>::Vector;
  typedef uint16_t Halves __attribute__((vector_size(width * 2), aligned(2), may_alias));
  typedef uint32_t Words __attribute__((vector_size(width * 4)));
  for (; k + width <= count; k += width) {
    if (storage == Storage::bfloat16) {
      const Halves halves = *reinterpret_cast<const Halves*>(from + k);
      Lanes<float>((Vector)(__builtin_convertvector(halves, Words) << 16)).store(to + k);
    } else {
#if MEMFORMER_VECTOR_BYTES == 64
      const __m256i halves = _mm256_loadu_si256(reinterpret_cast<const __m256i_u*>(from + k));
      Lanes<float>((Vector)_mm512_cvtph_ps(halves)).store(to + k);
#else
      const __m128i halves = _mm_loadu_si128(reinterpret_cast<const __m128i_u*>(from + k));
      Lanes<float>((Vector)_mm256_cvtph_ps(halves)).store(to + k);
#endif
    }
  }
#endif
  for (; k < count; ++k)
    to[k] = storage == Storage::bfloat16 ? core::from_bfloat16(from[k]) : core::from_float16(from[k]);
}

// The way back, rounding to nearest even.
inline void narrow(Storage storage, const float* from, int count, uint16_t* to) {
  int k = 0;
#if MEMFORMER_VECTOR_BYTES > 16
  constexpr int width = Lanes<float>::width;
  typedef uint16_t Halves __attribute__((vector_size(width * 2), aligned(2), may_alias));
  typedef uint32_t Words __attribute__((vector_size(width * 4)));
  for (; k + width <= count; k += width) {
    const auto value = Lanes<float>::load(from + k).v;
    if (storage == Storage::bfloat16) {
      const Words bits = (Words)value;
      const Words rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
      const Words quiet = (bits >> 16) | 0x40u;
      const Words is_nan = (Words)(value != value);
      *reinterpret_cast<Halves*>(to + k) = __builtin_convertvector((quiet & is_nan) | (rounded & ~is_nan), Halves);
    } else {
#if MEMFORMER_VECTOR_BYTES == 64
      _mm256_storeu_si256(reinterpret_cast<__m256i_u*>(to + k),
                          _mm512_cvtps_ph((__m512)value, _MM_FROUND_TO_NEAREST_INT));
#else
      _mm_storeu_si128(reinterpret_cast<__m128i_u*>(to + k), _mm256_cvtps_ph((__m256)value, _MM_FROUND_TO_NEAREST_INT));
#endif
    }
  }
#endif
  for (; k < count; ++k) to[k] = storage == Storage::bfloat16 ? core::to_bfloat16(from[k]) : core::to_float16(from[k]);
}

// Half precision numbers k < count of every task, one after the other in memory, as floats in lanes: widened a few
// dozen at a time, beside each other, and then brought into lanes like floats. `from` is the first of the first task's.
inline void load_half_columns(Storage storage, const uint16_t* from, int64_t task_stride, int active, int count,
                              Lanes<float>* tile) {
  constexpr int width = Lanes<float>::width, most = 64;
  float numbers[width][most];
  std::memset(numbers, 0, sizeof numbers);
  for (int begin = 0; begin < count; begin += most) {
    const int some = count - begin < most ? count - begin : most;
    for (int task = 0; task < active; ++task) widen(storage, from + task * task_stride + begin, some, numbers[task]);
    for (int k = 0; k < some; k += quarter<float>) {
      Lanes<float> columns[quarter<float>];
      load_columns(numbers[0] + k, most, columns);
      for (int r = 0; r < quarter<float> && k + r < some; ++r) tile[begin + k + r] = columns[r];
    }
  }
}

// The way back.
inline void store_half_columns(Storage storage, const Lanes<float>* tile, int count, uint16_t* to, int64_t task_stride,
                               int active) {
  constexpr int width = Lanes<float>::width, most = 64;
  float numbers[width][most];
  for (int begin = 0; begin < count; begin += most) {
    const int some = count - begin < most ? count - begin : most;
    for (int k = 0; k < some; k += quarter<float>) {
      Lanes<float> columns[quarter<float>];
      for (int r = 0; r < quarter<float>; ++r) columns[r] = k + r < some ? tile[begin + k + r] : Lanes<float>(0.0f);
      store_columns(columns, numbers[0] + k, most);
    }
    for (int task = 0; task < active; ++task) narrow(storage, numbers[task], some, to + task * task_stride + begin);
  }
}

// Whether numbers are half precision that the two functions above take.
MEMFORMER_INLINE bool is_half(Storage storage) { return storage == Storage::bfloat16 || storage == Storage::float16; }

}  // namespace memformer::cpu::MEMFORMER_ISA
