// Response-only networks in token space on a GPU: a team of 4 lanes (d = 5), 8 (d <= 8) or 16 to a task, its tokens
// on the chip for all layers.
//
// Who owns what: a lane has rows member, member + T, ... of its task (T lanes a task), whose states, registers and
// gradients no other lane touches; vectors of d numbers are the sums over a team, by shuffles, and are kept by all of
// it. Sums over tasks belong to lanes too, which read what they add up from the cells of all the warp's tasks: row i
// of a gamma or beta with a token axis is lane i % 32's, entry e of an A is lane e % 32's. Cells lie as [cell][task],
// 32 / T tasks: rows of d + 1 numbers (one more where d + 1 is even) keep the lanes of a warp in different banks.
// Bytes per task: its tokens, read once, and whatever result or token gradient is asked for. Workload W with a full
// gamma: 7 x 21 + 15 x 21 + 20 + 27 numbers of 4 bytes a task, 2 KB; operations: those of core/response_tokens.h, and
// 21 multiply-adds for each [l, j] of gamma.

#pragma once

#include "core/response_tokens.h"
#include "cuda/team/team_plan.cuh"

namespace memformer::cuda {

// T lanes of a warp with one task; lane = member * tasks + task.
template <class Block, int T>
struct RowTeam {
  static constexpr bool alone = false;
  static constexpr int members = T;
  static constexpr int step = T;
  static constexpr int tasks = warp_threads / T;

  Block block;

  MEMFORMER_DEVICE int task() const { return block.lane() % tasks; }
  MEMFORMER_DEVICE int member() const { return block.lane() / tasks; }
  MEMFORMER_DEVICE void sync() const { block.sync_warp(); }
  MEMFORMER_DEVICE int from(int row) const { return row + ((member() - row) & (T - 1)); }
  static MEMFORMER_INLINE int pitch(int width) { return width | 1; }

  template <class S, class Extent>
  MEMFORMER_DEVICE void sum(S* values, Extent extent) const {
    MEMFORMER_EACH(c, extent) {
      MEMFORMER_UNROLL
      for (int mask = tasks; mask < warp_threads; mask *= 2) values[c] += block.shuffle_xor(values[c], mask);
    }
  }
};

// Sums over a warp's tasks of what the core's backward makes; `vector` are d cells a task to pass a vector on.
template <class T, class Team>
struct RowSums {
  using TaskCells = Cells<T, Team::tasks>;
  const Team& team;
  T* a;
  T* gamma;
  T* beta;
  TaskCells vector;

  template <class Extent>
  MEMFORMER_DEVICE void outer_product(int place, Extent d, const T* left, TaskCells right) const {
    if (team.member() == 0) {
      MEMFORMER_EACH(c, d) vector[c] = left[c];
    }
    team.sync();
    const int width = d;
    const T* const lefts = vector.data - team.task();
    const T* const rights = right.data - team.task();
    for (int e = team.block.lane(); e < width * width; e += warp_threads) {
      a[place + e] += over_tasks(lefts + e / width * Team::tasks, rights + e % width * Team::tasks);
    }
    team.sync();
  }

  MEMFORMER_DEVICE void gamma_products(int at, int step, TaskCells left, TaskCells right, int first, int last) const {
    products(gamma + at, step, left, right, first, last);
  }
  MEMFORMER_DEVICE void beta_products(int at, int step, TaskCells left, TaskCells right, int first, int last) const {
    products(beta + at, step, left, right, first, last);
  }

 private:
  static MEMFORMER_DEVICE T over_tasks(const T* left, const T* right) {
    T sum = left[0] * right[0];
    MEMFORMER_UNROLL
    for (int t = 1; t < Team::tasks; ++t) sum += left[t] * right[t];
    return sum;
  }

  MEMFORMER_DEVICE void products(T* to, int step, TaskCells left, TaskCells right, int first, int last) const {
    if (step) {
      team.sync();
      const T* const lefts = left.data - team.task();
      const T* const rights = right.data - team.task();
      for (int i = first + team.block.lane(); i < last; i += warp_threads) {
        to[i] += over_tasks(lefts + i * Team::tasks, rights + i * Team::tasks);
      }
      team.sync();
      return;
    }
    T sum = T(0);
    for (int i = team.from(first); i < last; i += Team::step) sum += left[i] * right[i];
    MEMFORMER_UNROLL
    for (int mask = 1; mask < warp_threads; mask *= 2) sum += team.block.shuffle_xor(sum, mask);
    if (team.block.lane() == 0) *to += sum;
  }
};

// Cells of a task.
template <class T>
struct RowCells {
  int tokens, trace, slot, vector, errors, grad;

  MEMFORMER_INLINE RowCells(const Network<T>& network, const Rows<T>& rows, int pitch)
      : tokens(rows.resident * pitch),
        trace((2 * network.layers + 1 + (network.layers + 2) * network.kept) * rows.resident +
              network.layers * (network.width - 1)),
        slot(rows.resident),
        vector(network.width - 1),
        errors(network.result_layers * rows.out_count),
        grad(network.grad_z.data || rows.stack ? rows.resident * pitch : 0) {}

  MEMFORMER_INLINE int64_t all() const { return static_cast<int64_t>(tokens) + trace + slot + vector + errors + grad; }
};

template <class T, class Extent, int Members, bool InShared>
struct ResponseTokens {
  using Arguments = TeamNetwork<T>;
  static constexpr int threads = warp_threads;
  static constexpr int blocks_of_multiprocessor = Members == 4 ? 10 : 8;

  template <class Block>
  static MEMFORMER_DEVICE void run(const Arguments& arguments, const Block& block) {
    using Team = RowTeam<Block, Members>;
    const Team team{block};
    run_units<InShared, T>(team, arguments.plan, [&](Task task, Cells<T, Team::tasks> cells, T* sums, T* squared) {
      run_tasks(arguments, team, task, cells, sums, squared);
    });
  }

 private:
  template <class Team>
  static MEMFORMER_DEVICE void run_tasks(const Arguments& arguments, const Team& team, Task task,
                                         Cells<T, Team::tasks> z, T* sums, T* squared) {
    using TaskCells = Cells<T, Team::tasks>;
    using Trace = core::TokenTrace<T, Extent, Team::tasks>;
    const Network<T>& network = arguments.network;
    const core::Parameters<T>& given = arguments.parameters;
    const Rows<T> rows(network);
    const Readout<T> readout{network, task, arguments.error_scale};
    const Extent d = extent_of(network.width - 1, Extent{});
    const int layers = network.layers, first_layer = layers - network.result_layers;
    const int width = d + 1, pitch = Team::pitch(width), count = rows.resident, out_row = rows.out_row();
    const RowCells<T> parts(network, rows, pitch);
    const TaskCells trace_begin = z.at(parts.tokens), ds = trace_begin.at(parts.trace), vector = ds.at(parts.slot);
    const TaskCells errors = vector.at(parts.vector), grad = errors.at(parts.errors);

    const T labelled = load_tokens(network, rows, team, task, z, width, pitch);
    const core::TokenTask<T, Extent, Team::tasks, Team> tokens{
        {z.data},        d,   count, rows.context, rows.stack ? 0 : out_row, rows.stack && rows.ragged, labelled,
        T(1) / labelled, team};
    const core::TokenMethod<T> method{
        {layers, network.kept, given.diagonal, given.gamma_rows, given.beta_rows, given.gamma, given.beta}, given.q};
    const Trace trace{trace_begin, layers, network.kept, count, d};
    core::token_forward(tokens, method, trace, [&](int l) {
      if (rows.stack || l < first_layer) return;
      for (int i = team.from(out_row); i < count; i += Team::step) {
        const int k = i - out_row, place = (l - first_layer) * rows.out_count + k;
        const T response = trace.state(l + 1)[i];
        if (network.pass == Pass::forward) {
          readout.predict(l - first_layer, k, -response);
        } else if (readout.is_loss()) {
          const T error = readout.error(k, response), e = readout.grad_of_error(error);
          *squared += error * error;
          readout.write_target_grad(k, e);
          errors[place] = e;
        } else {
          errors[place] = readout.grad(l - first_layer, k);
        }
      }
    });
    if (network.pass == Pass::forward) {
      if (!rows.stack) return;
      for (int i = team.from(0); i < count; i += Team::step) {
        for (int c = 0; c < width - 1; ++c) grad[i * pitch + c] = z[i * pitch + c];
        grad[i * pitch + width - 1] = trace.state(layers)[i];
      }
      team.sync();
      store_rows(team, grad, network.result, task, 0, count, width, pitch);
      return;
    }
    if (!is_backward(network)) return;
    team.sync();  // lanes of a team have written the same residuals, each of which they read again

    const bool wants_z = network.grad_z.data != nullptr;
    if (rows.stack) {
      load_rows(team, network.result, task, 0, count, width, grad, pitch);
      for (int i = team.from(0); i < count; i += Team::step) {
        errors[i] = grad[i * pitch + width - 1];
        grad[i * pitch + width - 1] = T(0);
      }
    } else if (wants_z) {
      for (int i = team.from(0); i < count; i += Team::step) {
        for (int c = 0; c < width; ++c) grad[i * pitch + c] = T(0);
      }
    }
    const core::ParameterCounts& counts = arguments.plan.counts;
    const RowSums<T, Team> sink{team, sums, sums + counts.q, sums + counts.q + counts.gamma, vector};
    core::token_backward(
        tokens, method, trace,
        [&](int l, TaskCells to) {
          if (l < first_layer) return;
          const TaskCells own = errors.at((l - first_layer) * rows.out_count);
          for (int i = team.from(out_row); i < count; i += Team::step) to[i] += own[i - out_row];
        },
        sink, ds, TaskCells{wants_z ? grad.data : nullptr});
    if (wants_z) store_grad(network, rows, team, task, labelled, grad, width, pitch);
  }

  static MEMFORMER_DEVICE Extent extent_of(int size, core::UpTo<Extent::limit>) { return {size}; }
  static MEMFORMER_DEVICE Extent extent_of(int, core::Fixed<Extent::limit>) { return {}; }

  // Loads the rows; what is only padding becomes zeros, by selection. Returns the number of labelled tokens.
  template <class Team>
  static MEMFORMER_DEVICE T load_tokens(const Network<T>& network, const Rows<T>& rows, const Team& team, Task task,
                                        Cells<T, Team::tasks> z, int width, int pitch) {
    const T labelled = labelled_count<T>(network.lengths, rows.context, task);
    if (rows.resident == network.tokens) {
      load_rows(team, network.z, task, 0, rows.resident, width, z, pitch);
    } else {
      load_rows(team, network.z, task, 0, rows.context, width, z, pitch);
      load_rows(team, network.z, task, rows.out_first, rows.out_count, width, z.at(rows.context * pitch), pitch);
    }
    if (rows.ragged && !rows.stack) keep_labelled(rows, team, labelled, z, width, pitch);
    return labelled;
  }

  // Zeros in the rows of the context that are not labelled.
  template <class Team>
  static MEMFORMER_DEVICE void keep_labelled(const Rows<T>& rows, const Team& team, T labelled,
                                             Cells<T, Team::tasks> cells, int width, int pitch) {
    for (int i = team.from(0); i < rows.context; i += Team::step) {
      for (int c = 0; c < width; ++c) {
        cells[i * pitch + c] = core::where_less(static_cast<T>(i), labelled, cells[i * pitch + c]);
      }
    }
    team.sync();
  }

  // What is neither context nor query gets zero.
  template <class Team>
  static MEMFORMER_DEVICE void store_grad(const Network<T>& network, const Rows<T>& rows, const Team& team, Task task,
                                          T labelled, Cells<T, Team::tasks> grad, int width, int pitch) {
    team.sync();
    if (rows.ragged && !rows.stack) keep_labelled(rows, team, labelled, grad, width, pitch);
    if (rows.resident == network.tokens) {
      store_rows(team, grad, network.grad_z, task, 0, rows.resident, width, pitch);
      return;
    }
    store_rows(team, grad, network.grad_z, task, 0, rows.context, width, pitch);
    store_zeros<T>(team, network.grad_z, task, rows.context, rows.out_first - rows.context, width);
    store_rows(team, grad.at(rows.context * pitch), network.grad_z, task, rows.out_first, rows.out_count, width, pitch);
  }
};

// Teams of 4 lanes for d = 5 in float, of 8 for any d <= 8 and of 16 above, for as long as their tasks fit in shared
// memory.
template <class T>
TeamLayout<T> response_tokens_layout(const Network<T>& network, const Parameters& parameters) {
  const int64_t cells = RowCells<T>(network, Rows<T>(network), network.width | 1).all();
  const auto layout = [&](int team_tasks) {
    return team_layout<T>(network.tasks, parameters, cells, team_tasks, is_backward(network), is_loss(network));
  };
  if (small_teams<T> && network.width == 6) {
    const TeamLayout<T> four = layout(8);
    if (four.resident) return four;
  }
  if (network.width <= 9) {
    const TeamLayout<T> eight = layout(4);
    if (eight.resident) return eight;
  }
  return layout(2);
}

// All launches of a call.
template <class T, class Machine>
int run_response_tokens(const Network<T>& network, const Parameters& parameters, void* scratch,
                        const Machine& machine) {
  if (network.tasks == 0) return 0;
  TeamLayout<T> layout = response_tokens_layout(network, parameters);
  T* const dense = place(layout, scratch);
  using Dense = DenseParameters<T>;
  if (const int error = machine.template run<Dense>({layout.dense, dense}, Dense::parameters, 0)) return error;
  const TeamNetwork<T> arguments{network, network_parameters(network, layout.dense, dense), layout.plan,
                                 error_scale(network)};
  const auto run = [&](auto tag) {
    return machine.template run<typename decltype(tag)::type>(arguments, blocks_of(layout), layout.shared_bytes);
  };
  using Any = core::UpTo<16>;
  int error = 0;
  if (layout.team_tasks == 2) {
    error = run(KernelTag<ResponseTokens<T, Any, 16, false>>{});
  } else if (layout.team_tasks == 4) {
    error = run(KernelTag<ResponseTokens<T, core::UpTo<8>, 8, true>>{});
  } else if constexpr (small_teams<T>) {
    error = run(KernelTag<ResponseTokens<T, core::Fixed<5>, 4, true>>{});
  }
  if (error || !layout.plan.wants_sums) return error;
  return machine.totals(layout.plan.partials, layout.summed, network.tasks, loss_scale(network));
}

}  // namespace memformer::cuda
