// Tensor cores of Hopper: products by four warps of matrices that lie in shared memory, found by descriptors.
//
// A descriptor (PTX ISA, "Matrix Descriptor Format") holds, in units of 16 bytes, where a matrix starts (bits 0-13),
// its leading offset (16-29) and its stride offset (32-45); its base offset (49-51); its swizzle (62-63: none, 128, 64,
// 32 bytes). The matrix is made of chunks of 16 bytes, eight of which, W bytes apart (W the swizzle's, or 16), are an
// atom: along K or, transposed, along M or N.
//
//   along K, none:        row r, chunk c   at  (r / 8) stride + (r % 8) 16 + c leading
//   along K, swizzled:    row r, chunk c   at  (r / 8) stride + (r % 8) W + 16 c
//   transposed, none:     chunk m, row k   at  m stride + (k / 8) leading + (k % 8) 16
//   transposed, swizzled: chunk m, row k   at  (m / (W/16)) leading + (m % (W/16)) 16 + (k / 8) stride + (k % 8) W
//
// A swizzle is of addresses: bits 7 and up of the three, two or one that name an atom's row are added, without carry,
// to those that name a chunk of it, bits 4 and up.

#pragma once

#include <cstdint>
#include <cstring>

#include "mma.h"

namespace virtual_gpu {

struct MatrixDescriptor {
  uint32_t start, leading, stride, base_offset, swizzle_bytes;  // bytes but the base offset; 0 bytes: no swizzle

  explicit MatrixDescriptor(uint64_t bits)
      : start(field(bits, 0)), leading(field(bits, 16)), stride(field(bits, 32)), base_offset(bits >> 49 & 7) {
    constexpr uint32_t widths[] = {0, 128, 64, 32};
    swizzle_bytes = widths[bits >> 62];
  }

  // Of 16 bytes: `outer` counts rows of M or N, or transposed their chunks; `inner` chunks of K, or transposed its
  // rows.
  uint32_t address(int outer, int inner, bool transposed) const {
    const uint32_t u = static_cast<uint32_t>(outer), v = static_cast<uint32_t>(inner);
    const uint32_t width = swizzle_bytes, chunks = width / 16;
    uint32_t at = start;
    if (transposed) {
      at += width ? u / chunks * leading + u % chunks * 16 + v / 8 * stride + v % 8 * width
                  : u * stride + v / 8 * leading + v % 8 * 16;
    } else {
      at += width ? u / 8 * stride + u % 8 * width + v * 16 : u / 8 * stride + u % 8 * 16 + v * leading;
    }
    return width ? at ^ (at >> 3 & (width - 16)) : at;
  }

 private:
  static uint32_t field(uint64_t bits, int first) { return static_cast<uint32_t>(bits >> first & 0x3fff) << 4; }
};

// wgmma.mma_async of one of the four warps, whose 16 rows of D = A B + D it makes.
struct GroupProduct {
  int columns;  // N
  bool a_transposed, b_transposed, negated, accumulates;
};

// One matrix in shared memory: read(address) is to give 16 bytes. The numbers come as rows of M or N, or as K rows.
template <class Input, class Read, class Store>
void read_matrix(const MatrixDescriptor& matrix, int first_row, int rows, bool transposed, Read&& read, Store&& store) {
  using Number = std::conditional_t<std::is_same_v<Input, TFloat32>, uint32_t, uint16_t>;
  constexpr int of_chunk = 16 / sizeof(Number), depth = 2 * of_chunk;
  const int outer = transposed ? rows / of_chunk : rows, inner = transposed ? depth : 2;
  for (int u = 0; u < outer; ++u) {
    for (int v = 0; v < inner; ++v) {
      Number numbers[of_chunk];
      std::memcpy(numbers, read(matrix.address(u + (transposed ? first_row / of_chunk : first_row), v, transposed)),
                  16);
      for (int i = 0; i < of_chunk; ++i) {
        const double value = Packing<Input>::read(numbers[i], 0);
        transposed ? store(u * of_chunk + i, v, value) : store(u, v * of_chunk + i, value);
      }
    }
  }
}

// `a`: registers (four), or null and then A is in shared memory at `a_matrix`; `warp`: which of the four.
template <class Input, class Accumulator, class Read>
void run_group_product(const GroupProduct& product, int warp, Word<Accumulator>* const* d, const uint32_t* const* a,
                       uint64_t a_matrix, uint64_t b_matrix, Read&& read) {
  constexpr int rows = 16, widest = 256, depth = std::is_same_v<Input, TFloat32> ? 8 : 16;
  constexpr int at_once = Packing<Input>::products_at_once;
  static_assert(depth % at_once == 0);
  double left[rows][depth], right[depth][widest];
  float sums[rows][widest] = {};
  if (a != nullptr) {
    read_left<rows, depth, Input>(a, left);
  } else {
    read_matrix<Input>(MatrixDescriptor(a_matrix), warp * rows, rows, product.a_transposed, read,
                       [&](int row, int k, double value) { left[row][k] = value; });
  }
  read_matrix<Input>(MatrixDescriptor(b_matrix), 0, product.columns, product.b_transposed, read,
                     [&](int column, int k, double value) { right[k][column] = value; });
  if (product.accumulates) read_accumulators<rows, Accumulator>(product.columns, d, sums);
  for (int i = 0; i < rows; ++i) {
    for (double& value : left[i]) value = product.negated ? -value : value;
    for (int k = 0; k < depth; k += at_once) {
      add_products<at_once, widest>(product.columns, left[i] + k, right + k, sums[i]);
    }
  }
  write_accumulators<rows, Accumulator>(product.columns, sums, d);
}

}  // namespace virtual_gpu
