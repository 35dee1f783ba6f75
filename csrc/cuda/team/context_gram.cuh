// Context Gram matrices on a GPU, any length of context: a team of 4 lanes (D <= 6) or 16 (D <= 20) to a task, tokens
// streamed once.
//
// Who owns what: a warp, 8 or 2 tasks and a run of rows of their contexts; team.cuh for the lanes. Where there are
// too few tasks to fill a machine, a context is split into runs of 32 * 2^k rows, whose sums a second kernel adds
// pairwise: the order is the one of an unsplit context. Bytes per task: its context and D^2 numbers written;
// backward: the context read, and N D numbers written. Operations per task: n D^2 multiply-adds, either way.

#pragma once

#include "cuda/team/team_gram.cuh"
#include "cuda/team/team_plan.cuh"

namespace memformer::cuda {

template <class T>
struct GramRuns {
  Gram<T> gram;
  int run_rows;
  int runs;
  int taken;   // tasks of a warp
  T* partial;  // [task][run][packed], or null where a context is one run
};

// Cells of a task: one packed matrix, a block of rows, and behind it the sums that wait or the gradients of the rows.
template <class T>
int64_t gram_cells_of(const GramRuns<T>& call) {
  const int64_t width = call.gram.width, rows = smaller(call.gram.context, core::gram_block) * width;
  const int run = smaller(call.run_rows, call.gram.context);
  const int64_t packed = packed_cells(call.gram.width);
  return packed + rows + (call.gram.backward ? rows : waiting_levels(run) * packed);
}

template <class T, int Tile, int Grid>
struct ContextGram {
  using Arguments = GramRuns<T>;
  static constexpr int threads = warp_threads;
  static constexpr int blocks_of_multiprocessor = sizeof(T) == 8 ? 8 : Grid == 4 ? 10 : 16;
  static constexpr int team_tasks = warp_threads / (Grid * Grid);

  template <class Block>
  static MEMFORMER_DEVICE void run(const Arguments& arguments, const Block& block) {
    using Team = Spread<Block, Tile, Grid>;
    using TaskCells = Cells<T, Team::tasks>;
    const Gram<T>& gram = arguments.gram;
    const Team team{block, gram.width};
    const TaskCells matrix{reinterpret_cast<T*>(block.shared()) + team.task()};
    const TaskCells space = matrix.at(static_cast<int>(packed_cells(gram.width)));
    const int64_t work = (gram.tasks + arguments.taken - 1) / arguments.taken * arguments.runs;
    for (int64_t item = block.index(); item < work; item += block.count()) {
      const int64_t index = item / arguments.runs * arguments.taken + team.task();
      const int which = static_cast<int>(item % arguments.runs);
      const Task task{index, index < gram.tasks && team.task() < arguments.taken};
      const T count = labelled_count<T>(gram.lengths, gram.context, task);
      const core::Labelled<T> labelled{gram.context, gram.lengths != nullptr, count, T(1)};
      const int begin = which * arguments.run_rows, end = smaller(begin + arguments.run_rows, gram.context);
      if (gram.backward) {
        write_row_grads(gram, team, task, labelled, begin, end, matrix, space);
        if (which + 1 == arguments.runs) {
          store_zeros<T>(team, gram.grad_z, task, gram.context, gram.tokens - gram.context, gram.width);
        }
        continue;
      }
      sum_context(team, gram.z, task, labelled, begin, end, space, matrix);
      if (arguments.partial) {
        const int entries = core::packed_size(gram.width);
        T* const to = arguments.partial + (index * arguments.runs + which) * entries;
        for (int k = team.member(); task.active && k < entries; k += Team::members) to[k] = matrix[k];
      } else {
        write_matrix(gram, team, task, matrix);
      }
      team.sync();
    }
  }

 private:
  template <class Team>
  static MEMFORMER_DEVICE void write_matrix(const Gram<T>& gram, const Team& team, Task task,
                                            Cells<T, Team::tasks> matrix) {
    const Array& to = gram.matrix;
    each_number(team, gram.width, gram.width, [&](int r, int c, int) {
      if (!task.active) return;
      write_number(to, task.index * to.stride[0] + r * to.stride[1] + c * to.stride[2], matrix[core::packed(r, c)]);
    });
  }

  // (dG + dG^T) z_i for the labelled rows in [begin, end), zeros for the others.
  template <class Team>
  static MEMFORMER_DEVICE void write_row_grads(const Gram<T>& gram, const Team& team, Task task,
                                               const core::Labelled<T>& labelled, int begin, int end,
                                               Cells<T, Team::tasks> matrix, Cells<T, Team::tasks> tile) {
    const int width = team;
    const auto grads = tile.at(smaller(gram.context, core::gram_block) * width);
    const int64_t start = task.index * gram.matrix.stride[0];
    const auto entry = [&](int r, int c) {
      return read_number<T>(gram.matrix, start + r * gram.matrix.stride[1] + c * gram.matrix.stride[2]);
    };
    each_number(team, width, width, [&](int r, int c, int) {
      if (c <= r) matrix[core::packed(r, c)] = task.active ? entry(r, c) + entry(c, r) : T(0);
    });
    team.sync();
    for (int first = begin; first < end; first += core::gram_block) {
      const int count = smaller(end - first, core::gram_block);
      load_rows(team, gram.z, task, first, count, width, tile);
      product<T>(count, team, team, core::Matrix{grads, width}, core::Matrix{tile, width}, core::Symmetric{matrix});
      each_entry(count, team, [&](int i, int, int k) { grads[k] = labelled.select(first + i, grads[k]); });
      store_rows(team, grads, gram.grad_z, task, first, count, width);
    }
  }
};

// Adds the runs of every context pairwise, in place, and writes the matrices: a thread to a task and an entry.
template <class T>
struct ContextRuns {
  using Arguments = GramRuns<T>;
  static constexpr int threads = 128;
  static constexpr int blocks_of_multiprocessor = 8;
  static constexpr int batch = 8;  // pairs whose numbers are asked for before any of them is used

  template <class Block>
  static MEMFORMER_DEVICE void run(const Arguments& arguments, const Block& block) {
    const Gram<T>& gram = arguments.gram;
    const Array& to = gram.matrix;
    const int width = gram.width, square = width * width, entries = core::packed_size(width);
    const int64_t step = block.count() * Block::threads;
    for (int64_t k = block.index() * Block::threads + block.thread(); k < gram.tasks * square; k += step) {
      const int64_t task = k / square;
      const int r = static_cast<int>(k % square) / width, c = static_cast<int>(k % square) % width;
      if (c > r) continue;
      T* const column = arguments.partial + task * arguments.runs * entries + core::packed(r, c);
      for (int64_t apart = 1; apart < arguments.runs; apart *= 2) {
        for (int64_t first = 0; first + apart < arguments.runs; first += 2 * batch * apart) {
          add_pairs(column, entries, first, apart, arguments.runs);
        }
      }
      write_number(to, task * to.stride[0] + r * to.stride[1] + c * to.stride[2], *column);
      if (c < r) write_number(to, task * to.stride[0] + c * to.stride[1] + r * to.stride[2], *column);
    }
  }

 private:
  // Adds run first + apart to run `first`, and so on for `batch` pairs 2 * apart apart.
  static MEMFORMER_DEVICE void add_pairs(T* column, int64_t entries, int64_t first, int64_t apart, int64_t runs) {
    T sum[batch];
    MEMFORMER_UNROLL
    for (int k = 0; k < batch; ++k) {
      const int64_t run = first + 2 * k * apart;
      sum[k] = run + apart < runs ? column[run * entries] + column[(run + apart) * entries] : T(0);
    }
    MEMFORMER_UNROLL
    for (int k = 0; k < batch; ++k) {
      const int64_t run = first + 2 * k * apart;
      if (run + apart < runs) column[run * entries] = sum[k];
    }
  }
};

// Runs of rows: halved until there are enough of them to fill a machine, but no shorter than 128. Of few tasks a warp
// takes half of what it might: all of it would leave multiprocessors of an H200 without a warp.
template <class T>
GramRuns<T> gram_runs(const Gram<T>& gram, int team_tasks) {
  constexpr int64_t enough = 2048;
  const int taken = team_tasks > 2 && gram.tasks < int64_t{132} * team_tasks ? team_tasks / 2 : team_tasks;
  GramRuns<T> made{gram, core::gram_block, 1, taken, nullptr};
  while (made.run_rows < gram.context) made.run_rows *= 2;
  while (divided_up(gram.tasks, taken) * made.runs < enough && made.run_rows > 4 * core::gram_block) {
    made.run_rows /= 2;
    made.runs = static_cast<int>(divided_up(gram.context, made.run_rows));
  }
  return made;
}

template <class T, class Body>
int with_gram_team(const Gram<T>& gram, Body body) {
  if constexpr (small_teams<T>) {
    if (gram.width <= 6) return body(KernelTag<ContextGram<T, 3, 2>>{});
  }
  return body(KernelTag<ContextGram<T, 5, 4>>{});
}

// Bytes of scratch.
template <class T>
int64_t gram_bytes(const Gram<T>& gram) {
  int64_t bytes = 0;
  with_gram_team(gram, [&](auto tag) {
    const GramRuns<T> call = gram_runs(gram, decltype(tag)::type::team_tasks);
    if (call.runs > 1 && !gram.backward) {
      bytes = rounded_up(gram.tasks * call.runs * packed_cells(gram.width) * static_cast<int64_t>(sizeof(T)));
    }
    return 0;
  });
  return bytes;
}

template <class T, class Machine>
int run_context_gram(const Gram<T>& gram, void* scratch, const Machine& machine) {
  if (gram.tasks == 0) return 0;
  return with_gram_team(gram, [&](auto tag) {
    using Kernel = typename decltype(tag)::type;
    GramRuns<T> call = gram_runs(gram, Kernel::team_tasks);
    const bool split = call.runs > 1 && !gram.backward;
    if (split) call.partial = static_cast<T*>(scratch);
    const int64_t shared = gram_cells_of(call) * Kernel::team_tasks * static_cast<int64_t>(sizeof(T));
    const int error = machine.template run<Kernel>(call, divided_up(gram.tasks, call.taken) * call.runs, shared);
    if (error || !split) return error;
    const int64_t threads = gram.tasks * gram.width * gram.width;
    return machine.template run<ContextRuns<T>>(call, divided_up(threads, ContextRuns<T>::threads), 0);
  });
}

}  // namespace memformer::cuda
