// Sizes known when compiling (Fixed) and sizes known only when running (UpTo): one spelling of every loop for both.

#pragma once

#include "core/scalar.h"

namespace memformer::core {

// A size that is part of the type: its loops unroll, its arrays fit exactly.
template <int Size>
struct Fixed {
  static constexpr int limit = Size;
  MEMFORMER_INLINE constexpr operator int() const { return Size; }
};

// A size from 1 to Limit: one instantiation serves them all.
template <int Limit>
struct UpTo {
  static constexpr int limit = Limit;
  int size;
  MEMFORMER_INLINE constexpr operator int() const { return size; }
};

// The size one above: D for d.
template <int Size>
MEMFORMER_INLINE constexpr Fixed<Size + 1> successor(Fixed<Size>) {
  return {};
}
template <int Limit>
MEMFORMER_INLINE constexpr UpTo<Limit + 1> successor(UpTo<Limit> extent) {
  return {extent.size + 1};
}

// Loops over an extent, written as one: in a GPU thread of compile-time length, so that small arrays stay in
// registers for sizes that are only known when running too.
#ifdef __CUDACC__
#define MEMFORMER_EACH_FROM(first, index, extent)                   \
  MEMFORMER_UNROLL                                                  \
  for (int index = first; index < decltype(extent)::limit; ++index) \
    if (index < (extent))
#else
#define MEMFORMER_EACH_FROM(first, index, extent) \
  MEMFORMER_UNROLL                                \
  for (int index = first; index < (extent); ++index)
#endif
#define MEMFORMER_EACH(index, extent) MEMFORMER_EACH_FROM(0, index, extent)

// Entries of a packed symmetric matrix: row by row, the lower triangle.
MEMFORMER_INLINE constexpr int packed_size(int width) { return width * (width + 1) / 2; }
MEMFORMER_INLINE constexpr int packed(int row, int column) {
  return row >= column ? row * (row + 1) / 2 + column : column * (column + 1) / 2 + row;
}

}  // namespace memformer::core
