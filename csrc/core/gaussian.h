// Random numbers of a task by their place in its stream: words, uniforms, normals, sums of logarithms of uniforms.
//
// A task's words come in blocks of four, one for every counter (block, task, lower half of draw, stream); the key is a
// seed, or made of a seed and the draw's upper half. A word w is the uniform w 2^-32 + 2^-33; two uniforms in
// succession are two normals, r cos(2 pi u') and r sin(2 pi u') with r = sqrt(-2 ln u) (Box and Muller, 1958). Every
// step, task and model has numbers of its own, which neither the order of the work nor the number of threads changes.

#pragma once

#include "core/elementary.h"
#include "core/philox.h"

namespace memformer::core {

// One word of every task of S, and uniforms made of them: uint32_t and the overloads below, or their like for vectors.
template <class S>
struct WordsOf {
  using Type = uint32_t;
};
template <class S>
using Words = typename WordsOf<S>::Type;

MEMFORMER_INLINE void set_words(uint32_t value, uint32_t& words) { words = value; }
MEMFORMER_INLINE float uniform(uint32_t word, float) { return static_cast<float>(word) * 0x1p-32f + 0x1p-33f; }
MEMFORMER_INLINE double uniform(uint32_t word, double) { return static_cast<double>(word) * 0x1p-32 + 0x1p-33; }

// Uniforms whose product, times a fraction of at least 1/2, still is a normal number.
template <class T>
constexpr int uniforms_a_product = sizeof(T) == 4 ? 3 : 24;

// Uniforms in a product whose exponent float32 counts exactly.
constexpr int factors_a_logarithm = 1 << 20;

// The last block of a task, of whose first word its own noise is made.
constexpr uint32_t noise_block = (uint32_t{1} << 31) - 1;

// Of a counter's words the block's alone differs between the blocks of a task: in the first two rounds, what the task
// makes is the same for all of its blocks, and what a block makes the same for all tasks.
template <class S>
class Stream {
 public:
  MEMFORMER_INLINE Stream(const PhiloxKeys& keys, const Words<S>& task, uint32_t draw, uint32_t stream)
      : keys_(keys), of_stream_(stream ^ static_cast<uint32_t>(keys.high[0])) {
    const auto of_draw = product(draw, philox_second_factor);
    of_draw_ = low(of_draw) ^ static_cast<uint32_t>(keys.low[1]);
    Words<S> mixed_in;
    set_words(high(of_draw), mixed_in);
    const auto of_task = product(mixed(mixed_in, task, keys.low[0]), philox_first_factor);
    high_of_task_ = high(of_task);
    low_of_task_ = low(of_task);
  }

  MEMFORMER_INLINE void words(uint32_t block, Words<S> (&to)[4]) const {
    const uint64_t of_block = static_cast<uint64_t>(block) * philox_first_factor;
    const auto second = product(static_cast<uint32_t>(of_block >> 32) ^ of_stream_, philox_second_factor);
    set_words(high(second) ^ of_draw_, to[0]);
    set_words(low(second), to[1]);
    set_words(static_cast<uint32_t>(of_block), to[2]);
    to[2] = mixed(high_of_task_, to[2], keys_.high[1]);
    to[3] = low_of_task_;
    philox(keys_, to, 2);
  }

  // The four uniforms of a block.
  MEMFORMER_INLINE void uniforms(uint32_t block, S* to) const {
    Words<S> drawn[4];
    words(block, drawn);
    MEMFORMER_UNROLL
    for (int k = 0; k < 4; ++k) to[k] = uniform(drawn[k], S());
  }

  // The four normals of a block: numbers 4 block, ..., 4 block + 3 of the stream.
  MEMFORMER_INLINE void normals(uint32_t block, S* to) const {
    using T = ValueOf<S>;
    S u[4];
    uniforms(block, u);
    MEMFORMER_UNROLL
    for (int k = 0; k < 4; k += 2) {
      const S radius = quick_root(logarithm(u[k]) * T(-2));
      S sine, cosine;
      quick_sine_cosine_of_turns(u[k + 1], sine, cosine);
      to[k] = radius * cosine;
      to[k + 1] = radius * sine;
    }
  }

 private:
  PhiloxKeys keys_;
  uint32_t of_stream_;
  uint32_t of_draw_;
  Words<S> high_of_task_;
  Words<S> low_of_task_;
};

// Uniforms one after another, from the first of a block on.
template <class S>
class Uniforms {
 public:
  MEMFORMER_INLINE Uniforms(const Stream<S>& stream, uint32_t block) : stream_(stream), block_(block), left_(0) {}

  // The sum of the logarithms of the next `count` uniforms. `between` is called between long stretches of them.
  template <class Between>
  MEMFORMER_INLINE S log_sum(int count, Between between) {
    S sum = S(ValueOf<S>(0));
    for (;;) {
      sum += log_of_product(count < factors_a_logarithm ? count : factors_a_logarithm);
      count -= factors_a_logarithm;
      if (count <= 0) return sum;
      between();
    }
  }

 private:
  // The product's exponent is kept apart.
  MEMFORMER_INLINE S log_of_product(int count) {
    using T = ValueOf<S>;
    Split<S> product{S(T(0)), S(T(1))};
    while (count > 0) {
      const int factors = count < uniforms_a_product<T> ? count : uniforms_a_product<T>;
      S several = product.fraction;
      for (int k = 0; k < factors; ++k) several = several * next();
      const Split<S> parts = split(several);
      product = {product.exponent + parts.exponent, parts.fraction};
      count -= factors;
    }
    return logarithm(product);
  }

  // The waiting numbers move up, so that a GPU thread keeps them in registers.
  MEMFORMER_INLINE S next() {
    if (left_ == 0) {
      stream_.uniforms(block_++, waiting_);
      left_ = 4;
    }
    --left_;
    const S first = waiting_[0];
    MEMFORMER_UNROLL
    for (int k = 0; k < 3; ++k) waiting_[k] = waiting_[k + 1];
    return first;
  }

  const Stream<S>& stream_;
  uint32_t block_;
  int left_;
  S waiting_[4];
};

// Blocks that hold `count` numbers.
MEMFORMER_INLINE constexpr int blocks_of(int count) { return static_cast<int>((static_cast<unsigned>(count) + 3) / 4); }

}  // namespace memformer::core
