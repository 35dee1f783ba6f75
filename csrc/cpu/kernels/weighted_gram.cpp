// Gram matrices of contexts whose tokens have weights, on the CPU: one task per lane, tokens read once, weights once
// where few of them stay and twice where they stream. Threads are dealt single vectors of tasks where contexts are
// long, parts of 16 vectors where they are short; few tasks with long contexts are cut into pieces.
//
// Bytes per task: its context and weights, and D^2 numbers written; backward: the context and weights read, two
// matrices read, and the gradients written. Operations per task: n D (D + 3) / 2 forward, n D (D + 3) backward.

#include <algorithm>
#include <limits>

#include "cpu/kernels.h"
#include "cpu/tasks/context_gram.h"
#include "cpu/tasks/long_contexts.h"
#include "cpu/tasks/parts.h"
#include "cpu/tasks/token_rows.h"
#include "cpu/tasks/vectors.h"

namespace memformer::cpu::MEMFORMER_ISA {
namespace {

template <class T>
constexpr T smallest_weight = std::numeric_limits<T>::min();

// The least power of two whose square overflows.
template <class T>
constexpr T root_of_overflow = sizeof(T) == 4 ? T(0x1p64) : T(0x1p512);

template <class T>
MEMFORMER_INLINE Lanes<T> larger(Lanes<T> a, Lanes<T> b) {
  return Lanes<T>(a.v < b.v ? b.v : a.v);
}

// The number where its size is less than `bound`; 0 where it is not, or is no number, unless `present` is more than 0.
template <class T>
MEMFORMER_INLINE Lanes<T> bounded(Lanes<T> number, T bound, Lanes<T> present) {
  const Lanes<T> kept = where_less(-bound, number, where_less(-bound, -number, number));
  return kept + where_less(T(0), present, number - kept);
}

template <class T, class Width>
class WeightedContext {
  using S = Lanes<T>;

 public:
  WeightedContext(const WeightedGram<T>& gram, Width width)
      : gram_(gram), width_(width), resident_(gram.context <= resident_rows) {}

  std::size_t scratch_cells() const {
    return static_cast<std::size_t>(2 * core::gram_block * width_ + core::gram_block + resident_rows) +
           width_ * width_ + waiting_cells(gram_.context, width_);
  }

  void operator()(Tasks tasks, S*, S* scratch) {
    tasks_ = tasks;
    count_ = load_lengths<T>(gram_.lengths, gram_.context, tasks);
    rows_ = scratch;
    made_ = rows_ + core::gram_block * width_;
    weight_grads_ = made_ + core::gram_block * width_;
    weights_ = weight_grads_ + core::gram_block;
    S* const square = weights_ + resident_rows;
    S* const waiting = square + width_ * width_;
    if (resident_) load_weights(0, gram_.context);
    if (gram_.backward) return write_gradients(square);
    if (gram_.part != WeightedPart::sums) store_entry(largest_weight(), gram_.largest, tasks, 0);
    if (gram_.part != WeightedPart::largest) write_total(square, waiting);
  }

 private:
  void load_weights(int first, int number) {
    load_rows(gram_.weights, tasks_, first, number, 1, weights_);
    for (int i = 0; i < number; ++i) weights_[i] = labelled(first + i, weights_[i]);
  }

  // Weights [first, first + number), 0 past a task's own context.
  const S* weights(int first, int number) {
    if (resident_) return weights_ + first;
    load_weights(first, number);
    return weights_;
  }

  S labelled(int index, S value) const {
    return gram_.lengths ? where_less(static_cast<T>(index), count_, value) : value;
  }

  S largest_weight() {
    S largest = S(smallest_weight<T>);
    for (int first = 0; first < gram_.context; first += core::gram_block) {
      checkpoint_at_row(first);
      const int number = block_of(first);
      const S* const own = weights(first, number);
      for (int i = 0; i < number; ++i) largest = larger(largest, own[i]);
    }
    return largest;
  }

  // 1 / largest: lanes without a task have none.
  S inverse() const { return S(T(1)) / larger(load_entry<T>(gram_.largest, tasks_, 0), S(smallest_weight<T>)); }

  void write_total(S* square, S* waiting) {
    const S inverse = this->inverse();
    S total[core::packed_size(Width::limit)], weight, waiting_weights[piece_levels];
    PairwiseSum<S> sum_of_weights(waiting_weights, 1);
    const auto block = [&](int first, int number, S* to) {
      load_rows(gram_.z, tasks_, first, number, width_, rows_);
      const S* const own = weights(first, number);
      weight = S(T(0));
      for (int i = 0; i < number; ++i) {
        const S factor = own[i] * inverse;
        weight += factor;
        S* const row = rows_ + i * width_;
        for (int c = 0; c < width_; ++c) {
          row[c] = where_less(T(0), factor, row[c]);
          made_[i * width_ + c] = row[c] * factor;
        }
      }
      sum_of_weights.add(&weight, first + number == gram_.context);
      core::block_products(core::Cells<const S>{made_}, core::Cells<const S>{rows_}, number, width_, to);
    };
    sum_blocks(gram_.context, width_, block, waiting, total);
    const bool divides = gram_.part == WeightedPart::whole;
    if (divides) weight = where_less(T(0), weight, count_ / weight);
    store_entry(weight, gram_.share, tasks_, 0);
    for (int r = 0; r < width_; ++r) {
      for (int c = 0; c < width_; ++c) {
        const S entry = total[core::packed(r, c)];
        square[r * width_ + c] = divides ? entry * weight : entry;
      }
    }
    store_rows(square, gram_.matrix, tasks_, 0, width_, width_);
  }

  void write_gradients(S* square) {
    S symmetric[core::packed_size(Width::limit)];  // dM + dM^T
    load_rows(gram_.matrix, tasks_, 0, width_, width_, square);
    for (int r = 0; r < width_; ++r) {
      for (int c = 0; c <= r; ++c) symmetric[core::packed(r, c)] = square[r * width_ + c] + square[c * width_ + r];
    }
    load_rows(gram_.total, tasks_, 0, width_, width_, square);
    S inner = S(T(0));  // <dM + dM^T, M>
    for (int r = 0; r < width_; ++r) {
      for (int c = 0; c < width_; ++c) inner += symmetric[core::packed(r, c)] * square[r * width_ + c];
    }
    const S mean = inner / (gram_.whole ? S(static_cast<T>(gram_.whole)) : count_);
    const S scale = load_entry<T>(gram_.share, tasks_, 0) * inverse();  // n / W
    for (int first = 0; first < gram_.context; first += core::gram_block) {
      checkpoint_at_row(first);
      const int number = block_of(first);
      load_rows(gram_.z, tasks_, first, number, width_, rows_);
      const S* const own = weights(first, number);
      for (int i = 0; i < number; ++i) write_gradient(symmetric, own[i], scale, mean, i);
      for (int i = 0; i < number; ++i) weight_grads_[i] = labelled(first + i, weight_grads_[i]);
      if (gram_.grad_z.data) store_rows(made_, gram_.grad_z, tasks_, first, number, width_);
      if (gram_.grad_weights.data) store_rows(weight_grads_, gram_.grad_weights, tasks_, first, number, 1);
    }
    const int rest = gram_.tokens - gram_.context;
    if (gram_.grad_z.data && rest > 0) store_zeros<T>(gram_.grad_z, tasks_, gram_.context, rest, width_);
    if (gram_.grad_weights.data) store_zeros<T>(gram_.grad_weights, tasks_, gram_.context, rest + gram_.others, 1);
  }

  // Of token i of the block, and of its weight.
  MEMFORMER_INLINE void write_gradient(const S* symmetric, S weight, S scale, S mean, int i) {
    S* const row = rows_ + i * width_;
    S* const grad = made_ + i * width_;
    for (int c = 0; c < width_; ++c) row[c] = bounded(row[c], root_of_overflow<T>, weight);
    for (int c = 0; c < width_; ++c) grad[c] = S(T(0));
    core::add_gram_grad(symmetric, core::Cells<const S>{row}, width_, core::Cells<S>{grad});
    S along = S(T(0));  // z_i^T (dM + dM^T) z_i
    for (int c = 0; c < width_; ++c) along += row[c] * grad[c];
    const S own = bounded((along - mean) * scale * T(0.5), std::numeric_limits<T>::infinity(), weight);
    weight_grads_[i] = where_less(T(0), scale, own);
    const S factor = weight * scale;
    for (int c = 0; c < width_; ++c) grad[c] = where_less(T(0), factor, grad[c] * factor);
  }

  int block_of(int first) const {
    const int left = gram_.context - first;
    return left < core::gram_block ? left : core::gram_block;
  }

  const WeightedGram<T>& gram_;
  Width width_;
  bool resident_;
  Tasks tasks_{};
  S count_{};
  S* rows_ = nullptr;
  S* made_ = nullptr;
  S* weight_grads_ = nullptr;
  S* weights_ = nullptr;
};

// The same piece by piece; run(call) works on whole tasks.
template <class T, class Run>
void over_weighted_pieces(const WeightedGram<T>& gram, Run run) {
  using Call = WeightedGram<T>;
  const int64_t entries = static_cast<int64_t>(gram.width) * gram.width;
  const int64_t most = gram.context / piece_rows + 1, places = most + piece_levels;
  const Memory memory(gram.backward ? 0 : (places * (entries + 1) + most) * sizeof(T));
  T* const matrices = static_cast<T*>(memory.data());
  T* const weights = matrices + places * entries;
  T* const largest = weights + places;
  for (int64_t task = 0; task < gram.tasks; ++task) {
    const int64_t n = gram.lengths ? gram.lengths[task] : gram.context;
    const auto cut = [&](Call& piece, int64_t row) {
      piece.z = pieces_from(gram.z, task, row);
      piece.grad_z = pieces_from(gram.grad_z, task, row);
      piece.weights = pieces_from(gram.weights, task, row);
      piece.grad_weights = pieces_from(gram.grad_weights, task, row);
    };
    if (gram.backward) {
      for_pieces(gram, task, cut, [&](Call& piece, int64_t) {
        piece.matrix = in_common(gram.matrix, task);
        piece.total = in_common(gram.total, task);
        piece.largest = in_common(gram.largest, task);
        piece.share = in_common(gram.share, task);
        piece.whole = static_cast<int>(n);
        piece.others = 0;
        run(piece);
      });
      if (gram.grad_weights.data) store_zeros<T>(gram.grad_weights, Tasks{task, 1}, gram.tokens, gram.others, 1);
      continue;
    }
    int64_t count = 0;
    for_pieces(gram, task, cut, [&](Call& piece, int64_t first) {
      if (!piece.context) return;
      piece.part = WeightedPart::largest;
      piece.largest = {largest + first, gram.largest.storage, {1, 0, 0}};
      run(piece);
      count = first + piece.tasks;
    });
    T* const top = static_cast<T*>(from_row(gram.largest, task, 0).data);
    *top = *std::max_element(largest, largest + count);
    for_pieces(gram, task, cut, [&](Call& piece, int64_t first) {
      if (!piece.context) return;
      piece.part = WeightedPart::sums;
      piece.largest = in_common(gram.largest, task);
      piece.matrix = {matrices + first * entries, gram.matrix.storage, {entries, gram.width, 1}};
      piece.share = {weights + first, gram.share.storage, {1, 0, 0}};
      run(piece);
    });
    const T weight = *sum_of_pieces(weights, count, 1, weights + most);
    const T share = weight > T(0) ? static_cast<T>(n) / weight : T(0);
    *static_cast<T*>(from_row(gram.share, task, 0).data) = share;
    const T* const total = sum_of_pieces(matrices, count, static_cast<int>(entries), matrices + most * entries);
    write_matrix(total, gram.width, share, gram.matrix, task);
  }
}

template <class T, class Width>
void run(const WeightedGram<T>& gram, Width width, ParallelFor parallel) {
  const auto whole_tasks = [&](const WeightedGram<T>& call) {
    const WeightedContext<T, Width> group(call, width);
    if (call.context >= piece_rows) return over_vectors<T>(call.tasks, parallel, group);
    over_parts<T>(call.tasks, 0, group.scratch_cells(), nullptr, parallel, group);
  };
  if (cutting_pays<T>(gram.tasks, gram.context)) return over_weighted_pieces(gram, whole_tasks);
  whole_tasks(gram);
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
