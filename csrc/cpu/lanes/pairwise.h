// Sums of many blocks of a few numbers, pairwise, in registers and on the stack; context_gram.h has the one of whole
// matrices.

#pragma once

#include <cstdint>

#include "core/matrix.h"

namespace memformer::cpu::MEMFORMER_ISA {

// Sums that wait for their partner, the oldest first, as the bits of a counter do: block k of a sum meets its partner
// as soon as that is complete. `Count` numbers (or vectors) a block; fewer than 2^levels blocks.
template <class S, int Count, int levels = 27>
class PairwiseBlocks {
 public:
  MEMFORMER_INLINE void add(S (&block)[Count]) {
    for (int64_t k = blocks_++; k & 1; k >>= 1) {
      --waiting_;
      MEMFORMER_UNROLL_COLUMNS
      for (int i = 0; i < Count; ++i) block[i] = sums_[waiting_][i] + block[i];
    }
    MEMFORMER_UNROLL_COLUMNS
    for (int i = 0; i < Count; ++i) sums_[waiting_][i] = block[i];
    ++waiting_;
  }

  // At least one block has been added.
  MEMFORMER_INLINE void total(S (&sum)[Count]) {
    --waiting_;
    MEMFORMER_UNROLL_COLUMNS
    for (int i = 0; i < Count; ++i) sum[i] = sums_[waiting_][i];
    while (waiting_ > 0) {
      --waiting_;
      MEMFORMER_UNROLL_COLUMNS
      for (int i = 0; i < Count; ++i) sum[i] = sums_[waiting_][i] + sum[i];
    }
  }

 private:
  S sums_[levels][Count];
  int waiting_ = 0;
  int64_t blocks_ = 0;
};

}  // namespace memformer::cpu::MEMFORMER_ISA
