// Counter-based random words: Philox4x32-10 (Salmon, Moraes, Dror, Shaw, "Parallel random numbers: as easy as 1, 2, 3",
// SC 2011). A block of four 32-bit words is a function of a key and of a counter of four words, so that any task's
// numbers can be made anywhere, in any order.
//
// W holds one word of every task that is worked on at once: a uint32_t in a GPU thread, on the CPU vectors of 64-bit
// lanes of which the low half counts. It needs `product` (of a word and a constant, all 64 bits), `high` and `low` (the
// halves of a product) and `mixed` (a ^ b ^ key). Operations for a block and a lane: 20 products and, where there is
// one of three operands, 20 exclusive ors (else 40, and 20 shifts), which is the floor of a sampler: d = 5, n = 20 and
// one query take 17 blocks a task as sufficient statistics and 28 as tokens. Of the first two rounds most is the same
// for all blocks of a task, or for all tasks (core/gaussian.h), which leaves 16 products.

#pragma once

#include <cstdint>

#include "core/scalar.h"

namespace memformer::core {

constexpr int philox_rounds = 10;
constexpr uint32_t philox_first_factor = 0xD2511F53u, philox_second_factor = 0xCD9E8D57u;

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

// Words of 32 bits, whose product is one instruction of a GPU: as one of 64-bit numbers the compiler would add the
// zeros of their upper halves.
struct WordProduct {
  uint32_t low;
  uint32_t high;
};

MEMFORMER_INLINE WordProduct product(uint32_t word, uint32_t factor) {
#ifdef __CUDA_ARCH__
  WordProduct product;
  asm("{ .reg .b64 wide; mul.wide.u32 wide, %2, %3; mov.b64 {%0, %1}, wide; }"
      : "=r"(product.low), "=r"(product.high)
      : "r"(word), "r"(factor));
  return product;
#else
  const uint64_t wide = static_cast<uint64_t>(word) * factor;
  return {static_cast<uint32_t>(wide), static_cast<uint32_t>(wide >> 32)};
#endif
}
MEMFORMER_INLINE uint32_t high(WordProduct product) { return product.high; }
MEMFORMER_INLINE uint32_t low(WordProduct product) { return product.low; }
MEMFORMER_INLINE uint32_t mixed(uint32_t a, uint32_t b, uint64_t key) { return a ^ b ^ static_cast<uint32_t>(key); }

// Lanes of 64 bits: the low half counts as it is.
template <class W>
MEMFORMER_INLINE W low(W product) {
  return product;
}

// words: a counter, or what the rounds before `first_round` made of it; becomes its block.
template <class W>
MEMFORMER_INLINE void philox(const PhiloxKeys& keys, W (&words)[4], int first_round = 0) {
  MEMFORMER_UNROLL
  for (int round = first_round; round < philox_rounds; ++round) {
    const auto first = product(words[0], philox_first_factor), second = product(words[2], philox_second_factor);
    words[0] = mixed(high(second), words[1], keys.low[round]);
    words[1] = low(second);
    words[2] = mixed(high(first), words[3], keys.high[round]);
    words[3] = low(first);
  }
}

// The keys of a draw's words: those of the seed, or, from draw 2^32 on, of the words that the seed makes of the draw's
// upper half in a block that is no task's.
MEMFORMER_INLINE PhiloxKeys philox_keys(uint64_t seed, int64_t draw) {
  const PhiloxKeys keys = philox_keys(seed);
  const uint64_t upper = static_cast<uint64_t>(draw) >> 32;
  if (!upper) return keys;
  uint32_t words[4] = {(uint32_t{1} << 31) + static_cast<uint32_t>(upper), 0, 0, 0};
  philox(keys, words);
  return philox_keys((static_cast<uint64_t>(words[1]) << 32) | words[0]);
}

}  // namespace memformer::core
