// Random words as SIMD vectors: what core/philox.h asks of Lanes.
//
// A word of every task sits in the low half of a 64-bit lane, where the processor multiplies 32 by 32 bits: one vector
// for tasks in double, two for tasks in float, of the even and of the odd ones.

#pragma once

#include "core/gaussian.h"
#include "cpu/lanes/elementary.h"

namespace memformer::cpu::MEMFORMER_ISA {

MEMFORMER_INLINE Wide wide_product(Wide word, Wide factor) {
#if defined(__x86_64__) && MEMFORMER_VECTOR_BYTES == 64
  return (Wide)_mm512_maskz_mul_epu32(0xFF, (__m512i)word, (__m512i)factor);
#elif defined(__x86_64__) && MEMFORMER_VECTOR_BYTES == 32
  return (Wide)_mm256_mul_epu32((__m256i)word, (__m256i)factor);
#elif defined(__x86_64__)
  return (Wide)_mm_mul_epu32((__m128i)word, (__m128i)factor);
#else
  return (word & 0xFFFFFFFFu) * factor;
#endif
}

template <class T>
struct WideWords {
  static constexpr int vectors = 8 / static_cast<int>(sizeof(T));
  Wide v[vectors];
};

template <class T>
MEMFORMER_INLINE WideWords<T> product(WideWords<T> words, uint32_t factor) {
  const Wide factors = static_cast<uint64_t>(factor) - Wide{};
  for (Wide& v : words.v) v = wide_product(v, factors);
  return words;
}

template <class T>
MEMFORMER_INLINE WideWords<T> high(WideWords<T> product) {
  for (Wide& v : product.v) v >>= 32;
  return product;
}

template <class T>
MEMFORMER_INLINE WideWords<T> mixed(WideWords<T> a, WideWords<T> b, uint64_t key) {
  for (int k = 0; k < WideWords<T>::vectors; ++k) a.v[k] = a.v[k] ^ b.v[k] ^ (key - Wide{});
  return a;
}

template <class T>
MEMFORMER_INLINE void set_words(uint32_t value, WideWords<T>& words) {
  for (Wide& v : words.v) v = static_cast<uint64_t>(value) - Wide{};
}

// The words first, first + 1, ... of tasks in the order of their lanes.
template <class T>
MEMFORMER_INLINE void count_words(uint32_t first, WideWords<T>& words) {
  constexpr int vectors = WideWords<T>::vectors, lanes = MEMFORMER_VECTOR_BYTES / 8;
  for (int k = 0; k < vectors; ++k) {
    for (int lane = 0; lane < lanes; ++lane) words.v[k][lane] = first + static_cast<uint32_t>(lane * vectors + k);
  }
}

MEMFORMER_INLINE Lanes<double> uniform(WideWords<double> words, Lanes<double>) {
  // 2^52 + w, as bits.
  const Wide counted = (words.v[0] & 0xFFFFFFFFu) | 0x4330000000000000u;
  const Lanes<double> word = Lanes<double>((VectorsOf<double>::Vector)counted) - Lanes<double>(0x1p52);
  return word * 0x1p-32 + Lanes<double>(0x1p-33);
}

MEMFORMER_INLINE Lanes<float> uniform(WideWords<float> words, Lanes<float>) {
  typedef uint32_t Narrow __attribute__((vector_size(MEMFORMER_VECTOR_BYTES)));
  const Narrow word = (Narrow)((words.v[0] & 0xFFFFFFFFu) | (words.v[1] << 32));
#if defined(__x86_64__) && MEMFORMER_VECTOR_BYTES == 64
  const Lanes<float> number((VectorsOf<float>::Vector)_mm512_maskz_cvtepu32_ps(0xFFFF, (__m512i)word));
#else
  // Halves of 16 bits, exactly: 2^23 + low, and 2^39 + 2^16 high.
  using Vector = VectorsOf<float>::Vector;
  const Lanes<float> low((Vector)((word & 0xFFFFu) | 0x4B000000u)), high((Vector)((word >> 16) | 0x53000000u));
  const Lanes<float> number = (high - Lanes<float>(0x1p39f + 0x1p23f)) + low;
#endif
  return number * 0x1p-32f + Lanes<float>(0x1p-33f);
}

}  // namespace memformer::cpu::MEMFORMER_ISA

namespace memformer::core {

template <class T>
struct WordsOf<cpu::MEMFORMER_ISA::Lanes<T>> {
  using Type = cpu::MEMFORMER_ISA::WideWords<T>;
};

}  // namespace memformer::core
