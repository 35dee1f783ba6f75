// Gram matrices of contexts whose tokens have weights, on the CPU: one task per lane, weights read three times, tokens
// once. Threads are dealt single vectors of tasks where contexts are long, parts of 16 vectors where they are short.
//
// Bytes per task: its context and weights, and D^2 numbers written; backward: the context and weights read, two
// matrices read, and the gradients written. Operations per task: n D (D + 5) / 2 and n roots forward, n D (D + 3)
// backward.

#include <limits>

#include "cpu/kernels.h"
#include "cpu/lanes/random_bits.h"
#include "cpu/tasks/context_gram.h"
#include "cpu/tasks/long_contexts.h"
#include "cpu/tasks/parts.h"
#include "cpu/tasks/vectors.h"

namespace memformer::cpu::MEMFORMER_ISA {
namespace {

template <class T>
MEMFORMER_INLINE Lanes<T> larger(Lanes<T> a, Lanes<T> b) {
  return Lanes<T>(a.v < b.v ? b.v : a.v);
}

// The number, or 0 where it is none or infinite.
template <class T>
MEMFORMER_INLINE Lanes<T> finite(Lanes<T> number) {
  constexpr T infinite = std::numeric_limits<T>::infinity();
  return where_less(-infinite, number, where_less(-infinite, -number, number));
}

template <class T, class Width>
class WeightedContext {
  using S = Lanes<T>;

 public:
  WeightedContext(const WeightedGram<T>& gram, Width width) : gram_(gram), width_(width) {}

  std::size_t scratch_cells() const {
    return static_cast<std::size_t>(2 * core::gram_block * (width_ + 1)) + width_ * width_ +
           waiting_cells(gram_.context, width_);
  }

  void operator()(Tasks tasks, S*, S* scratch) {
    tasks_ = tasks;
    count_ = load_lengths<T>(gram_.lengths, gram_.context, tasks);
    rows_ = scratch;
    factors_ = rows_ + core::gram_block * width_;
    S* const grads = factors_ + core::gram_block;
    S* const weight_grads = grads + core::gram_block * width_;
    S* const square = weight_grads + core::gram_block;
    S* const waiting = square + width_ * width_;
    const S scale = count_of_weight(waiting);
    if (gram_.backward) {
      write_gradients(scale, square, grads, weight_grads);
    } else {
      write_total(scale, square, waiting);
    }
  }

 private:
  // Weights [first, first + number), 0 past a task's own context.
  const S* weights(int first, int number) {
    load_rows(gram_.weights, tasks_, first, number, 1, factors_);
    for (int i = 0; i < number; ++i) factors_[i] = labelled(first + i, factors_[i]);
    return factors_;
  }

  S labelled(int index, S value) const {
    return gram_.lengths ? where_less(static_cast<T>(index), count_, value) : value;
  }

  // n / W; 0 without weight. Sums are of weights over the largest, so that they neither overflow nor vanish.
  S count_of_weight(S* waiting) {
    S largest = S(T(0));
    for (int first = 0; first < gram_.context; first += core::gram_block) {
      checkpoint_at_row(first);
      const int number = block_of(first);
      const S* const own = weights(first, number);
      for (int i = 0; i < number; ++i) largest = larger(largest, own[i]);
    }
    const S inverse = where_less(T(0), largest, S(T(1)) / largest);
    S sum = S(T(0));
    const auto block = [&](int first, int number, S* to) {
      const S* const own = weights(first, number);
      S part = S(T(0));
      for (int i = 0; i < number; ++i) part += own[i] * inverse;
      *to = part;
    };
    sum_blocks(gram_.context, core::Fixed<1>{}, block, waiting, &sum);
    return where_less(T(0), sum, count_ / sum * inverse);
  }

  void write_total(S scale, S* square, S* waiting) {
    S total[core::packed_size(Width::limit)];
    const auto rows = [&](int first, int number) {
      load_rows(gram_.z, tasks_, first, number, width_, rows_);
      const S* const own = weights(first, number);
      for (int i = 0; i < number; ++i) {
        const S root = square_root(own[i] * scale);
        for (int c = 0; c < width_; ++c) rows_[i * width_ + c] = where_less(T(0), root, rows_[i * width_ + c] * root);
      }
      return rows_;
    };
    sum_context(gram_.context, width_, rows, waiting, total);
    for (int r = 0; r < width_; ++r) {
      for (int c = 0; c < width_; ++c) square[r * width_ + c] = total[core::packed(r, c)];
    }
    store_rows(square, gram_.total, tasks_, 0, width_, width_);
  }

  void write_gradients(S scale, S* square, S* grads, S* weight_grads) {
    S symmetric[core::packed_size(Width::limit)];  // dM + dM^T
    load_rows(gram_.grad_total, tasks_, 0, width_, width_, square);
    for (int r = 0; r < width_; ++r) {
      for (int c = 0; c <= r; ++c) symmetric[core::packed(r, c)] = square[r * width_ + c] + square[c * width_ + r];
    }
    load_rows(gram_.total, tasks_, 0, width_, width_, square);
    S inner = S(T(0));  // <dM + dM^T, M>
    for (int r = 0; r < width_; ++r) {
      for (int c = 0; c < width_; ++c) inner += symmetric[core::packed(r, c)] * square[r * width_ + c];
    }
    const S mean = inner / count_;
    for (int first = 0; first < gram_.context; first += core::gram_block) {
      checkpoint_at_row(first);
      const int number = block_of(first);
      load_rows(gram_.z, tasks_, first, number, width_, rows_);
      const S* const own = weights(first, number);
      for (int i = 0; i < number; ++i) {
        const S factor = own[i] * scale;
        S* const row = rows_ + i * width_;
        for (int c = 0; c < width_; ++c) {
          const S known = finite(row[c]);
          row[c] = known + where_less(T(0), factor, row[c] - known);
        }
        S* const grad = grads + i * width_;
        for (int c = 0; c < width_; ++c) grad[c] = S(T(0));
        core::add_gram_grad(symmetric, core::Cells<const S>{row}, width_, core::Cells<S>{grad});
        S along = S(T(0));  // z_i^T (dM + dM^T) z_i
        for (int c = 0; c < width_; ++c) along += row[c] * grad[c];
        weight_grads[i] = labelled(first + i, where_less(T(0), scale, (along - mean) * scale * T(0.5)));
        for (int c = 0; c < width_; ++c) grad[c] = where_less(T(0), factor, grad[c] * factor);
      }
      if (gram_.grad_z.data) store_rows(grads, gram_.grad_z, tasks_, first, number, width_);
      if (gram_.grad_weights.data) store_rows(weight_grads, gram_.grad_weights, tasks_, first, number, 1);
    }
    if (gram_.grad_weights.data)
      store_zeros<T>(gram_.grad_weights, tasks_, gram_.context, gram_.tokens - gram_.context, 1);
  }

  int block_of(int first) const {
    const int left = gram_.context - first;
    return left < core::gram_block ? left : core::gram_block;
  }

  const WeightedGram<T>& gram_;
  Width width_;
  Tasks tasks_{};
  S count_{};
  S* rows_ = nullptr;
  S* factors_ = nullptr;
};

template <class T, class Width>
void run(const WeightedGram<T>& gram, Width width, ParallelFor parallel) {
  const WeightedContext<T, Width> group(gram, width);
  if (gram.context >= piece_rows) return over_vectors<T>(gram.tasks, parallel, group);
  over_parts<T>(gram.tasks, 0, group.scratch_cells(), nullptr, parallel, group);
}

}  // namespace

void weighted_gram(const WeightedGram<float>& gram, ParallelFor parallel) {
#if MEMFORMER_VECTOR_BYTES > 16
  switch (gram.width) {
    case 4: return run(gram, core::Fixed<4>{}, parallel);
    case 6: return run(gram, core::Fixed<6>{}, parallel);
  }
#endif
  run(gram, core::UpTo<17>{gram.width}, parallel);
}

void weighted_gram(const WeightedGram<double>& gram, ParallelFor parallel) {
  run(gram, core::UpTo<17>{gram.width}, parallel);
}

}  // namespace memformer::cpu::MEMFORMER_ISA
