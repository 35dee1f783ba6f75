// Tasks to threads, and sums over tasks in an order that no number of threads changes.
//
// A part is 16 vectors of tasks, worked through by one thread, one after the other; its sums are float (or double)
// vectors, added up over those 16 and then over their lanes, pairwise. Parts make a block of 1024 tasks, within which
// they are added pairwise; blocks are added in double, in order.

#pragma once

#include <cstdint>
#include <cstring>

#include "core/calls.h"
#include "cpu/lanes/lanes.h"
#include "cpu/scratch.h"
#include "cpu/threads.h"

namespace memformer::cpu::MEMFORMER_ISA {

constexpr int64_t block_tasks = 1024;
template <class T>
constexpr int64_t part_tasks = 16 * Lanes<T>::width;
template <class T>
constexpr int64_t block_parts = block_tasks / part_tasks<T>;

// Partial sums kept at a time, in bytes: small beside any batch that has more of them.
constexpr int64_t partial_bytes = 1 << 20;

// Cells of a group of tasks that works long enough on them for a checkpoint of its own.
constexpr std::size_t long_work = 1 << 12;

// to[k] = the sum of the lanes of sums[k], pairwise, for a `count` that is a multiple of quarter<T>: a transpose brings
// the lanes of that many sums under each other.
template <class T>
inline void sums_of_lanes(const Lanes<T>* sums, int count, T* to) {
  using Part = typename VectorsOf<T>::Quarter;
  for (int k = 0; k < count; k += quarter<T>) {
    typename Lanes<T>::Vector rows[quarter<T>];
    for (int r = 0; r < quarter<T>; ++r) rows[r] = sums[k + r].v;
    transpose_quarters<T>(rows);
    for (int half = quarter<T> / 2; half > 0; half /= 2) {
      for (int r = 0; r < half; ++r) rows[r] += rows[r + half];
    }
    Part parts[quarters<T>];
    std::memcpy(parts, rows, sizeof parts);
    for (int half = quarters<T> / 2; half > 0; half /= 2) {
      for (int r = 0; r < half; ++r) parts[r] += parts[r + half];
    }
    std::memcpy(to + k, parts, sizeof(Part));
  }
}

// A whole number of `quarter<T>` sums, at least `sums` of them.
template <class T>
constexpr int whole_sums(int sums) {
  return (sums + quarter<T> - 1) / quarter<T> * quarter<T>;
}

// The sums of one part, `sums` of them a whole number of `quarter<T>`.
template <class T, class Group>
inline void run_part(Group& group, int64_t tasks, int64_t part, int sums, std::size_t scratch_cells, T* partial) {
  using S = Lanes<T>;
  S* const vectors = static_cast<S*>(thread_scratch((sums + scratch_cells) * sizeof(S)));
  for (int k = 0; k < sums; ++k) vectors[k] = S(0);
  const int64_t first = part * part_tasks<T>;
  const int64_t last = first + part_tasks<T> < tasks ? first + part_tasks<T> : tasks;
  for (int64_t task = first; task < last; task += S::width) {
    const int64_t left = last - task;
    group(Tasks{task, static_cast<int>(left < S::width ? left : S::width)}, vectors, vectors + sums);
    if (scratch_cells >= long_work) checkpoint();
  }
  sums_of_lanes(vectors, sums, partial);
}

// The first of a block's `parts` partial sums becomes the sum of all, pairwise.
template <class T>
inline void sum_parts(T* partial, int64_t parts, int sums) {
  for (int64_t step = 1; step < parts; step *= 2) {
    for (int64_t part = 0; part + step < parts; part += 2 * step) {
      for (int k = 0; k < sums; ++k) partial[part * sums + k] += partial[(part + step) * sums + k];
    }
  }
}

template <class T, class Group>
struct PartsJob {
  const Group& prototype;
  int64_t tasks;
  int64_t first_part;
  int sums;
  std::size_t scratch_cells;
  T* partial;

  static void run(int64_t begin, int64_t end, void* context) {
    auto& job = *static_cast<PartsJob*>(context);
    Group group(job.prototype);
    for (int64_t part = begin; part < end; ++part) {
      if (part > begin) checkpoint();
      run_part<T>(group, job.tasks, job.first_part + part, job.sums, job.scratch_cells, job.partial + part * job.sums);
    }
  }
};

// Runs group(tasks, sums, scratch) over all tasks, each thread on its own copy of the group; `totals` gets the sums
// over tasks of the `sums` vectors that every call adds to. `scratch` are `scratch_cells` vectors to use at will.
template <class T, class Group>
inline void over_parts(int64_t tasks, int sums, std::size_t scratch_cells, double* totals, ParallelFor parallel,
                       const Group& group) {
  const int64_t parts = (tasks + part_tasks<T> - 1) / part_tasks<T>;
  const int wanted = sums;
  sums = whole_sums<T>(sums);
  const int64_t fit = sums ? partial_bytes / (sums * static_cast<int64_t>(sizeof(T))) : parts;
  const int64_t least = 4 * block_parts<T>;
  const int64_t at_once = (fit < least ? least : fit) / block_parts<T> * block_parts<T>;
  for (int k = 0; k < wanted; ++k) totals[k] = 0.0;
  for (int64_t start = 0; start < parts; start += at_once) {
    const int64_t count = parts - start < at_once ? parts - start : at_once;
    T* const partial = sums ? static_cast<T*>(call_scratch(count * sums * sizeof(T))) : nullptr;
    PartsJob<T, Group> job{group, tasks, start, sums, scratch_cells, partial};
    if (count == 1) {
      PartsJob<T, Group>::run(0, 1, &job);
    } else {
      parallel(count, &PartsJob<T, Group>::run, &job);
    }
    for (int64_t block = 0; sums && block < count; block += block_parts<T>) {
      T* const first = partial + block * sums;
      sum_parts(first, count - block < block_parts<T> ? count - block : block_parts<T>, sums);
      for (int k = 0; k < wanted; ++k) totals[k] += static_cast<double>(first[k]);
    }
  }
}

}  // namespace memformer::cpu::MEMFORMER_ISA
