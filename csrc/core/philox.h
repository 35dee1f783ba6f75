// Counter-based random words: Philox4x32-10 (Salmon, Moraes, Dror, Shaw, "Parallel random numbers: as easy as 1, 2, 3",
// SC 2011). A block of four 32-bit words is a function of a key and of a counter of four words, so that any task's
// numbers can be made anywhere, in any order.
//
// W holds one word of every task that is worked on at once, in a lane of 64 bits of which the low half counts: a
// uint64_t in a GPU thread, vectors of them on the CPU. It needs `product` (of the low half and a constant, all 64
// bits), `high` (the upper half of a product) and `mixed` (a ^ b ^ key). Operations for a block and a lane: 20
// products, 20 shifts, 40 exclusive ors (20 where there is one of three operands), which is the floor of a sampler:
// d = 5, n = 20 and one query take 17 blocks a task as sufficient statistics and 28 as tokens.

#pragma once

#include <cstdint>

#include "core/scalar.h"

namespace memformer::core {

constexpr int philox_rounds = 10;

// The words that each round mixes in.
struct PhiloxKeys {
  uint64_t low[philox_rounds];
  uint64_t high[philox_rounds];
};

MEMFORMER_INLINE PhiloxKeys philox_keys(uint64_t seed) {
  PhiloxKeys keys;
  uint32_t low = static_cast<uint32_t>(seed), high = static_cast<uint32_t>(seed >> 32);
  MEMFORMER_UNROLL
  for (int round = 0; round < philox_rounds; ++round) {
    keys.low[round] = low;
    keys.high[round] = high;
    low += 0x9E3779B9u;
    high += 0xBB67AE85u;
  }
  return keys;
}

MEMFORMER_INLINE uint64_t product(uint64_t word, uint32_t factor) {
  return static_cast<uint64_t>(static_cast<uint32_t>(word)) * factor;
}
MEMFORMER_INLINE uint64_t high(uint64_t product) { return product >> 32; }
MEMFORMER_INLINE uint64_t mixed(uint64_t a, uint64_t b, uint64_t key) { return a ^ b ^ key; }

// words: a counter, which becomes its block.
template <class W>
MEMFORMER_INLINE void philox(const PhiloxKeys& keys, W (&words)[4]) {
  MEMFORMER_UNROLL
  for (int round = 0; round < philox_rounds; ++round) {
    const W first = product(words[0], 0xD2511F53u), second = product(words[2], 0xCD9E8D57u);
    words[0] = mixed(high(second), words[1], keys.low[round]);
    words[1] = second;
    words[2] = mixed(high(first), words[3], keys.high[round]);
    words[3] = first;
  }
}

// The keys of a draw's words: those of the seed, or, from draw 2^32 on, of the words that the seed makes of the draw's
// upper half in a block that is no task's.
MEMFORMER_INLINE PhiloxKeys philox_keys(uint64_t seed, int64_t draw) {
  const PhiloxKeys keys = philox_keys(seed);
  const uint64_t upper = static_cast<uint64_t>(draw) >> 32;
  if (!upper) return keys;
  uint64_t words[4] = {(uint64_t{1} << 31) + upper, 0, 0, 0};
  philox(keys, words);
  return philox_keys((words[1] << 32) | static_cast<uint32_t>(words[0]));
}

}  // namespace memformer::core
