// Context Gram matrices of tasks that are too wide for a lane: one task at a time, vectors along its numbers. Where
// tasks are few, their contexts are cut into pieces that threads share: whole subtrees of the pairwise sum, so that
// cutting changes no bit of a result.
//
// Bytes per task: its context and D^2 numbers written; backward: the context and D^2 numbers read, and N D written.
// Multiply-adds per task: n D^2 / 2 and up to half a tile's width more; backward n D^2. Memory: a few matrices a
// thread, and one more for every piece.

#include "cpu/kernels.h"
#include "cpu/lanes/prefetch.h"
#include "cpu/scratch.h"
#include "cpu/wide/context_sums.h"
#include "cpu/wide/tile_products.h"

namespace memformer::cpu::MEMFORMER_ISA {
namespace {

// Pieces of all tasks, at most, unless there are more tasks: enough to even out threads; and the rows of the smallest.
constexpr int64_t most_pieces = 64;
constexpr int smallest_piece = 32 * core::gram_block;
// Rows of a gradient that are made in one go, so that a panel of the matrix serves all of them.
constexpr int rows_at_once = 64;

template <class T>
class WideContextGram {
  using S = Lanes<T>;

 public:
  WideContextGram(const Gram<T>& gram, ParallelFor parallel)
      : gram_(gram),
        parallel_(parallel),
        rows_(gram.backward ? gram.tokens : gram.context),
        piece_(piece_of(gram.tasks, rows_)),
        pieces_((rows_ - 1) / piece_ + 1),
        d_(gram.width),
        size_(whole_rows<T>(d_)),
        step_(odd_lines<T>(size_)),
        sums_(d_, 0, std::min(piece_, rows_)) {}

  void run() {
    if (gram_.backward) return each(gram_.tasks * pieces_, &WideContextGram::write_gradients);
    if (pieces_ == 1) return each(gram_.tasks, &WideContextGram::sum_pieces);
    const Memory memory(gram_.tasks * pieces_ * sums_.matrix_count() * sizeof(T));
    matrices_ = static_cast<T*>(memory.data());
    each(gram_.tasks * pieces_, &WideContextGram::sum_pieces);
    each(gram_.tasks, &WideContextGram::add_pieces);
  }

 private:
  static int piece_of(int64_t tasks, int rows) {
    int64_t piece = smallest_piece;
    while (piece < rows && tasks * ((rows - 1) / piece + 1) > most_pieces) piece *= 2;
    return static_cast<int>(piece);
  }

  void each(int64_t count, Body body) {
    if (count == 1) {
      body(0, 1, this);
    } else if (count > 1) {
      parallel_(count, body, this);
    }
  }

  int examples(int64_t task) const { return gram_.lengths ? static_cast<int>(gram_.lengths[task]) : gram_.context; }

  void store(int64_t task, const T* matrix) const {
    TaskRows<T>(gram_.matrix, d_, d_, task, 0).store(0, d_, matrix, size_, nullptr);
  }

  // Of whole tasks, which are finished with that, or of their pieces.
  static void sum_pieces(int64_t begin, int64_t end, void* context) {
    const WideContextGram& self = *static_cast<const WideContextGram*>(context);
    const ContextSums<T>& sums = self.sums_;
    T* const matrix = static_cast<T*>(thread_scratch((sums.count() + sums.example_count()) * sizeof(T)));
    for (int64_t unit = begin; unit < end; ++unit) {
      checkpoint();
      const int64_t task = unit / self.pieces_;
      const int first = static_cast<int>(unit % self.pieces_) * self.piece_, n = self.examples(task);
      if (first >= n) continue;
      Prefetch<T> prefetch;
      if (self.pieces_ == 1) prefetch.begin(self.gram_.z, Tasks{task, 1}, 1, prefetch_bytes);
      const TaskRows<T> rows(self.gram_.z, self.gram_.tokens, self.d_, task, 0);
      sums.sum(rows, first, std::min<int64_t>(n, static_cast<int64_t>(first) + self.piece_), matrix,
               matrix + sums.count(), static_cast<T*>(nullptr), [&](int k) { prefetch.advance(k + 1, sums.steps()); });
      if (self.pieces_ == 1) {
        self.store(task, matrix);
      } else {
        std::copy(matrix, matrix + sums.matrix_count(), self.matrices_ + unit * sums.matrix_count());
      }
    }
  }

  static void add_pieces(int64_t begin, int64_t end, void* context) {
    const WideContextGram& self = *static_cast<const WideContextGram*>(context);
    const int64_t numbers = self.sums_.matrix_count();
    for (int64_t task = begin; task < end; ++task) {
      checkpoint();
      T* const first = self.matrices_ + task * self.pieces_ * numbers;
      sum_parts(first, (self.examples(task) - 1) / self.piece_ + 1, static_cast<int>(numbers));
      self.store(task, first);
    }
  }

  // (dG + dG^T) z for rows of the context, zeros behind it.
  static void write_gradients(int64_t begin, int64_t end, void* context) {
    const WideContextGram& self = *static_cast<const WideContextGram*>(context);
    const Gram<T>& gram = self.gram_;
    const int64_t square = static_cast<int64_t>(self.size_) * self.step_;
    const int64_t chunk = static_cast<int64_t>(rows_at_once) * self.step_;
    T* const matrix = static_cast<T*>(thread_scratch((square + std::max(square, 2 * chunk)) * sizeof(T)));
    T* const made = matrix + square;
    int64_t loaded = -1;
    for (int64_t unit = begin; unit < end; ++unit) {
      checkpoint();
      const int64_t task = unit / self.pieces_;
      const int first = static_cast<int>(unit % self.pieces_) * self.piece_;
      const int last = static_cast<int>(std::min<int64_t>(gram.tokens, static_cast<int64_t>(first) + self.piece_));
      const int labelled = std::clamp(self.examples(task), first, last);
      Prefetch<T> prefetch;
      if (self.pieces_ == 1) prefetch.begin(gram.z, Tasks{task, 1}, 1, prefetch_bytes);
      if (task != loaded) self.load_symmetric(task, matrix, made);
      loaded = task;
      const TaskRows<T> rows(gram.z, gram.tokens, self.d_, task, 0), grads(gram.grad_z, gram.tokens, self.d_, task, 0);
      for (int row = first; row < labelled; row += rows_at_once) {
        const int count = std::min(rows_at_once, labelled - row);
        checkpoint_after(static_cast<int64_t>(count) * self.d_ * self.d_);
        self.multiply(rows, row, count, matrix, made + chunk, made);
        grads.store(row, count, made, self.step_, nullptr);
        prefetch.advance(row + count - first, last - first);
      }
      if (labelled < last) clear(made, chunk);
      for (int row = labelled; row < last; row += rows_at_once) {
        grads.store(row, std::min(rows_at_once, last - row), made, self.step_, nullptr);
      }
    }
  }

  // dG + dG^T of a task; `spare` has room for another matrix.
  void load_symmetric(int64_t task, T* matrix, T* spare) const {
    TaskRows<T>(gram_.matrix, d_, d_, task, 0).load(0, d_, step_, matrix, nullptr);
    clear(matrix + static_cast<int64_t>(d_) * step_, static_cast<int64_t>(size_ - d_) * step_);
    transpose(static_cast<const T*>(matrix), step_, size_, size_, spare, step_);
    for (int64_t row = 0; row < d_; ++row) {
      for (int64_t c = row * step_; c < row * step_ + size_; c += S::width)
        (S::load(matrix + c) + S::load(spare + c)).store(matrix + c);
    }
  }

  // made = rows [first, first + count) times the matrix; `x` has room for as many rows.
  void multiply(const TaskRows<T>& rows, int first, int count, const T* matrix, T* x, T* made) const {
    const int whole = padded_to(count, tile_rows);
    Left<T> left{rows.in_place(first, first + count, d_), rows.row_step(), 1};
    if (!left.data || whole > count) {
      rows.load(first, count, step_, x, nullptr);
      clear(x + count * static_cast<int64_t>(step_), (whole - count) * static_cast<int64_t>(step_));
      left = {x, step_, 1};
    }
    deep_product<T>({made, step_}, whole, size_, left, {matrix, step_}, d_);
  }

  const Gram<T>& gram_;
  ParallelFor parallel_;
  int rows_, piece_, pieces_, d_, size_, step_;
  ContextSums<T> sums_;
  T* matrices_ = nullptr;
};

}  // namespace

void wide_context_gram(const Gram<float>& gram, ParallelFor parallel) { WideContextGram<float>(gram, parallel).run(); }

void wide_context_gram(const Gram<double>& gram, ParallelFor parallel) {
  WideContextGram<double>(gram, parallel).run();
}

}  // namespace memformer::cpu::MEMFORMER_ISA
