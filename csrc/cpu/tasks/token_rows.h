// The tokens of a group of tasks that a network reads: those of the context, and those whose result is asked for.
//
// Few rows are loaded once and stay (`resident`); more of them stream through a buffer of one block, once for every
// pass over them. Rows past a ragged task's own context are zero in what `context` returns, by selection. A context
// that is read once, by stream_block, is never loaded here (`begin_results`).

#pragma once

#include "core/gram.h"
#include "cpu/lanes/lanes.h"

namespace memformer::cpu::MEMFORMER_ISA {

// Rows that stay: their tile fills a first- or second-level cache.
constexpr int resident_rows = 64;

template <class T>
class TokenRows {
  using S = Lanes<T>;

 public:
  explicit TokenRows(const Network<T>& network)
      : z_(network.z),
        width_(network.width),
        lengths_(network.lengths),
        stack_(network.queries < 0),
        context_(network.lengths && !stack_ ? network.tokens - network.queries : network.context),
        out_first_(stack_ ? 0 : network.tokens - network.queries),
        out_count_(stack_ ? network.tokens : network.queries),
        rows_(stack_ ? network.tokens : context_ + out_count_),
        resident_(rows_ <= resident_rows && !(stack_ && lengths_)) {}

  // Context rows are those before this one (for ragged contexts, at most).
  int context_count() const { return context_; }
  int out_first() const { return out_first_; }
  int out_count() const { return out_count_; }
  bool is_stack() const { return stack_; }
  // Whether every task's whole context is rows of T, one after the other in memory.
  bool is_plain() const {
    return !lengths_ && z_.storage == storage_of<T> && z_.stride[2] == 1 && z_.stride[1] == width_;
  }
  int cells() const { return (resident_ ? rows_ : core::gram_block) * width_; }

  // For a group whose predictions are all that `out` is asked for, and `context` for nothing: its sums are there.
  void begin_results(Tasks tasks, S* tile) {
    enter(tasks, tile);
    if (resident_) load_rows(z_, tasks, out_first_, out_count_, width_, tile + context_ * width_);
  }

  void begin(Tasks tasks, S* tile) {
    enter(tasks, tile);
    if (!resident_) return;
    if (stack_ || out_first_ == context_) {
      load_rows(z_, tasks, 0, rows_, width_, tile);
    } else {
      load_rows(z_, tasks, 0, context_, width_, tile);
      load_rows(z_, tasks, out_first_, out_count_, width_, tile + context_ * width_);
    }
    if (lengths_) mask(0, context_, tile);
  }

  // Rows [first, first + count) of the context, count <= gram_block; valid until the next call.
  const S* context(int first, int count) {
    if (resident_) return tile_ + first * width_;
    load_rows(z_, tasks_, first, count, width_, tile_);
    if (lengths_) mask(first, count, tile_);
    return tile_;
  }

  // Rows [first, first + count) of those with a result, counted from `out_first`, count <= gram_block.
  const S* out(int first, int count) {
    if (resident_) return tile_ + ((stack_ ? 0 : context_) + first) * width_;
    load_rows(z_, tasks_, out_first_ + first, count, width_, tile_);
    return tile_;
  }

  // Labelled tokens of every task.
  S count() const { return count_; }

  // Zeros for the tasks whose context ends before row `index`.
  S labelled(int index, S value) const { return lengths_ ? where_less(static_cast<T>(index), count_, value) : value; }

 private:
  void enter(Tasks tasks, S* tile) {
    tasks_ = tasks;
    tile_ = tile;
    count_ = load_lengths<T>(lengths_, context_, tasks);
  }

  void mask(int first, int count, S* rows) const {
    for (int i = 0; i < count; ++i) {
      for (int c = 0; c < width_; ++c)
        rows[i * width_ + c] = where_less(static_cast<T>(first + i), count_, rows[i * width_ + c]);
    }
  }

  Array z_;
  int width_;
  const int64_t* lengths_;
  bool stack_;
  int context_, out_first_, out_count_, rows_;
  bool resident_;
  Tasks tasks_{};
  S* tile_ = nullptr;
  S count_{};
};

}  // namespace memformer::cpu::MEMFORMER_ISA
