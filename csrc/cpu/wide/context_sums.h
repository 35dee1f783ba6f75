// Sums over the examples of one task, sum_i x_i x_i^T and sum_i x_i y_i, in blocks of 32 examples that are added
// pairwise.
//
// A sum is a matrix of `size` rows of `size` numbers, whole vectors, and behind it the row of responses where there is
// one. Multiply-adds per example: size^2 / 2 and up to half a tile's width more.

#pragma once

#include "cpu/wide/column_products.h"
#include "cpu/wide/task_rows.h"

namespace memformer::cpu::MEMFORMER_ISA {

// Examples that are summed in one go stay in a second-level cache meanwhile.
constexpr int64_t resident_bytes = 1 << 17;
// The next task's tokens, where they find room there too.
constexpr int64_t prefetch_bytes = 3 << 17;

template <class T>
class ContextSums {
  using S = Lanes<T>;

 public:
  // Of x with `features` numbers, and of one response or none; of at most `longest` examples.
  ContextSums(int features, int responses, int longest)
      : d_(features),
        size_(whole_rows<T>(features)),
        responses_(responses),
        at_once_(std::min(resident_rows(size_), whole_blocks(longest))) {
    for (int sums = (longest - 1) / at_once_ + 1; sums > 1; sums = (sums + 1) / 2) ++levels_;
  }

  // Numbers of one sum, and of all that wait for a partner.
  int64_t matrix_count() const { return static_cast<int64_t>(size_ + responses_) * size_; }
  int64_t count() const { return levels_ * matrix_count(); }
  // Examples summed in one go, and numbers that they take up where they are copied.
  int at_once() const { return at_once_; }
  int64_t example_count() const { return static_cast<int64_t>(at_once_) * size_; }
  // How often `meanwhile` is called for them.
  int steps() const { return size_ / tile_height; }

  // The sum of examples [begin, end), at least one, at the start of `sums`, of `count()` numbers: the matrix in full,
  // zeros past the features. Examples are read in place where that is allowed, else by way of x, of `example_count()`
  // numbers, and y (at_once,): what the numbers behind their features make is cleared in the end. meanwhile(k) is
  // called before row tile k.
  template <class Meanwhile>
  void sum(const TaskRows<T>& rows, int begin, int end, T* sums, T* x, T* y, Meanwhile meanwhile) const {
    int waiting = 0;
    for (int first = begin, index = 0; first < end; first += at_once_, ++index) {
      if (index) checkpoint();
      const int number = std::min(at_once_, end - first);
      T* const sum = sums + waiting * matrix_count();
      const T* const own = rows.in_place(first, end, size_);
      if (own) {
        add_examples(own, rows.row_step(), own + d_, rows.row_step(), number, sum, meanwhile);
      } else {
        rows.load(first, number, size_, x, y);
        add_examples(x, size_, y, 1, number, sum, meanwhile);
      }
      for (int k = index; k & 1; k >>= 1) merge(sums + --waiting * matrix_count());
      ++waiting;
    }
    for (; waiting > 1; --waiting) merge(sums + (waiting - 2) * matrix_count());
    mirror(sums, size_, size_);
    for (int row = 0; row < size_ + responses_; ++row) {
      for (int c = d_ / S::width * S::width; c < size_; c += S::width) {
        T* const place = sums + static_cast<int64_t>(row) * size_ + c;
        first_lanes<T>(std::max(d_ - c, 0), S::load(place)).store(place);
      }
    }
  }

 private:
  // Blocks of 32, a power of two of them, so that all sums together are pairwise.
  static int resident_rows(int size) {
    int rows = core::gram_block;
    while (2 * rows * size * static_cast<int64_t>(sizeof(T)) <= resident_bytes) rows *= 2;
    return rows;
  }
  static int whole_blocks(int rows) {
    int blocks = core::gram_block;
    while (blocks < rows && blocks < 1 << 29) blocks *= 2;
    return blocks;
  }

  template <class Meanwhile>
  void add_examples(const T* x, int64_t step, const T* y, int64_t y_step, int count, T* sum,
                    Meanwhile meanwhile) const {
    for (int row = 0; row < size_; row += tile_height) {
      meanwhile(row / tile_height);
      column_products(x + row, step, x, step, count, columns_to_diagonal<T>(row), false,
                      sum + static_cast<int64_t>(row) * size_, size_);
    }
    if (responses_)
      add_weighted_rows(x, step, count, y, y_step, size_, static_cast<const T*>(nullptr),
                        sum + static_cast<int64_t>(size_) * size_);
  }

  // Adds to a sum the one behind it.
  void merge(T* to) const {
    const T* const from = to + matrix_count();
    for (int row = 0; row < size_ + responses_; ++row) {
      const int end = row < size_ ? columns_to_diagonal<T>(row / tile_height * tile_height) : size_;
      const int64_t begin = static_cast<int64_t>(row) * size_;
      for (int64_t c = begin; c < begin + end; c += S::width) (S::load(to + c) + S::load(from + c)).store(to + c);
    }
  }

  int d_, size_, responses_, at_once_;
  int levels_ = 1;
};

}  // namespace memformer::cpu::MEMFORMER_ISA
