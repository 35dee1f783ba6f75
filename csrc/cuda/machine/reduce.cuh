// Sums over all tasks, from what the blocks of a kernel have added up, to gradients in the caller's shapes.
//
// Kernels write one partial sum of each of K numbers for every unit of tasks (1024 / 2^k of them, by task index), in
// the compute type. `Totals` adds the units of 1024 tasks pairwise in that type, the blocks of 1024 in double: 16 of
// them to a group, one group a thread block, and the last thread block to finish adds up the groups. Every order is by
// task index, whoever works it out: neither the size of the grid nor the machine changes a bit, and no number is added
// atomically.
//
// A warp owns a run of rows (units or groups), its lanes the columns (the K numbers): reads are contiguous. Bytes: the
// partial sums once, 4 K / unit_tasks a task. Operations: K additions a unit and a group.

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

// The sum of `Count` rows from `first` on, pairwise; rows from `end` on count as zero.
template <int Count, class T>
MEMFORMER_DEVICE T pairwise_rows(const Partials<T>& partials, int64_t first, int column) {
  if constexpr (Count == 1) {
    return first < partials.units ? partials.unit(first)[column] : T(0);
  } else {
    return pairwise_rows<Count / 2>(partials, first, column) +
           pairwise_rows<Count / 2>(partials, first + Count / 2, column);
  }
}

// The sum of one of the K numbers over one block of 1024 tasks.
template <class T>
MEMFORMER_DEVICE T block_sum(const Partials<T>& partials, int64_t block, int column) {
  switch (block_tasks / partials.unit_tasks) {
    case 32: return pairwise_rows<32>(partials, 32 * block, column);
    case 16: return pairwise_rows<16>(partials, 16 * block, column);
    case 8: return pairwise_rows<8>(partials, 8 * block, column);
    case 4: return pairwise_rows<4>(partials, 4 * block, column);
    case 2: return pairwise_rows<2>(partials, 2 * block, column);
    default: return pairwise_rows<1>(partials, block, column);
  }
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
    const int64_t group = block.index(), first = group * group_blocks;
    add_rows<1>(block, partials.count, first, least(first + group_blocks, arguments.blocks),
                partials.groups + group * partials.count,
                [&](int64_t row, int column) { return static_cast<double>(block_sum(partials, row, column)); });
    if (!block.is_last(partials.arrivals)) return;
    add_rows<4>(block, partials.count, 0, block.count(), partials.sums,
                [&](int64_t row, int column) { return partials.groups[row * partials.count + column]; });
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

  static constexpr std::size_t shared_bytes = threads * sizeof(double);

 private:
  static MEMFORMER_DEVICE int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }

  // to[column] = the sum over rows [first, last): every warp a run of them, in order, `AtOnce` asked for at a time,
  // then the warps in order.
  template <int AtOnce, class Block, class Read>
  static MEMFORMER_DEVICE void add_rows(const Block& block, int count, int64_t first, int64_t last, double* to,
                                        Read read) {
    double* const warps = reinterpret_cast<double*>(block.shared());
    const int64_t run = (last - first + Block::warps - 1) / Block::warps;
    const int64_t begin = least(first + block.warp() * run, last), end = least(begin + run, last);
#pragma unroll 1
    for (int start = 0; start < count; start += warp_threads) {
      const int column = start + block.lane();
      double sum = 0.0;
      if (column < count) {
#pragma unroll AtOnce
        for (int64_t row = begin; row < end; ++row) sum += read(row, column);
      }
      warps[block.thread()] = sum;
      block.sync();
      if (block.warp() == 0 && column < count) {
        double total = warps[block.lane()];
#pragma unroll 1
        for (int warp = 1; warp < Block::warps; ++warp) total += warps[warp * warp_threads + block.lane()];
        to[column] = total;
      }
      block.sync();
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
