// Networks with any P and Q in token space on a GPU: a team of 4 lanes (D <= 6 in float) or 16 (D <= 16) to a task, its
// tokens on the chip for all layers.
//
// Who owns what: team.cuh. Bytes per task: its tokens, read once, and whatever result or token gradient is asked for;
// cells in shared memory: (2 L + 2) N D for a run with a backward (states, registers, a register gradient: one
// register a layer), 6 D^2 and N D more; 51 KB for the 8 tasks of a block at D = 6, N = 21, L = 4. Operations per
// task: those of core/general_tokens.h.

#pragma once

#include "core/general_tokens.h"
#include "cuda/team/team_run.cuh"

namespace memformer::cuda {

template <class T, int Tile, int Grid, bool InShared>
struct GeneralTokens {
  using Arguments = TeamNetwork<T>;
  static constexpr int threads = warp_threads;
  static constexpr int blocks_of_multiprocessor = team_blocks<T, Tile, Grid>;

  // Cells of a task.
  static int64_t cells(const Network<T>& network, const Parameters& parameters) {
    const Rows<T> rows(network);
    const int64_t width = network.width, tokens = rows.resident * width;
    return trace_grids(network, parameters) * tokens + work_cells(network, rows.resident, network.width) +
           network.result_layers * static_cast<int64_t>(rows.out_count);
  }

  template <class Block>
  static MEMFORMER_DEVICE void run(const Arguments& arguments, const Block& block) {
    using Mates = CellsOf<Block, InShared>;
    using Team = Spread<Mates, Tile, Grid>;
    const Team team{Mates{block}, arguments.network.width};
    run_units<InShared, T>(team, arguments.plan, [&](Task task, Cells<T, Team::tasks> cells, T* sums, T* squared) {
      run_tasks(arguments, team, task, cells, sums, squared);
    });
  }

 private:
  // What core/general_tokens.h wants beside its trace.
  static MEMFORMER_INLINE int work_cells(const Network<T>& network, int rows, int width) {
    const int selected = core::selected_cells(network.queries < 0 && network.lengths, width);
    return selected + (is_backward(network) ? 6 * width * width + rows * width : 3 * width * width);
  }

  template <class Team>
  static MEMFORMER_DEVICE void run_tasks(const Arguments& arguments, const Team& team, Task task,
                                         Cells<T, Team::tasks> cells, T* sums, T* squared) {
    using TaskCells = Cells<T, Team::tasks>;
    const Network<T>& network = arguments.network;
    const core::Parameters<T>& parameters = arguments.parameters;
    const Rows<T> rows(network);
    const Readout<T> readout{network, task, arguments.error_scale};
    const core::Shape<false, Team> shape{team};
    const int width = team, count = rows.resident, first_layer = network.layers - network.result_layers;
    const bool backward = is_backward(network);

    const core::Trace<T, Team::tasks> trace(cells, parameters, count * width, backward);
    const TaskCells work = cells.at(core::Trace<T, Team::tasks>::count(parameters, count * width, backward));
    const TaskCells errors = work.at(work_cells(network, count, width));
    const core::Labelled<T> labelled = load_tokens(network, rows, team, task, trace.state(0));
    const int slot = rows.out_row() * width + width - 1;
    core::general_tokens_forward(shape, parameters, labelled, count, trace, work, [&](int l, TaskCells state) {
      if (rows.stack || l < first_layer) return;
      for (int k = team.member(); k < rows.out_count; k += Team::members) {
        const T response = state[slot + k * width];
        const int place = (l - first_layer) * rows.out_count + k;
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
      team.sync();
    });
    if (network.pass == Pass::forward) {
      if (rows.stack) store_rows(team, trace.state(network.layers), network.result, task, 0, count, width);
      return;
    }
    if (!backward) return;

    core::ParameterSums<T> sink = arguments.plan.counts.from(sums);
    const auto add_outer = [&](int l, TaskCells grad) {
      if (rows.stack) {
        if (l + 1 == network.layers) load_rows<T>(team, network.result, task, 0, count, width, grad);
      } else if (l >= first_layer) {
        for (int k = team.member(); k < rows.out_count; k += Team::members) {
          grad[slot + k * width] += errors[(l - first_layer) * rows.out_count + k];
        }
        team.sync();
      }
    };
    const TaskCells grad =
        core::general_tokens_backward(shape, parameters, labelled, count, trace, work, add_outer, sink);
    if (network.grad_z.data) store_grad(network, rows, team, task, labelled.count, grad);
  }

  // Loads the rows; what is only padding becomes zeros, by selection.
  template <class Team>
  static MEMFORMER_DEVICE core::Labelled<T> load_tokens(const Network<T>& network, const Rows<T>& rows,
                                                        const Team& team, Task task, Cells<T, Team::tasks> tokens) {
    const int width = team;
    const T count = labelled_count<T>(network.lengths, rows.context, task);
    if (rows.resident == network.tokens) {
      load_rows(team, network.z, task, 0, rows.resident, width, tokens);
    } else {
      load_rows(team, network.z, task, 0, rows.context, width, tokens);
      load_rows(team, network.z, task, rows.out_first, rows.out_count, width, tokens.at(rows.context * width));
    }
    if (rows.ragged && !rows.stack) {
      each_number(team, rows.context, width,
                  [&](int i, int, int k) { tokens[k] = core::where_less(static_cast<T>(i), count, tokens[k]); });
      team.sync();
    }
    return {rows.context, rows.ragged && rows.stack, count, T(1) / count};
  }

  // What is neither context nor query gets zero.
  template <class Team>
  static MEMFORMER_DEVICE void store_grad(const Network<T>& network, const Rows<T>& rows, const Team& team, Task task,
                                          T count, Cells<T, Team::tasks> grad) {
    const int width = team;
    if (rows.ragged && !rows.stack) {
      each_number(team, rows.context, width,
                  [&](int i, int, int k) { grad[k] = core::where_less(static_cast<T>(i), count, grad[k]); });
      team.sync();
    }
    if (rows.resident == network.tokens) {
      store_rows(team, grad, network.grad_z, task, 0, rows.resident, width);
      return;
    }
    store_rows(team, grad, network.grad_z, task, 0, rows.context, width);
    store_zeros<T>(team, network.grad_z, task, rows.context, rows.out_first - rows.context, width);
    store_rows(team, grad.at(rows.context * width), network.grad_z, task, rows.out_first, rows.out_count, width);
  }
};

}  // namespace memformer::cuda
