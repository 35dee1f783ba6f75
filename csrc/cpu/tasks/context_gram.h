// The Gram matrix of a group's context, of any length: blocks of at most 32 rows, added pairwise.

#pragma once

#include "core/gram.h"
#include "cpu/lanes/lanes.h"
#include "cpu/threads.h"

namespace memformer::cpu::MEMFORMER_ISA {

// Cells that `sum_context` needs for the sums that wait for their pair: one matrix a power of two of blocks.
inline int waiting_cells(int count, int width) {
  int levels = 0;
  for (int blocks = (count + core::gram_block - 1) / core::gram_block; blocks > 1; blocks = (blocks + 1) / 2) ++levels;
  return levels * core::packed_size(width);
}

// Adds up matrices pairwise as they come: sums of 1, 2, 4, ... of them wait in their own places, as the binary digits
// of their number so far.
template <class S>
class PairwiseSum {
 public:
  PairwiseSum(S* waiting, int entries) : waiting_(waiting), entries_(entries) {}

  // `sum` is the next matrix; if it is the last it ends as the sum of all.
  MEMFORMER_INLINE void add(S* sum, bool last) {
    int place = 0;
    for (int64_t carry = added_; last ? carry != 0 : carry & 1; carry >>= 1, ++place) {
      if (!(carry & 1)) continue;
      for (int k = 0; k < entries_; ++k) sum[k] = waiting_[place * entries_ + k] + sum[k];
    }
    ++added_;
    if (last) return;
    for (int k = 0; k < entries_; ++k) waiting_[place * entries_ + k] = sum[k];
  }

 private:
  S* waiting_;
  int entries_;
  int64_t added_ = 0;
};

// matrix = sum over rows i < count of z_i z_i^T, packed; block(first, number, matrix) makes that of a block of them.
template <class S, class Width, class Block>
inline void sum_blocks(int count, Width width, Block block, S* waiting, S* matrix) {
  PairwiseSum<S> sum(waiting, core::packed_size(width));
  int done = 0;
  while (done < count) {
    const int number = count - done < core::gram_block ? count - done : core::gram_block;
    block(done, number, matrix);
    done += number;
    checkpoint_at_row(done);
    sum.add(matrix, done == count);
  }
}

// The same from rows that are in lanes already; rows(first, number) gives a block of them.
template <class S, class Width, class Rows>
inline void sum_context(int count, Width width, Rows rows, S* waiting, S* matrix) {
  const auto block = [&](int first, int number, S* to) {
    core::block_gram(core::Cells<const S>{rows(first, number)}, number, width, to);
  };
  sum_blocks(count, width, block, waiting, matrix);
}

}  // namespace memformer::cpu::MEMFORMER_ISA
