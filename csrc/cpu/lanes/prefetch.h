// Asks memory for the next group's tokens while this group is worked on, a few lines at a time.
//
// A core can wait for only some two dozen lines at once: asked for in one go they stall it, spread over the group's
// work they cost nothing. Rows of a few hundred bytes are too short for the hardware's own prefetcher.

#pragma once

#include "cpu/lanes/lanes.h"

namespace memformer::cpu::MEMFORMER_ISA {

template <class T>
class Prefetch {
 public:
  // Bytes of a group that the second-level cache takes in beside what is being worked on.
  static constexpr int64_t largest = 1 << 16;

  // The tokens of the group behind `tasks`, if they follow in memory: array (tasks, rows, columns). Groups have `count`
  // tasks, and nothing is asked for where those are more than `most` bytes.
  void begin(const Array& array, Tasks tasks, int count = Lanes<T>::width, int64_t most = largest) {
    const int64_t bytes = array.stride[0] * bytes_of_number(array.storage) * count;
    next_ =
        static_cast<const char*>(array.data) + tasks.first * array.stride[0] * bytes_of_number(array.storage) + bytes;
    lines_ = bytes > 0 && bytes <= most ? static_cast<int>((bytes + 63) / 64) : 0;
    fetched_ = 0;
  }

  // Asks for what is left up to `share` of `whole` parts.
  MEMFORMER_INLINE void advance(int share, int whole) {
    const int until = lines_ * share / whole;
    const char* line = next_ + 64 * fetched_;
    const char* const end = next_ + 64 * until;
    fetched_ = until;
    if (lines_ <= near) {
      for (; line < end; line += 64) __builtin_prefetch(line, 0, 3);
    } else {
      for (; line < end; line += 64) __builtin_prefetch(line, 0, 2);
    }
  }

 private:
  // Lines that the first-level cache takes in.
  static constexpr int near = 80;

  const char* next_ = nullptr;
  int lines_ = 0;
  int fetched_ = 0;
};

}  // namespace memformer::cpu::MEMFORMER_ISA
