// Sizes as the kernels count them. Kernels hold a size, and a place within one task or within a model, in an int:
// whatever goes from a tensor's sizes to one of their ints goes through here, and what an int cannot hold is refused by
// its name.

#pragma once

#include <cstdint>
#include <initializer_list>
#include <limits>
#include <sstream>
#include <stdexcept>

namespace memformer::binding {

// Half of what an int holds: a loop's step past the end and a doubling still fit. Plans
// hand longer tasks to torch. This limit and those below are memformer_kernels/calls/limits.py's.
constexpr int64_t most_numbers = 1 << 30;

// Tokens of a ragged task: a lane compares them with its length in float32, which is exact so far.
constexpr int64_t most_ragged = 1 << 24;

// The largest D of the kernels for tiny tasks (one more where features stay, in Gram space), and their largest N in
// token space.
constexpr int tiny_width = 16, tiny_tokens = 128;

[[noreturn]] inline void refuse_size(const char* name, int64_t value, int64_t most = most_numbers) {
  std::ostringstream message;
  message << name << ": expected at most " << most << ", which is as far as the native kernels count, got " << value;
  throw std::invalid_argument(message.str());  // a ValueError in Python
}

// A size, or -1 where that says "none". `name` is the argument's.
inline int narrow(int64_t value, const char* name) {
  if (value < -1 || value > most_numbers) refuse_size(name, value);
  return static_cast<int>(value);
}

// How many numbers a kernel finds by one int: the product of sizes, none of which is negative.
inline int narrow_product(std::initializer_list<int64_t> sizes, const char* name) {
  int64_t product = 1;
  for (const int64_t size : sizes) {
    if (size == 0) return 0;
  }
  for (const int64_t size : sizes) {
    if (__builtin_mul_overflow(product, size, &product)) refuse_size(name, std::numeric_limits<int64_t>::max());
  }
  return narrow(product, name);
}

}  // namespace memformer::binding
