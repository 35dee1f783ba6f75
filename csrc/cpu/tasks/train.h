// What the pieces of the trainer know of each other: a group's tasks as numbers in lanes, and a network's sums over a
// part.

#pragma once

#include "core/extent.h"
#include "core/training.h"
#include "cpu/lanes/lanes.h"

namespace memformer::cpu::MEMFORMER_ISA {

// The tasks of one step of one model.
template <class T>
struct Draw {
  const TaskSource<T>& source;
  int model;
  int64_t number;  // of the draw

  // The model's own of factors (M, d, d), or null for none.
  const T* factor(const T* all) const {
    return all ? all + static_cast<int64_t>(model) * source.features * source.features : nullptr;
  }
};

// A task's numbers in cells: the context's Gram matrix divided by n, packed (statistics leave its last corner 0); then
// for every query its row of D, its target and, where it is an example of those behind it, its label; or w where the
// query is integrated out.
template <class T>
struct TaskCells {
  int width;
  int context;
  int queries;
  bool prefixes;

  explicit TaskCells(const TaskSource<T>& source)
      : width(source.features + 1), context(source.context), queries(source.queries), prefixes(source.prefixes) {}
  int query(int index) const { return core::packed_size(width) + index * (width + 1 + prefixes); }
  int solution() const { return core::packed_size(width); }
  int count() const { return queries ? query(queries) : solution() + width - 1; }

  // Contexts of a task, one after the other: that of all its queries, or one for each.
  int contexts() const { return prefixes ? queries : 1; }
  // Queries [first, last) are asked of a context.
  int first_query(int of) const { return prefixes ? of : 0; }
  int last_query(int of) const { return prefixes ? of + 1 : queries; }

  // The mean Gram matrix of a context becomes that of the next, which has the query as well.
  void join(int query_index, Lanes<T>* cells) const {
    const Lanes<T>* const row = cells + query(query_index);
    const T share = T(1) / static_cast<T>(context + query_index + 1);
    for (int r = 0; r < width; ++r) {
      const Lanes<T> left = r + 1 < width ? row[r] : row[width + 1];
      for (int c = 0; c <= r; ++c) {
        const Lanes<T> right = c + 1 < width ? row[c] : row[width + 1];
        Lanes<T>& mean = cells[core::packed(r, c)];
        mean += (left * right - mean) * share;
      }
    }
  }
};

// Fills the cells of a group of tasks, zeros in the lanes past them; `scratch` are as many vectors as `fill_scratch`
// says.
#define MEMFORMER_FILLS_OF(T)                                                                 \
  void fill_statistics(const Draw<T>& draw, Tasks tasks, Lanes<T>* cells, Lanes<T>* scratch); \
  int statistics_scratch(const TaskSource<T>& source);                                        \
  void fill_tokens(const Draw<T>& draw, Tasks tasks, Lanes<T>* cells, Lanes<T>* scratch);     \
  int token_scratch(const TaskSource<T>& source);
MEMFORMER_FILLS_OF(float)
MEMFORMER_FILLS_OF(double)
#undef MEMFORMER_FILLS_OF

template <class T>
inline int fill_scratch(const TaskSource<T>& source) {
  return source.sampler == Sampler::statistics ? statistics_scratch(source) : token_scratch(source);
}

template <class T>
inline void fill_tasks(const Draw<T>& draw, Tasks tasks, Lanes<T>* cells, Lanes<T>* scratch) {
  if (draw.source.sampler == Sampler::statistics) {
    fill_statistics(draw, tasks, cells, scratch);
  } else {
    fill_tokens(draw, tasks, cells, scratch);
  }
}

// One part of a step's tasks for one model: `partial` gets the gradients of the sum of squared errors with respect to
// the `dense` parameters, in their order, and that sum: `whole_sums` of them.
template <class T>
struct PartOfStep {
  const TrainedNetwork<T>& network;
  const T* dense;
  Draw<T> draw;
  int64_t part;
  T* partial;
};
void train_response(const PartOfStep<float>& part);
void train_response(const PartOfStep<double>& part);
void train_general(const PartOfStep<float>& part);
void train_general(const PartOfStep<double>& part);

}  // namespace memformer::cpu::MEMFORMER_ISA
