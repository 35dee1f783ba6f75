// Linear attention with factored heads on the CPU: result_t = rows_t sum over the i that t sees of keys_i (q_t . k_i)
// v_i.
//
// A thread owns heads of tasks (of packed batches, heads of sequences), and goes through one's tokens chunk by chunk
// with the sum S of k_i v_i^T over the chunks before in its caches. Gradients are sums of the same kind: that of q
// attends from the result's gradient to v for k, that of k from v to the gradient for q, that of v from k to q for the
// gradient, the last two with the later tokens for the earlier ones. Where a token sees all, S is summed first, and the
// three share two such sums.
//
// Multiply-adds a token of one head: 2 E F, and C (E + F) for chunks of C in order, of which three quarters and a
// little over a half are made; backward three times as many (in order), or 5 E F. Numbers: 2 E + F read and F written;
// backward 4 E + 5 F read (in order), or 3 E + 4 F, and 2 E + F written. Sums are float (double for double), and do not
// depend on threads.

#include <algorithm>
#include <initializer_list>

#include "cpu/kernels.h"
#include "cpu/lanes/lanes.h"
#include "cpu/scratch.h"
#include "cpu/wide/tile_products.h"

namespace memformer::cpu::MEMFORMER_ISA {
namespace {

constexpr int chunk = 32;  // tokens whose scores are formed at once

struct Range {
  int64_t begin, end;
};

// Tokens of all heads, in one of their roles, and the weight of each.
struct Tokens {
  Heads heads;
  Array weights;
  int width;
};

// count numbers, `step` apart in memory, times a factor.
template <class T>
void read_row(const Array& array, int64_t at, int count, T factor, T* to) {
  const int64_t step = array.stride[2];
  const auto read = [&](const auto* from, auto convert) {
    if (step == 1) {
      for (int c = 0; c < count; ++c) to[c] = static_cast<T>(convert(from[c])) * factor;
    } else {
      for (int c = 0; c < count; ++c) to[c] = static_cast<T>(convert(from[c * step])) * factor;
    }
  };
  const auto same = [](auto number) { return number; };
  const auto bfloat16 = [](uint16_t half) { return core::from_bfloat16(half); };
  const auto float16 = [](uint16_t half) { return core::from_float16(half); };
  switch (array.storage) {
    case Storage::float64: return read(static_cast<const double*>(array.data) + at, same);
    case Storage::bfloat16: return read(static_cast<const uint16_t*>(array.data) + at, bfloat16);
    case Storage::float16: return read(static_cast<const uint16_t*>(array.data) + at, float16);
    default: return read(static_cast<const float*>(array.data) + at, same);
  }
}

template <class T>
void write_row(const T* from, int count, T factor, const Array& array, int64_t at) {
  if (array.storage == storage_of<T> && array.stride[2] == 1) {
    T* const to = static_cast<T*>(array.data) + at;
    for (int c = 0; c < count; ++c) to[c] = from[c] * factor;
  } else {
    for (int c = 0; c < count; ++c) write_number<T>(array, at + c * array.stride[2], from[c] * factor);
  }
}

// turned (columns x rows, step `to_step`) from tile (rows x columns), both counts multiples of tile_columns.
template <class T>
void turn(const T* tile, int64_t step, int rows, int columns, T* turned, int64_t to_step) {
  for (int row = 0; row < rows; row += Lanes<T>::width) {
    for (int column = 0; column < columns; column += quarter<T>) {
      Lanes<T> numbers[quarter<T>];
      load_columns<T>(tile + row * step + column, step, numbers);
      for (int k = 0; k < quarter<T>; ++k) numbers[k].store(turned + (column + k) * to_step + row);
    }
  }
}

// Asks memory for the next chunk's tokens while this one is worked on, a few lines at a time: a head's part of a token
// is too short for the hardware's own prefetcher.
class NextTokens {
 public:
  // No tokens, until there are some.
  void begin() { sources_ = rows_ = row_ = turn_ = 0; }

  void add(const Tokens& tokens, int64_t place, int count) {
    const Array& array = tokens.heads.array;
    const int64_t number = bytes_of_number(array.storage);
    Source& source = source_[sources_++];
    source = {static_cast<const char*>(array.data) + place * number, array.stride[1] * number,
              static_cast<int>((tokens.width * number + 63) / 64)};
    rows_ = count;
  }

  // Asks for all of them in about `calls` calls.
  void divide(int calls) { share_ = (sources_ * rows_ + calls - 1) / calls; }

  MEMFORMER_INLINE void operator()() {
    for (int k = 0; k < share_ && row_ < rows_; ++k) {
      Source& source = source_[turn_];
      for (int line = 0; line < source.lines; ++line) __builtin_prefetch(source.row + 64 * line, 0, 2);
      source.row += source.step;
      if (++turn_ >= sources_) {
        turn_ = 0;
        ++row_;
      }
    }
  }

 private:
  struct Source {
    const char* row;
    int64_t step;
    int lines;
  };
  Source source_[3];
  int sources_ = 0, rows_ = 0, row_ = 0, turn_ = 0, share_ = 0;
};

// One head of one sequence. Tiles hold a chunk's tokens row by row, as wide as the widest head.
template <class T>
class Head {
 public:
  static std::size_t scratch_numbers(int width) {
    return static_cast<std::size_t>(4 * chunk * width + chunk * chunk + 2 * width * width + chunk * width);
  }

  Head(const Attention<T>& call, int width, T* scratch, int64_t task, int64_t head)
      : width_(width), task_(task), head_(head) {
    std::fill_n(scratch, scratch_numbers(width), T(0));
    T* next = scratch;
    const auto take = [&](int rows, int columns) {
      T* const begin = next;
      next += rows * columns;
      return Rows<T>{begin, columns};
    };
    readers_ = take(chunk, width);
    keys_ = take(chunk, width);
    values_ = take(chunk, width);
    made_ = take(chunk, width);
    turned_ = take(width, chunk);
    scores_ = take(chunk, chunk);
    state_ = take(width, width);
    state_turned_ = take(width, width);
    q_ = {call.q, call.row_weights, call.key_width};
    k_ = {call.k, call.key_weights, call.key_width};
    v_ = {call.v, call.key_weights, call.value_width};
    grad_ = {call.result, call.row_weights, call.value_width};
    selects_ = call.row_weights.data && call.key_weights.data;
  }

  void forward(const Attention<T>& call, Range tokens, Range keys) {
    if (call.sees == Sees::all) {
      sum(k_, v_, keys);
      apply(q_, state_, call.result, call.value_width, tokens);
    } else {
      attend(q_, k_, v_, call.result, tokens, Sees::earlier);
    }
  }

  void backward(const Attention<T>& call, Range tokens, Range keys) {
    const bool q = call.grad_q.array.data, k = call.grad_k.array.data, v = call.grad_v.array.data;
    if (call.sees != Sees::all) {
      if (q) attend(grad_, v_, k_, call.grad_q, tokens, Sees::earlier);
      if (k) attend(v_, grad_, q_, call.grad_k, tokens, Sees::later);
      if (v) attend(k_, q_, grad_, call.grad_v, tokens, Sees::later);
      return;
    }
    if (q) {
      sum(k_, v_, keys);
      turn(state_.data, width_, width_, width_, state_turned_.data, width_);
      apply(grad_, state_turned_, call.grad_q, call.key_width, tokens);
    }
    if (k || v) sum(q_, grad_, tokens);
    if (v) apply(k_, state_, call.grad_v, call.value_width, keys);
    if (k) {
      turn(state_.data, width_, width_, width_, state_turned_.data, width_);
      apply(v_, state_turned_, call.grad_k, call.key_width, keys);
    }
  }

 private:
  // state = sum of keys_i values_i^T.
  void sum(const Tokens& keys, const Tokens& values, Range range) {
    for (int64_t first = range.begin; first < range.end; first += chunk) {
      checkpoint_at_row(first - range.begin);
      const int count = static_cast<int>(std::min<int64_t>(chunk, range.end - first));
      const Rows<const T> own_keys = look(keys, true, first, count, keys_);
      const Rows<const T> own_values = look(values, false, first, count, values_);
      expect(first + chunk, range, padded_to(keys.width, tile_columns), {&keys, &values});
      add_to_state(own_keys, keys.width, own_values, values.width, count, first == range.begin);
    }
  }

  // result_t = the readers' weight times readers_t state.
  void apply(const Tokens& readers, Rows<T> state, const Heads& result, int width, Range range) {
    for (int64_t first = range.begin; first < range.end; first += chunk) {
      checkpoint_at_row(first - range.begin);
      const int count = static_cast<int>(std::min<int64_t>(chunk, range.end - first));
      const Rows<const T> own = look(readers, false, first, count, readers_);
      expect(first + chunk, range, chunk, {&readers});
      product<T, false>(made_, padded_to(count, tile_rows), padded_to(width, tile_columns), by_row(own), fixed(state),
                        readers.width, Depth::whole, next_);
      store(result, width, readers.weights, first, count);
    }
  }

  // result_t = the readers' weight times the sum over the keys that t sees.
  void attend(const Tokens& readers, const Tokens& keys, const Tokens& values, const Heads& result, Range range,
              Sees sees) {
    const int64_t chunks = (range.end - range.begin + chunk - 1) / chunk;
    const int columns = padded_to(values.width, tile_columns);
    for (int64_t step = 0; step < chunks; ++step) {
      checkpoint_at_row(step * chunk);
      const int64_t first = range.begin + (sees == Sees::later ? chunks - 1 - step : step) * chunk;
      const int count = static_cast<int>(std::min<int64_t>(chunk, range.end - first));
      const int rows = padded_to(count, tile_rows);
      load(readers, false, first, count, readers_);
      load(keys, true, first, count, keys_);
      load(values, false, first, count, values_);
      expect(sees == Sees::later ? first - chunk : first + chunk, range,
             3 * chunk + padded_to(keys.width, tile_columns), {&readers, &keys, &values});
      score(rows, padded_to(count, tile_columns), readers.width, sees);
      product<T, false>(made_, rows, columns, by_row(fixed(scores_)), fixed(values_), count,
                        sees == Sees::later ? Depth::from_row : Depth::up_to_row, next_);
      if (step > 0) {
        product<T, true>(made_, rows, columns, by_row(fixed(readers_)), fixed(state_), readers.width, Depth::whole,
                         next_);
      }
      store(result, values.width, readers.weights, first, count);
      if (step + 1 < chunks) add_to_state(fixed(keys_), keys.width, fixed(values_), values.width, count, step == 0);
    }
  }

  // Scores of the keys that each token of the chunk sees. What is left of others is where no product reads it.
  void score(int rows, int columns, int depth, Sees sees) {
    constexpr int vector = Lanes<T>::width;
    turn(keys_.data, width_, columns, padded_to(depth, tile_columns), turned_.data, chunk);
    for (int row = 0; row < rows; row += tile_rows) {
      const int begin = sees == Sees::later ? row / vector * vector : 0;
      const int end = sees == Sees::later ? columns : std::min(columns, padded_to(row + tile_rows, vector));
      product<T, false>(scores_.at(row, begin), tile_rows, end - begin, by_row(fixed(readers_)).from_row(row),
                        fixed(turned_.at(0, begin)), depth, Depth::whole, next_);
      for (int i = 0; i < tile_rows; ++i) {
        T* const corner = scores_.at(row + i, row).data;
        if (sees == Sees::later) {
          std::fill(corner, corner + i, T(0));
        } else {
          std::fill(corner + i + 1, corner + tile_rows, T(0));
        }
      }
    }
  }

  void add_to_state(Rows<const T> keys, int key_width, Rows<const T> values, int value_width, int count, bool first) {
    const int rows = padded_to(key_width, tile_columns), columns = padded_to(value_width, tile_columns);
    const Left<T> turned{keys.data, 1, keys.step};
    if (first) {
      product<T, false>(state_, rows, columns, turned, values, count, Depth::whole, next_);
    } else {
      product<T, true>(state_, rows, columns, turned, values, count, Depth::whole, next_);
    }
  }

  // The next chunk, asked for while products make `rows` rows.
  void expect(int64_t first, Range range, int rows, std::initializer_list<const Tokens*> tokens) {
    next_.begin();
    if (first < range.begin || first >= range.end) return;
    const int count = static_cast<int>(std::min<int64_t>(chunk, range.end - first));
    for (const Tokens* one : tokens) next_.add(*one, place(one->heads, first), count);
    next_.divide(rows / tile_rows);
  }

  // Tokens where they lie, if a product can read them there, else in the tile.
  Rows<const T> look(const Tokens& from, bool scaled, int64_t first, int count, Rows<T> tile) const {
    const Array& array = from.heads.array;
    const bool plain = array.storage == storage_of<T> && array.stride[2] == 1;
    const bool whole = from.width % tile_columns == 0 && count % tile_rows == 0;
    if (plain && whole && !weights(from, scaled)) {
      return {static_cast<const T*>(array.data) + place(from.heads, first), array.stride[1]};
    }
    load(from, scaled, first, count, tile);
    return fixed(tile);
  }

  void load(const Tokens& from, bool scaled, int64_t first, int count, Rows<T> tile) const {
    const bool weighted = weights(from, scaled);
    const int padded = padded_to(from.width, tile_columns);
    for (int i = 0; i < count; ++i) {
      const T weight = weighted ? weight_of(from.weights, first + i) : T(1);
      T* const row = tile.at(i, 0).data;
      if (weight == T(0)) {
        std::fill_n(row, padded, T(0));
        continue;
      }
      read_row(from.heads.array, place(from.heads, first + i), from.width, scaled ? weight : T(1), row);
      // The head that was here before in another role may have been wider.
      for (int c = from.width; c < padded; ++c) row[c] = T(0);
    }
  }

  void store(const Heads& to, int width, const Array& weights, int64_t first, int count) const {
    for (int i = 0; i < count; ++i) {
      const T weight = weights.data ? weight_of(weights, first + i) : T(1);
      T* const row = made_.at(i, 0).data;
      if (weight == T(0)) std::fill_n(row, width, T(0));
      write_row(row, width, weight, to.array, place(to, first + i));
    }
  }

  // Weights of one kind alone are never 0, so that only a factor can ask for them.
  bool weights(const Tokens& tokens, bool scaled) const { return tokens.weights.data && (scaled || selects_); }

  T weight_of(const Array& weights, int64_t token) const {
    return read_number<T>(weights, task_ * weights.stride[0] + token * weights.stride[1]);
  }

  int64_t place(const Heads& heads, int64_t token) const {
    return task_ * heads.array.stride[0] + token * heads.array.stride[1] + head_ * heads.stride;
  }

  static Left<T> by_row(Rows<const T> tile) { return {tile.data, tile.step, 1}; }

  static Rows<const T> fixed(Rows<T> tile) { return {tile.data, tile.step}; }

  int width_;
  int64_t task_, head_;
  bool selects_;
  Rows<T> readers_, keys_, values_, made_, turned_, scores_, state_, state_turned_;
  Tokens q_, k_, v_, grad_;
  NextTokens next_;
};

template <class T>
void run(const Attention<T>& call, ParallelFor parallel) {
  const int width = padded_to(std::max(call.key_width, call.value_width), tile_columns);
  const auto one = [&](int64_t index) {
    const int64_t sequence = index % call.sequences, head = index / call.sequences % call.heads;
    const Range own{call.bounds ? call.bounds[sequence] : 0, call.bounds ? call.bounds[sequence + 1] : call.tokens};
    const Range keys = call.bounds ? own : Range{0, call.keys};
    auto* const scratch = static_cast<T*>(thread_scratch(Head<T>::scratch_numbers(width) * sizeof(T)));
    Head<T> worker(call, width, scratch, index / call.sequences / call.heads, head);
    if (call.backward) {
      worker.backward(call, own, keys);
    } else {
      worker.forward(call, own, keys);
    }
  };
  auto context = &one;
  parallel(
      call.tasks * call.heads * call.sequences,
      [](int64_t begin, int64_t end, void* given) {
        for (int64_t index = begin; index < end; ++index) {
          checkpoint();
          (**static_cast<decltype(context)*>(given))(index);
        }
      },
      &context);
}

}  // namespace

void attention(const Attention<float>& call, ParallelFor parallel) { run(call, parallel); }

void attention(const Attention<double>& call, ParallelFor parallel) { run(call, parallel); }

}  // namespace memformer::cpu::MEMFORMER_ISA
