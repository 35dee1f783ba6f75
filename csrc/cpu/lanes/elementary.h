// Bits, comparisons and square roots of SIMD vectors: what core/elementary.h and core/proximal.h ask of Lanes.

#pragma once

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include "core/elementary.h"
#include "cpu/lanes/simd.h"

namespace memformer::cpu::MEMFORMER_ISA {

// Intrinsics of AVX-512 come with a mask of all lanes: those without begin from an undefined vector, of which GCC
// warns.
typedef uint64_t Wide __attribute__((vector_size(MEMFORMER_VECTOR_BYTES)));

template <class T>
struct BitsOf;
template <>
struct BitsOf<float> {
  typedef uint32_t Type __attribute__((vector_size(MEMFORMER_VECTOR_BYTES)));
};
template <>
struct BitsOf<double> {
  typedef Wide Type;
};

template <class T>
MEMFORMER_INLINE typename BitsOf<T>::Type bits_of(Lanes<T> value) {
  return (typename BitsOf<T>::Type)value.v;
}

template <class T>
MEMFORMER_INLINE Lanes<T> number_of(typename BitsOf<T>::Type bits, Lanes<T>) {
  return Lanes<T>((typename Lanes<T>::Vector)bits);
}

template <class T>
MEMFORMER_INLINE Lanes<T> absolute(Lanes<T> value) {
  using Bits = typename BitsOf<T>::Type;
  constexpr auto all_but_sign = core::Format<T>::all_but_sign;
  return number_of((Bits)(bits_of(value) & all_but_sign), Lanes<T>());
}

MEMFORMER_INLINE Lanes<float> square_root(Lanes<float> value) {
#if defined(__x86_64__) && MEMFORMER_VECTOR_BYTES == 64
  return Lanes<float>((VectorsOf<float>::Vector)_mm512_maskz_sqrt_ps(0xFFFF, (__m512)value.v));
#elif defined(__x86_64__) && MEMFORMER_VECTOR_BYTES == 32
  return Lanes<float>((VectorsOf<float>::Vector)_mm256_sqrt_ps((__m256)value.v));
#elif defined(__x86_64__)
  return Lanes<float>((VectorsOf<float>::Vector)_mm_sqrt_ps((__m128)value.v));
#else
  for (int lane = 0; lane < Lanes<float>::width; ++lane) value.v[lane] = sqrtf(value.v[lane]);
  return value;
#endif
}

MEMFORMER_INLINE Lanes<double> square_root(Lanes<double> value) {
#if defined(__x86_64__) && MEMFORMER_VECTOR_BYTES == 64
  return Lanes<double>((VectorsOf<double>::Vector)_mm512_maskz_sqrt_pd(0xFF, (__m512d)value.v));
#elif defined(__x86_64__) && MEMFORMER_VECTOR_BYTES == 32
  return Lanes<double>((VectorsOf<double>::Vector)_mm256_sqrt_pd((__m256d)value.v));
#elif defined(__x86_64__)
  return Lanes<double>((VectorsOf<double>::Vector)_mm_sqrt_pd((__m128d)value.v));
#else
  for (int lane = 0; lane < Lanes<double>::width; ++lane) value.v[lane] = sqrt(value.v[lane]);
  return value;
#endif
}

// Comparisons give a mask of all bits in the lanes where they hold, which is nowhere with NaN.
template <class T>
MEMFORMER_INLINE typename Lanes<T>::Mask operator<(Lanes<T> a, Lanes<T> b) {
  return (typename Lanes<T>::Mask)(a.v < b.v);
}
template <class T>
MEMFORMER_INLINE typename Lanes<T>::Mask operator<=(Lanes<T> a, Lanes<T> b) {
  return (typename Lanes<T>::Mask)(a.v <= b.v);
}
template <class T>
MEMFORMER_INLINE typename Lanes<T>::Mask operator>(Lanes<T> a, Lanes<T> b) {
  return (typename Lanes<T>::Mask)(a.v > b.v);
}
template <class T>
MEMFORMER_INLINE typename Lanes<T>::Mask operator==(Lanes<T> a, Lanes<T> b) {
  return (typename Lanes<T>::Mask)(a.v == b.v);
}

template <class T>
MEMFORMER_INLINE Lanes<T> select(typename Lanes<T>::Mask chosen, Lanes<T> yes, Lanes<T> no) {
  return Lanes<T>(chosen ? yes.v : no.v);
}

}  // namespace memformer::cpu::MEMFORMER_ISA
