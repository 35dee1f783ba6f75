// The Gram matrix of a block of tokens, summed while they are brought into lanes: none is ever stored.
//
// Four numbers of every task come at a time; each is multiplied with those before it in its token as soon as it is
// there. The matrix, a token and the numbers on their way must fit in registers together, which they do for small
// widths. Per token: its bytes, read once, and D (D + 1) / 2 multiply-adds.

#pragma once

#include <utility>

#include "core/gram.h"
#include "cpu/lanes/lanes.h"

namespace memformer::cpu::MEMFORMER_ISA {

#if MEMFORMER_VECTOR_BYTES == 64 || defined(__aarch64__)
constexpr int vector_registers = 32;
#else
constexpr int vector_registers = 16;
#endif

// Whether a matrix of this width, a token of it and four more numbers fit in registers.
template <class T, class Width>
constexpr bool streams_gram = false;
template <class T, int Width>
constexpr bool streams_gram<T, core::Fixed<Width>> =
    quarter<T> == 4 && core::packed_size(Width) + Width + quarter<T> <= vector_registers;

template <class Body, int... Index>
MEMFORMER_INLINE void each_constant(Body body, std::integer_sequence<int, Index...>) {
  (body(core::Fixed<Index>{}), ...);
}

// body(Fixed<k>) for k = 0, ..., Count - 1: indices that are constants keep small arrays in registers.
template <int Count, class Body>
MEMFORMER_INLINE void each_constant(Body body) {
  each_constant(body, std::make_integer_sequence<int, Count>{});
}

#define MEMFORMER_CONSTANT(index) [&](auto index) __attribute__((always_inline))

// The packed Gram matrix of rows [first, first + count) of every task of a full group, count <= gram_block; array
// (tasks, rows, Width) of T whose rows are contiguous and follow each other.
template <class T, int Width>
MEMFORMER_INLINE void stream_block(const Array& array, Tasks tasks, int first, int count, core::Fixed<Width> width,
                                   Lanes<T>* matrix) {
  using S = Lanes<T>;
  // As many tokens as make whole quarters of a vector.
  constexpr int tokens = Width % 4 == 0 ? 1 : Width % 2 == 0 ? 2 : 4;
  constexpr int entries = core::packed_size(Width);
  const int64_t step = array.stride[0];
  const T* from = static_cast<const T*>(array.data) + tasks.first * step + first * Width;
  const int whole = count - count % tokens;
  S sums[entries];
  each_constant<entries>(MEMFORMER_CONSTANT(k) { sums[k] = S(T(0)); });
  for (int i = 0; i < whole; i += tokens, from += tokens * Width) {
    S rows[tokens * Width];
    each_constant<tokens * Width / quarter<T>>(MEMFORMER_CONSTANT(block) {
      constexpr int begin = decltype(block)::limit * quarter<T>;
      load_columns(from + begin, step, rows + begin);
      each_constant<quarter<T>>(MEMFORMER_CONSTANT(k) {
        constexpr int at = begin + decltype(k)::limit, column = at % Width;
        each_constant<column + 1>(MEMFORMER_CONSTANT(other) {
          sums[core::packed_size(column) + other] += rows[at] * rows[at - column + other];
        });
      });
    });
  }
  each_constant<entries>(MEMFORMER_CONSTANT(k) { matrix[k] = sums[k]; });
  if (whole == count) return;
  S rows[tokens * Width];
  load_rows(array, tasks, first + whole, count - whole, Width, rows);
  for (int i = 0; i < count - whole; ++i) core::add_gram_row<true>(rows + i * Width, width, matrix);
}

#undef MEMFORMER_CONSTANT

}  // namespace memformer::cpu::MEMFORMER_ISA
