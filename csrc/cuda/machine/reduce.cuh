// Sums over all tasks, from what the blocks of a kernel have added up, to gradients in the caller's shapes.
//
// Kernels write one partial sum of each of K numbers for every unit of tasks (1024 / 2^k of them, by task index), in
// the compute type. `Totals` adds the units of 1024 tasks pairwise in that type, the blocks of 1024 in double: 16 of
// them to a group, 32 columns (of the K numbers) of a group to a thread block, and the last thread block to finish adds
// up the groups. Every order is by task index, whoever works it out: neither the size of the grid nor the machine
// changes a bit, and no number is added atomically.
//
// A warp owns a subtree of the units of 1024 tasks, an eighth where there are so many, its lanes the columns: reads are
// contiguous. Bytes: the partial sums once, 4 K / unit_tasks a task. Operations: K additions a unit and a group.

#pragma once

#include "cuda/machine/execution.cuh"
#include "cuda/machine/parameters.cuh"

namespace memformer::cuda {

constexpr int64_t block_tasks = 1024;
constexpr int64_t group_blocks = 16;

// Where partial sums lie in a call's scratch memory.
template <class T>
struct Partials {
  unsigned* arrivals;  // zeroed by the kernel that writes the cells
  double* sums;        // [count]
  double* groups;      // [group][count]
  T* cells;            // [unit][count]
  int64_t units;
  int unit_tasks;
  int count;  // K

  MEMFORMER_DEVICE T* unit(int64_t index) const { return cells + index * count; }
};

inline int64_t divided_up(int64_t value, int64_t by) { return (value + by - 1) / by; }

inline int64_t total_groups(int64_t tasks) { return divided_up(tasks, block_tasks * group_blocks); }

// Thread blocks of `Totals`: those of a group lie together, 32 columns each.
MEMFORMER_INLINE int column_blocks(int count) { return (count + warp_threads - 1) / warp_threads; }

// The sums of a call: its parameters' dense entries, one parameter after another, then the squared error.
inline int64_t sum_count(const Parameters& parameters) {
  return parameters.q.count() + parameters.p.count() + parameters.gamma.count() + parameters.beta.count() + 1;
}

template <class T>
int64_t partials_bytes(int64_t tasks, int unit_tasks, int64_t count) {
  const int64_t doubles = (1 + total_groups(tasks)) * count;
  return divided_up(256 + 8 * doubles + divided_up(tasks, unit_tasks) * count * static_cast<int64_t>(sizeof(T)), 256) *
         256;
}

template <class T>
Partials<T> partials_in(void* scratch, int64_t tasks, int unit_tasks, int64_t count) {
  Partials<T> partials;
  partials.arrivals = static_cast<unsigned*>(scratch);
  partials.sums = reinterpret_cast<double*>(static_cast<char*>(scratch) + 256);
  partials.groups = partials.sums + count;
  partials.cells = reinterpret_cast<T*>(partials.groups + total_groups(tasks) * count);
  partials.units = divided_up(tasks, unit_tasks);
  partials.unit_tasks = unit_tasks;
  partials.count = static_cast<int>(count);
  return partials;
}

// The sum of `Count` numbers `step` apart, pairwise; those from `left` on count as zero, unless all are there.
template <int Count, bool All, class T>
MEMFORMER_DEVICE T pairwise(const T* from, int64_t step, int64_t left) {
  if constexpr (Count == 1) {
    return All || left > 0 ? *from : T(0);
  } else {
    return pairwise<Count / 2, All>(from, step, left) +
           pairwise<Count / 2, All>(from + Count / 2 * step, step, left - Count / 2);
  }
}

// The sum of `Count` rows from `first` on, pairwise; rows behind the last count as zero.
template <int Count, class T>
MEMFORMER_DEVICE T pairwise_rows(const Partials<T>& partials, int64_t first, int column) {
  const T* const from = partials.unit(first) + column;
  const int64_t left = partials.units - first;
  return left >= Count ? pairwise<Count, true>(from, partials.count, left)
                       : pairwise<Count, false>(from, partials.count, left);
}

template <class T>
struct Totals {
  struct Arguments {
    Partials<T> partials;
    Parameters parameters;
    double loss_scale;  // squared error to loss
    int64_t blocks;     // of 1024 tasks
  };
  static constexpr int threads = 256;
  static constexpr int blocks_of_multiprocessor = 2;

  template <class Block>
  static MEMFORMER_DEVICE void run(const Arguments& arguments, const Block& block) {
    const Partials<T>& partials = arguments.partials;
    const int64_t in_group = column_blocks(partials.count);
    const int64_t group = block.index() / in_group;
    const int column = static_cast<int>(block.index() % in_group) * warp_threads + block.lane();
    add_blocks(block, arguments, group, column);
    if (!block.is_last(partials.arrivals)) return;
    for (int k = block.thread(); k < partials.count; k += Block::threads) {
      double sum = 0.0;
#pragma unroll 8
      for (int64_t row = 0; row < block.count() / in_group; ++row) sum += partials.groups[row * partials.count + k];
      partials.sums[k] = sum;
    }
    block.sync();
    const double* sums = partials.sums;
    sums = write_grad(block, arguments.parameters.q, sums);
    sums = write_grad(block, arguments.parameters.p, sums);
    sums = write_grad(block, arguments.parameters.gamma, sums);
    sums = write_grad(block, arguments.parameters.beta, sums);
    if (arguments.parameters.loss && block.thread() == 0) {
      *static_cast<T*>(arguments.parameters.loss) = static_cast<T>(*sums * arguments.loss_scale);
    }
  }

  static constexpr int parts = threads / warp_threads;  // of a block of 1024 tasks, at most
  static constexpr std::size_t shared_bytes = group_blocks * warp_threads * (sizeof(double) + parts * sizeof(T));

 private:
  // groups[group][column] = the sum over the group's blocks of 1024 tasks.
  template <class Block>
  static MEMFORMER_DEVICE void add_blocks(const Block& block, const Arguments& arguments, int64_t group, int column) {
    const Partials<T>& partials = arguments.partials;
    const int64_t first = group * group_blocks;
    const int rows =
        static_cast<int>(first + group_blocks < arguments.blocks ? group_blocks : arguments.blocks - first);
    const int units = static_cast<int>(block_tasks / partials.unit_tasks), used = units < parts ? units : parts;
    double* const row_sums = reinterpret_cast<double*>(block.shared()) + block.lane();
    T* const part_sums =
        reinterpret_cast<T*>(block.shared() + group_blocks * warp_threads * sizeof(double)) + block.lane();
#pragma unroll 1
    for (int item = block.warp(); item < rows * used; item += Block::warps) {
      const int64_t unit = (first + item / used) * units + item % used * (units / used);
      part_sums[item * warp_threads] = column < partials.count ? part_sum(partials, units / used, unit, column) : T(0);
    }
    block.sync();
#pragma unroll 1
    for (int row = block.warp(); row < rows; row += Block::warps) {
      T part[parts];
      MEMFORMER_UNROLL
      for (int k = 0; k < parts; ++k) part[k] = k < used ? part_sums[(row * used + k) * warp_threads] : T(0);
      MEMFORMER_UNROLL
      for (int apart = 1; apart < parts; apart *= 2) {
        MEMFORMER_UNROLL
        for (int k = 0; k < parts; k += 2 * apart) part[k] += part[k + apart];
      }
      row_sums[row * warp_threads] = static_cast<double>(part[0]);
    }
    block.sync();
    if (block.warp() > 0 || column >= partials.count) return;
    double sum = 0.0;
#pragma unroll 4
    for (int row = 0; row < rows; ++row) sum += row_sums[row * warp_threads];
    partials.groups[group * partials.count + column] = sum;
  }

  // The sum of one column over `units` units from `first` on, pairwise.
  static MEMFORMER_DEVICE T part_sum(const Partials<T>& partials, int units, int64_t first, int column) {
    switch (units) {
      case 32: return pairwise_rows<32>(partials, first, column);
      case 16: return pairwise_rows<16>(partials, first, column);
      case 8: return pairwise_rows<8>(partials, first, column);
      case 4: return pairwise_rows<4>(partials, first, column);
      case 2: return pairwise_rows<2>(partials, first, column);
      default: return pairwise_rows<1>(partials, first, column);
    }
  }

  // The gradient in the caller's shape; returns where the next parameter's sums start.
  template <class Block>
  static MEMFORMER_CALL const double* write_grad(const Block& block, const Parameter& parameter, const double* sums) {
    const int count = static_cast<int>(parameter.grad_count());
#pragma unroll 1
    for (int k = block.thread(); k < count; k += Block::threads) {
      write_number(parameter.grad, parameter.grad_storage, k, parameter_grad(parameter, sums, k));
    }
    return sums + parameter.count();
  }
};

}  // namespace memformer::cuda
