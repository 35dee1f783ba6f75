// Tasks with tokens on the CPU, drawn or of a given set, reduced to their Gram matrices: one task per lane.
//
// Tokens exist for a block of at most 32 rows at a time. Bytes per task: none where drawn, else its tokens. Operations:
// n D (D + 1) / 2 multiply-adds, and n d normals where drawn.

#include <cstring>

#include "core/bartlett.h"
#include "cpu/tasks/context_gram.h"
#include "cpu/tasks/run_network.h"
#include "cpu/tasks/stream.h"

namespace memformer::cpu::MEMFORMER_ISA {
namespace {

// Scratch: the rows of a block, then what they are made from, then sums that wait.
template <class T>
struct TokenScratch {
  int rows;
  int made_from;
  int waiting;

  explicit TokenScratch(const TaskSource<T>& source) {
    const int width = source.features + 1;
    rows = core::gram_block * width;
    made_from = source.sampler == Sampler::given
                    ? rows
                    : normal_cells(core::gram_block * source.features) + normal_cells(core::gram_block);
    waiting = waiting_cells(source.context, width);
  }
  int count() const { return rows + made_from + waiting; }
};

// Gaussian tokens, by blocks of rows.
template <class T, class Extent>
class DrawnTokens {
  using S = Lanes<T>;

 public:
  DrawnTokens(const Draw<T>& draw, Extent d, Tasks tasks, S* rows, S* buffer)
      : source_(draw.source),
        d_(d),
        stream_(stream_of(draw, tasks)),
        noise_(noise_of(source_, stream_)),
        covariate_factor_(draw.factor(source_.covariate_factor)),
        rows_(rows),
        buffer_(buffer) {
    core::transform(d_, draw.factor(source_.weight_factor), normals(stream_, 0, d_, buffer_), w_);
  }

  // Rows [first, first + count) of the context: features, and w.x with noise.
  const S* context(int first, int count) {
    const int d = d_;
    const S* const drawn = normals(stream_, d + static_cast<int64_t>(first) * d, count * d, buffer_);
    for (int i = 0; i < count; ++i) make(drawn + i * d, rows_ + i * (d + 1));
    if (source_.noisy()) {
      const S* const noise = normals(stream_, d + static_cast<int64_t>(source_.tokens) * d + first, count, buffer_);
      for (int i = 0; i < count; ++i) rows_[i * (d + 1) + d] += noise[i] * noise_;
    }
    return rows_;
  }

  // A query's features, a response of 0, its target w.x and, where it is asked for, its label with noise.
  void query(int index, S* row) {
    const int d = d_, place = source_.context + index;
    make(normals(stream_, d + static_cast<int64_t>(place) * d, d, buffer_), row);
    row[d + 1] = row[d];
    row[d] = S(T(0));
    if (!source_.prefixes) return;
    row[d + 2] = row[d + 1];
    if (!source_.noisy()) return;
    row[d + 2] += *normals(stream_, d + static_cast<int64_t>(source_.tokens) * d + place, 1, buffer_) * noise_;
  }

  const S* solution() const { return w_; }

 private:
  void make(const S* drawn, S* row) const {
    const int d = d_;
    core::transform(d_, covariate_factor_, drawn, row);
    S response = row[0] * w_[0];
    MEMFORMER_UNROLL
    for (int c = 1; c < d; ++c) response += row[c] * w_[c];
    row[d] = response;
  }

  const TaskSource<T>& source_;
  Extent d_;
  core::Stream<S> stream_;
  S noise_;
  const T* covariate_factor_;
  S* rows_;
  S* buffer_;
  S w_[Extent::limit];
};

// Tokens of a given set: the batch itself, or the tasks that an index names.
template <class T>
class GivenTokens {
  using S = Lanes<T>;

 public:
  GivenTokens(const Draw<T>& draw, Tasks tasks, S* rows, S* buffer)
      : source_(draw.source), tasks_(tasks), rows_(rows), gathered_(reinterpret_cast<T*>(buffer)) {
    const int width = source_.features + 1;
    z_.data = const_cast<T*>(source_.z);
    z_.storage = target_.storage = storage_of<T>;
    z_.stride[0] = static_cast<int64_t>(source_.tokens) * width;
    z_.stride[1] = width;
    z_.stride[2] = 1;
    target_.data = const_cast<T*>(source_.target);
    target_.stride[0] = source_.queries;
    target_.stride[1] = 1;
    if (source_.index) {
      // A draw has all models' tasks, one model after the other.
      index_ = source_.index + draw.model * source_.tasks + tasks.first +
               (draw.number - source_.first_draw) * draw.source.models * source_.tasks;
    }
  }

  const S* context(int first, int count) {
    load(first, count, rows_);
    return rows_;
  }

  void query(int index, S* row) {
    const int width = source_.features + 1;
    load(source_.tokens - source_.queries + index, 1, row);
    if (source_.prefixes) {
      row[width + 1] = row[width - 1];
      row[width - 1] = S(T(0));
    }
    if (!index_) {
      row[width] = load_entry<T>(target_, tasks_, index);
      return;
    }
    T numbers[S::width] = {};
    for (int lane = 0; lane < tasks_.active; ++lane) {
      numbers[lane] = source_.target[index_[lane] * source_.queries + index];
    }
    row[width] = S::load(numbers);
  }

 private:
  void load(int first, int count, S* to) {
    const int width = source_.features + 1, numbers = count * width;
    if (!index_) {
      load_rows(z_, tasks_, first, count, width, to);
      return;
    }
    for (int lane = 0; lane < tasks_.active; ++lane) {
      const T* const from = source_.z + index_[lane] * z_.stride[0] + first * z_.stride[1];
      std::memcpy(gathered_ + lane * numbers, from, static_cast<std::size_t>(numbers) * sizeof(T));
    }
    Array together = z_;
    together.data = gathered_;
    together.stride[0] = numbers;
    load_rows(together, Tasks{0, tasks_.active}, 0, count, width, to);
  }

  const TaskSource<T>& source_;
  Tasks tasks_;
  Array z_, target_;
  const int64_t* index_ = nullptr;
  S* rows_;
  T* gathered_;
};

template <class T, class Extent, class Tokens>
void reduce(const TaskSource<T>& source, Extent d, Tokens& tokens, Lanes<T>* cells, Lanes<T>* waiting) {
  const TaskCells<T> at(source);
  const auto width = core::successor(d);
  sum_context(
      source.context, width, [&](int first, int count) { return tokens.context(first, count); }, waiting, cells);
  const T share = T(1) / static_cast<T>(source.context);
  for (int k = 0; k < core::packed_size(width); ++k) cells[k] = cells[k] * share;
  for (int query = 0; query < source.queries; ++query) {
    checkpoint_at_row(query);
    tokens.query(query, cells + at.query(query));
  }
}

template <class T>
void fill(const Draw<T>& draw, Tasks tasks, Lanes<T>* cells, Lanes<T>* scratch) {
  const TaskSource<T>& source = draw.source;
  const TokenScratch<T> sizes(source);
  const TaskCells<T> at(source);
  Lanes<T>* const buffer = scratch + sizes.rows;
  Lanes<T>* const waiting = buffer + sizes.made_from;
  with_extent<T>(source.features, [&](auto d) {
    if (source.sampler == Sampler::given) {
      GivenTokens<T> tokens(draw, tasks, scratch, buffer);
      reduce(source, d, tokens, cells, waiting);
      return;
    }
    DrawnTokens<T, decltype(d)> tokens(draw, d, tasks, scratch, buffer);
    reduce(source, d, tokens, cells, waiting);
    for (int c = 0; !source.queries && c < d; ++c) cells[at.solution() + c] = tokens.solution()[c];
    clear_unused(tasks, at.count(), cells);
  });
}

}  // namespace

void fill_tokens(const Draw<float>& draw, Tasks tasks, Lanes<float>* cells, Lanes<float>* scratch) {
  fill(draw, tasks, cells, scratch);
}

void fill_tokens(const Draw<double>& draw, Tasks tasks, Lanes<double>* cells, Lanes<double>* scratch) {
  fill(draw, tasks, cells, scratch);
}

int token_scratch(const TaskSource<float>& source) { return TokenScratch<float>(source).count(); }

int token_scratch(const TaskSource<double>& source) { return TokenScratch<double>(source).count(); }

}  // namespace memformer::cpu::MEMFORMER_ISA
