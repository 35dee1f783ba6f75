// Context Gram matrices on the CPU, any length of context: one task per lane, tokens streamed once. Threads are dealt
// single vectors of tasks where contexts are long, parts of 16 vectors where they are short.
//
// Bytes per task: its context and D^2 numbers written; backward: the context read, and N D numbers written. Operations
// per task: n D (D + 1) / 2 forward, n D^2 backward.

#include "cpu/tasks/context_gram.h"

#include "cpu/kernels.h"
#include "cpu/tasks/long_contexts.h"
#include "cpu/tasks/parts.h"
#include "cpu/tasks/vectors.h"

namespace memformer::cpu::MEMFORMER_ISA {
namespace {

template <class T, class Width>
class ContextGram {
  using S = Lanes<T>;

 public:
  ContextGram(const Gram<T>& gram, Width width) : gram_(gram), width_(width) {}

  std::size_t scratch_cells() const {
    return static_cast<std::size_t>(2 * core::gram_block * width_) + width_ * width_ +
           waiting_cells(gram_.context, width_);
  }

  void operator()(Tasks tasks, S*, S* scratch) {
    S* const block = scratch;
    S* const grads = block + core::gram_block * width_;
    S* const square = grads + core::gram_block * width_;
    S* const waiting = square + width_ * width_;
    const S count = load_lengths<T>(gram_.lengths, gram_.context, tasks);
    const auto rows = [&](int first, int number) {
      load_rows(gram_.z, tasks, first, number, width_, block);
      if (gram_.lengths) mask(first, number, count, block);
      return block;
    };
    S matrix[core::packed_size(Width::limit)];
    if (!gram_.backward) {
      sum_context(gram_.context, width_, rows, waiting, matrix);
      for (int r = 0; r < width_; ++r) {
        for (int c = 0; c < width_; ++c) square[r * width_ + c] = matrix[core::packed(r, c)];
      }
      store_rows(square, gram_.matrix, tasks, 0, width_, width_);
      return;
    }
    load_rows(gram_.matrix, tasks, 0, width_, width_, square);
    for (int r = 0; r < width_; ++r) {
      for (int c = 0; c <= r; ++c) matrix[core::packed(r, c)] = square[r * width_ + c] + square[c * width_ + r];
    }
    for (int first = 0; first < gram_.context; first += core::gram_block) {
      checkpoint_at_row(first);
      const int left = gram_.context - first;
      const int number = left < core::gram_block ? left : core::gram_block;
      const S* const own = rows(first, number);
      for (int i = 0; i < number; ++i) {
        for (int c = 0; c < width_; ++c) grads[i * width_ + c] = S(T(0));
        core::add_gram_grad(matrix, core::Cells<const S>{own + i * width_}, width_, core::Cells<S>{grads + i * width_});
      }
      if (gram_.lengths) mask(first, number, count, grads);
      store_rows(grads, gram_.grad_z, tasks, first, number, width_);
    }
    if (gram_.context < gram_.tokens)
      store_zeros<T>(gram_.grad_z, tasks, gram_.context, gram_.tokens - gram_.context, width_);
  }

 private:
  void mask(int first, int number, S count, S* rows) const {
    for (int i = 0; i < number; ++i) {
      for (int c = 0; c < width_; ++c)
        rows[i * width_ + c] = where_less(static_cast<T>(first + i), count, rows[i * width_ + c]);
    }
  }

  const Gram<T>& gram_;
  Width width_;
};

template <class T, class Width>
void run(const Gram<T>& gram, Width width, ParallelFor parallel) {
  const auto whole_tasks = [&](const Gram<T>& call) {
    const ContextGram<T, Width> group(call, width);
    if (call.context >= piece_rows) return over_vectors<T>(call.tasks, parallel, group);
    over_parts<T>(call.tasks, 0, group.scratch_cells(), nullptr, parallel, group);
  };
  if (cutting_pays<T>(gram.tasks, gram.context)) return over_pieces(gram, whole_tasks);
  whole_tasks(gram);
}

}  // namespace

void context_gram(const Gram<float>& gram, ParallelFor parallel) {
#if MEMFORMER_VECTOR_BYTES > 16
  switch (gram.width) {
    case 4: return run(gram, core::Fixed<4>{}, parallel);
    case 6: return run(gram, core::Fixed<6>{}, parallel);
    case 8: return run(gram, core::Fixed<8>{}, parallel);
    case 9: return run(gram, core::Fixed<9>{}, parallel);
  }
#endif
  run(gram, core::UpTo<17>{gram.width}, parallel);
}

void context_gram(const Gram<double>& gram, ParallelFor parallel) { run(gram, core::UpTo<17>{gram.width}, parallel); }

}  // namespace memformer::cpu::MEMFORMER_ISA
