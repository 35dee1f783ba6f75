// One number of several tasks: a SIMD vector whose lanes are tasks.
//
// Compiled once for every instruction set, in a namespace of its own (MEMFORMER_ISA), with vectors of
// MEMFORMER_VECTOR_BYTES: 16 (SSE2, NEON), 32 (AVX2) or 64 (AVX-512).

#pragma once

#include <cstdint>

#include "core/scalar.h"

namespace memformer::cpu::MEMFORMER_ISA {

// The compiler's vectors of T: whole, at any address, 128 bits of one, and what a comparison of two gives.
template <class T>
struct VectorsOf;

template <>
struct VectorsOf<float> {
  typedef float Vector __attribute__((vector_size(MEMFORMER_VECTOR_BYTES)));
  typedef float Unaligned __attribute__((vector_size(MEMFORMER_VECTOR_BYTES), aligned(4), may_alias));
  typedef float Quarter __attribute__((vector_size(16)));
  typedef float UnalignedQuarter __attribute__((vector_size(16), aligned(4), may_alias));
  typedef int32_t Mask __attribute__((vector_size(MEMFORMER_VECTOR_BYTES)));
};

template <>
struct VectorsOf<double> {
  typedef double Vector __attribute__((vector_size(MEMFORMER_VECTOR_BYTES)));
  typedef double Unaligned __attribute__((vector_size(MEMFORMER_VECTOR_BYTES), aligned(8), may_alias));
  typedef double Quarter __attribute__((vector_size(16)));
  typedef double UnalignedQuarter __attribute__((vector_size(16), aligned(8), may_alias));
  typedef int64_t Mask __attribute__((vector_size(MEMFORMER_VECTOR_BYTES)));
};

template <class T>
struct Lanes {
  static constexpr int width = MEMFORMER_VECTOR_BYTES / static_cast<int>(sizeof(T));
  using Vector = typename VectorsOf<T>::Vector;
  using Unaligned = typename VectorsOf<T>::Unaligned;
  using Mask = typename VectorsOf<T>::Mask;

  Vector v;

  Lanes() = default;
  MEMFORMER_INLINE Lanes(T value) : v(value - Vector{}) {}
  MEMFORMER_INLINE explicit Lanes(Vector vector) : v(vector) {}

  static MEMFORMER_INLINE Lanes load(const T* from) { return Lanes(Vector(*reinterpret_cast<const Unaligned*>(from))); }
  MEMFORMER_INLINE void store(T* to) const { *reinterpret_cast<Unaligned*>(to) = v; }

  MEMFORMER_INLINE Lanes operator+(Lanes other) const { return Lanes(v + other.v); }
  MEMFORMER_INLINE Lanes operator-(Lanes other) const { return Lanes(v - other.v); }
  MEMFORMER_INLINE Lanes operator*(Lanes other) const { return Lanes(v * other.v); }
  MEMFORMER_INLINE Lanes operator-() const { return Lanes(-v); }
  MEMFORMER_INLINE Lanes& operator+=(Lanes other) { return v += other.v, *this; }
  MEMFORMER_INLINE Lanes& operator-=(Lanes other) { return v -= other.v, *this; }
  MEMFORMER_INLINE Lanes operator*(T value) const { return Lanes(v * value); }
  MEMFORMER_INLINE Lanes operator/(Lanes other) const { return Lanes(v / other.v); }
};

template <class T>
MEMFORMER_INLINE Lanes<T> where_less(T index, Lanes<T> count, Lanes<T> chosen) {
  using Mask = typename Lanes<T>::Mask;
  const Mask mask = (Mask)(Lanes<T>(index).v < count.v);
  return Lanes<T>((typename Lanes<T>::Vector)((Mask)chosen.v & mask));
}

}  // namespace memformer::cpu::MEMFORMER_ISA

namespace memformer::core {

template <class T>
struct NumberOf<cpu::MEMFORMER_ISA::Lanes<T>> {
  using Value = T;
};

}  // namespace memformer::core
