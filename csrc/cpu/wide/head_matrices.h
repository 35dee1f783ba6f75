// The matrices of attention of one task, M = sum_h Q_h G P_h^T for its mean Gram matrix G, and the way back, where D x
// D matrices are too large for a lane.
//
// Operations a head: 2 D^3 multiply-adds, 4 D^3 backward (3 D^3 without the gradient of G), in tiles of registers.

#pragma once

#include "cpu/wide/column_products.h"
#include "cpu/wide/task_rows.h"
#include "cpu/wide/tile_products.h"

namespace memformer::cpu::MEMFORMER_ISA {

// Rows of a task that are worked on in one go: a panel of a matrix serves all of them.
constexpr int chunk_rows = 64;

// How square matrices of `side` lie in memory: whole tiles of rows, an odd number of lines apart, zeros past the last
// number.
template <class T>
struct Square {
  int side, size, step;

  explicit constexpr Square(int side) : side(side), size(whole_rows<T>(side)), step(odd_lines<T>(size)) {}

  constexpr int64_t numbers() const { return static_cast<int64_t>(size) * step; }
  constexpr int64_t at(int row, int column) const { return static_cast<int64_t>(row) * step + column; }

  // The matrix whose rows are `from_step` apart, times a number.
  void load(const T* from, int64_t from_step, T scale, T* to) const {
    for (int64_t row = 0; row < side; ++row) {
      for (int c = 0; c < side; ++c) to[row * step + c] = from[row * from_step + c] * scale;
      clear(to + row * step + side, step - side);
    }
    clear(to + side * static_cast<int64_t>(step), static_cast<int64_t>(size - side) * step);
  }

  void transpose_to(const T* from, T* to) const { transpose(from, step, size, size, to, step); }

  // to = left right, or +=; left^T where that is said.
  template <bool Adding>
  void multiply(const T* left, bool transposed, const T* right, T* to) const {
    const Left<T> rows = transposed ? Left<T>{left, 1, step} : Left<T>{left, step, 1};
    deep_product<T, Adding>(Rows<T>{to, step}, size, size, rows, Rows<const T>{right, step}, side);
  }

  // Numbers of a chunk of rows, a matrix's step apart.
  constexpr int64_t chunk() const { return static_cast<int64_t>(chunk_rows) * step; }

  // A chunk of a task's rows, and zeros behind them, up to a whole tile.
  void load_chunk(const TaskRows<T>& rows, int row, int count, T* to) const {
    rows.load(row, count, step, to, nullptr);
    clear(to + static_cast<int64_t>(count) * step, static_cast<int64_t>(padded_to(count, tile_rows) - count) * step);
  }

  // to = the rows of a chunk times a matrix, or +=.
  template <bool Adding>
  void multiply_chunk(const T* rows, int count, const T* matrix, T* to) const {
    deep_product<T, Adding>(Rows<T>{to, step}, padded_to(count, tile_rows), size, Left<T>{rows, step, 1},
                            Rows<const T>{matrix, step}, side);
  }

  // to += the sum over the rows of two chunks of left^T right.
  void add_outer_products(const T* left, const T* right, int count, T* to) const {
    for (int tile = 0; tile < size; tile += tile_height)
      column_products(left + tile, step, right, step, count, size, true, to + at(tile, 0), step);
  }
};

// Q_h, P_h and P_h^T of all heads, which all tasks share. Given as matrices of `given` rows: D, or d for the first
// block of matrices that are zero past it but for the last number of P_h, which is 1.
template <class T>
class HeadMatrices {
 public:
  HeadMatrices(const T* q, const T* p, int heads, int width, int given)
      : q_(q), p_(p), heads_(heads), given_(given), square_(width) {}

  const Square<T>& square() const { return square_; }
  int64_t numbers() const { return 3 * heads_ * square_.numbers(); }

  void copy_to(T* memory) {
    memory_ = memory;
    for (int h = 0; h < heads_; ++h) {
      checkpoint_after(square_.numbers());
      read(q_, h, T(0), memory + place(h));
      read(p_, h, T(1), memory + place(heads_ + h));
      square_.transpose_to(memory + place(heads_ + h), memory + place(2 * heads_ + h));
    }
  }

  // Adds a square's numbers that are given, row by row, to totals, and returns what is behind those.
  double* add(const T* square, double* totals) const {
    for (int row = 0; row < given_; ++row) {
      for (int c = 0; c < given_; ++c) *totals++ += static_cast<double>(square[square_.at(row, c)]);
    }
    return totals;
  }

  // M of heads [first, last), and Q_h G of each of them.
  void mix(int first, int last, const T* gram, T* query_grams, T* mixed) const {
    for (int h = first; h < last; ++h) {
      checkpoint_after(square_.numbers());
      T* const query_gram = query_grams + h * square_.numbers();
      square_.template multiply<false>(query(h), false, gram, query_gram);
      if (h == first) {
        square_.template multiply<false>(query_gram, false, transposed(h), mixed);
      } else {
        square_.template multiply<true>(query_gram, false, transposed(h), mixed);
      }
    }
  }

  // Adds the gradients of Q_h and P_h, squares by head, and of G, if that is wanted; `spare` is a square.
  void mix_backward(int first, int last, const T* gram, const T* query_grams, const T* mixed_grad, T* spare, T* q_grads,
                    T* p_grads, T* gram_grad) const {
    for (int h = first; h < last; ++h) {
      checkpoint_after(square_.numbers());
      const int64_t at = h * square_.numbers();
      square_.template multiply<true>(mixed_grad, true, query_grams + at, p_grads + at);
      square_.template multiply<false>(mixed_grad, false, projection(h), spare);
      square_.template multiply<true>(spare, false, gram, q_grads + at);
      if (gram_grad) square_.template multiply<true>(query(h), true, spare, gram_grad);
    }
  }

 private:
  int64_t place(int64_t k) const { return k * square_.numbers(); }

  void read(const T* from, int64_t h, T last, T* to) const {
    clear(to, square_.numbers());
    const int64_t count = given_;
    for (int row = 0; row < given_; ++row)
      std::copy(from + (h * count + row) * count, from + (h * count + row + 1) * count, to + square_.at(row, 0));
    if (given_ < square_.side) to[square_.at(given_, given_)] = last;
  }
  const T* query(int h) const { return memory_ + place(h); }
  const T* projection(int h) const { return memory_ + place(heads_ + h); }
  const T* transposed(int h) const { return memory_ + place(2 * heads_ + h); }

  const T* q_;
  const T* p_;
  int heads_, given_;
  Square<T> square_;
  const T* memory_ = nullptr;
};

}  // namespace memformer::cpu::MEMFORMER_ISA
