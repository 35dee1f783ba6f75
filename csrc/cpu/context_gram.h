// The Gram matrix of a group's context, of any length: blocks of at most 32 rows, added pairwise.

#pragma once

#include "core/gram.h"
#include "cpu/lanes.h"

namespace memformer::cpu::MEMFORMER_ISA {

// Cells that `sum_context` needs for the sums that wait for their pair: one matrix a power of two of blocks.
inline int waiting_cells(int count, int width) {
  int levels = 0;
  for (int blocks = (count + core::gram_block - 1) / core::gram_block; blocks > 1; blocks = (blocks + 1) / 2) ++levels;
  return levels * core::packed_size(width);
}

// matrix = sum over rows i < count of z_i z_i^T, packed; rows(first, number) gives a block of them.
template <class S, class Width, class Rows>
inline void sum_context(int count, Width width, Rows rows, S* waiting, S* matrix) {
  const int entries = core::packed_size(width);
  S block[core::packed_size(Width::limit)];
  int done = 0, blocks = 0;
  while (done < count) {
    const int number = count - done < core::gram_block ? count - done : core::gram_block;
    core::block_gram(core::Cells<const S>{rows(done, number)}, number, width, block);
    done += number;
    // Sums of 1, 2, 4, ... blocks wait in their own places, as the binary digits of the number of blocks so far.
    int level = 0;
    for (int carry = blocks; carry & 1; carry >>= 1, ++level) {
      for (int k = 0; k < entries; ++k) block[k] = waiting[level * entries + k] + block[k];
    }
    ++blocks;
    if (done < count) {
      for (int k = 0; k < entries; ++k) waiting[level * entries + k] = block[k];
    } else {
      for (int carry = blocks >> (level + 1), place = level + 1; carry; carry >>= 1, ++place) {
        if (carry & 1) {
          for (int k = 0; k < entries; ++k) block[k] = waiting[place * entries + k] + block[k];
        }
      }
    }
  }
  for (int k = 0; k < entries; ++k) matrix[k] = block[k];
}

}  // namespace memformer::cpu::MEMFORMER_ISA
