// Networks with any P and Q in Gram space on a GPU: a team of 4 lanes (D <= 6 in float) or 16 (D <= 16) to a task.
// Those that a thread can have alone are thread_gram.cuh's.
//
// Who owns what: team.cuh. Bytes per task: its tokens, read once (twice for their own gradient), and whatever result
// or token gradient is asked for; cells in shared memory: (2 L + 2) D^2 for a run with a backward and one register a
// layer, 7 D^2 more to work in, whatever N; 21 KB for the 8 tasks of a block at D = 6, L = 4. Tokens pass through the
// cells of the trace, at most 32 rows at a time. Operations per task: n D^2 multiply-adds for the Gram matrix, then
// those of core/general_gram.h.

#pragma once

#include "core/general_gram.h"
#include "cuda/team/team_gram.cuh"
#include "cuda/team/team_run.cuh"

namespace memformer::cuda {

// Rows with a result that are worked on at a time.
constexpr int result_rows = 16;

// Cells of a task: the context's Gram matrix and its gradient, what the result needs of the states and its gradient,
// then the trace (before and after the layers: tokens) and what they work in (between: rows with a result).
struct GramCells {
  int64_t packed, read, trace, work;

  MEMFORMER_INLINE int64_t all() const { return 2 * packed + 2 * read + trace + work; }
};

template <class T>
MEMFORMER_INLINE GramCells gram_cells(const Network<T>& network, int64_t trace_cells) {
  const Rows<T> rows(network);
  const int64_t width = network.width, square = width * width;
  const int64_t context = smaller(rows.context, core::gram_block), out = smaller(rows.out_count, result_rows);
  const int64_t reading = context * width + waiting_levels(rows.context) * square;
  const int64_t writing = 3 * (context > out ? context : out) * width;
  const int64_t needed = is_backward(network) && network.grad_z.data && writing > reading ? writing : reading;
  const int64_t layers = (is_backward(network) ? 7 : 4) * square, results = 2 * out * width + out;
  return {packed_cells(network.width), rows.stack ? square : network.result_layers * width,
          trace_cells > needed ? trace_cells : needed, layers > results ? layers : results};
}

template <class T, int Tile, int Grid, bool InShared>
struct GeneralGram {
  using Arguments = TeamNetwork<T>;
  static constexpr int threads = warp_threads;
  // Two warps a scheduler: a third leaves fewer registers than the products of sm_80 want.
  static constexpr int blocks_of_multiprocessor = 8;

  static int64_t cells(const Network<T>& network, const Parameters& parameters) {
    return gram_cells(network, trace_grids(network, parameters) * network.width * network.width).all();
  }

  template <class Block>
  static MEMFORMER_DEVICE void run(const Arguments& arguments, const Block& block) {
    using Mates = CellsOf<Block, InShared>;
    using Team = Spread<Mates, Tile, Grid>;
    const Team team{Mates{block}, arguments.network.width};
    run_units<InShared, T>(team, arguments.plan, [&](Task task, Cells<T, Team::tasks> cells, T* sums, T* squared) {
      const Network<T>& network = arguments.network;
      OfTask<Team>{arguments, network, team, task, Rows<T>(network), {network, task, arguments.error_scale}}.run(
          cells, sums, squared);
    });
  }

 private:
  template <class Team>
  struct OfTask {
    using TaskCells = Cells<T, Team::tasks>;

    const Arguments& arguments;
    const Network<T>& network;
    Team team;
    Task task;
    Rows<T> rows;
    Readout<T> readout;

    MEMFORMER_DEVICE int first_layer() const { return network.layers - network.result_layers; }

    MEMFORMER_DEVICE void run(TaskCells cells, T* sums, T* squared) const {
      const core::Parameters<T>& parameters = arguments.parameters;
      const core::Shape<false, Team> shape{team};
      const bool backward = is_backward(network);
      const int trace_cells = core::Trace<T, Team::tasks>::count(parameters, shape.size(), backward);
      const GramCells parts = gram_cells(network, trace_cells);
      const TaskCells gram = cells, gram_grad = at(gram, parts.packed), read = at(gram_grad, parts.packed);
      const TaskCells outer = at(read, parts.read), begin = at(outer, parts.read), work = at(begin, parts.trace);

      const T count = labelled_count<T>(network.lengths, rows.context, task);
      const core::Labelled<T> labelled{rows.context, rows.ragged, count, T(1) / count};
      sum_context(team, network.z, task, labelled, 0, rows.context, begin, gram);
      const core::Trace<T, Team::tasks> trace(begin, parameters, shape.size(), backward);
      core::general_gram_forward(shape, parameters, gram, trace, work,
                                 [&](int l, TaskCells state) { keep_read(l, state, read); });
      if (network.pass == Pass::forward) {
        write_result(read, work);
        return;
      }
      read_errors(read, outer, squared, work);
      if (!backward) return;

      core::ParameterSums<T> sink = arguments.plan.counts.from(sums);
      const bool wants_z = network.grad_z.data != nullptr;
      if (wants_z) {
        each_number(team, 1, static_cast<int>(parts.packed), [&](int, int, int k) { gram_grad[k] = T(0); });
        team.sync();
      }
      core::general_gram_backward(
          shape, parameters, gram, trace, work, [&](int l, TaskCells grad) { add_outer(l, outer, grad); }, sink,
          TaskCells{wants_z ? gram_grad.data : nullptr});
      if (wants_z) write_token_grads(labelled, read, gram_grad, begin, work);
    }

   private:
    static MEMFORMER_DEVICE TaskCells at(TaskCells cells, int64_t offset) { return cells.at(static_cast<int>(offset)); }

    // All of the last state for tokens, the last columns of `result_layers` for predictions.
    MEMFORMER_DEVICE void keep_read(int l, TaskCells state, TaskCells read) const {
      const int width = team;
      if (rows.stack) {
        if (l + 1 < network.layers) return;
        each_entry(team, team, [&](int, int, int k) { read[k] = state[k]; });
      } else if (l >= first_layer()) {
        const TaskCells column = read.at((l - first_layer()) * width);
        each_entry(1, team, [&](int, int k, int) { column[k] = state[k * width + width - 1]; });
      }
    }

    MEMFORMER_DEVICE void add_outer(int l, TaskCells outer, TaskCells grad) const {
      const int width = team;
      if (rows.stack) {
        if (l + 1 < network.layers) return;
        each_entry(team, team, [&](int, int, int k) { grad[k] += outer[k]; });
      } else if (l >= first_layer()) {
        const TaskCells column = outer.at((l - first_layer()) * width);
        each_entry(1, team, [&](int, int k, int) { grad[k * width + width - 1] += column[k]; });
      }
    }

    // The response slot of a row after the layer whose last column is given.
    MEMFORMER_DEVICE T response(TaskCells row, TaskCells column) const {
      const int width = team;
      T sum = row[0] * column[0];
      for (int k = 1; k < width; ++k) sum += row[k] * column[k];
      return sum;
    }

    // Calls body(first, count) for blocks of rows with a result, once they are in `tile`.
    template <class Body>
    MEMFORMER_DEVICE void each_result_block(TaskCells tile, Body body) const {
      for (int first = 0; first < rows.out_count; first += result_rows) {
        const int count = smaller(rows.out_count - first, result_rows);
        load_rows(team, network.z, task, rows.out_first + first, count, team, tile);
        body(first, count);
      }
    }

    MEMFORMER_DEVICE void write_result(TaskCells read, TaskCells work) const {
      const int width = team;
      const TaskCells tile = work, next = work.at(smaller(rows.out_count, result_rows) * width);
      each_result_block(tile, [&](int first, int count) {
        if (rows.stack) {
          product<T>(count, team, team, core::Matrix{next, width}, core::Matrix{tile, width},
                     core::Matrix{read, width});
          store_rows(team, next, network.result, task, first, count, width);
          return;
        }
        for (int l = 0; l < network.result_layers; ++l) {
          for (int i = team.member(); i < count; i += Team::members) {
            readout.predict(l, first + i, -response(tile.at(i * width), read.at(l * width)));
          }
        }
        team.sync();
      });
    }

    // outer = the gradient of what `read` holds; squared errors, for a loss.
    MEMFORMER_DEVICE void read_errors(TaskCells read, TaskCells outer, T* squared, TaskCells work) const {
      const int width = team, rows_at_once = smaller(rows.out_count, result_rows);
      const TaskCells tile = work, incoming = work.at(rows_at_once * width), errors = incoming.at(rows_at_once * width);
      each_entry(rows.stack ? width : network.result_layers, team, [&](int, int, int k) { outer[k] = T(0); });
      each_result_block(tile, [&](int first, int count) {
        if (rows.stack) {
          load_rows(team, network.result, task, first, count, width, incoming);
          product<T>(team, count, team, Adding<core::Matrix<T, Team::tasks>>{{outer, width}},
                     core::Transposed<core::Matrix<T, Team::tasks>>{{tile, width}}, core::Matrix{incoming, width});
          return;
        }
        for (int l = 0; l < network.result_layers; ++l) {
          for (int i = team.member(); i < count; i += Team::members) {
            if (readout.is_loss()) {
              const T error = readout.error(first + i, response(tile.at(i * width), read.at(l * width)));
              *squared += error * error;
              errors[i] = readout.grad_of_error(error);
              readout.write_target_grad(first + i, errors[i]);
            } else {
              errors[i] = readout.grad(l, first + i);
            }
          }
          team.sync();
          each_entry(1, team, [&](int, int k, int) {
            T sum = outer[l * width + k];
            for (int i = 0; i < count; ++i) sum += errors[i] * tile[i * width + k];
            outer[l * width + k] = sum;
          });
        }
      });
    }

    // Rows of the context get C z / n, rows with a result what reaches them through Z_0 T.
    MEMFORMER_DEVICE void write_token_grads(const core::Labelled<T>& labelled, TaskCells read, TaskCells gram_grad,
                                            TaskCells begin, TaskCells work) const {
      const int width = team;
      const int most = smaller(rows.context, core::gram_block), out = smaller(rows.out_count, result_rows);
      const TaskCells tile = begin, grads = tile.at((most > out ? most : out) * width);
      const TaskCells incoming = grads.at((most > out ? most : out) * width);
      const TaskCells errors = work;
      for (int first = 0; first < rows.context; first += core::gram_block) {
        const int count = smaller(rows.context - first, core::gram_block);
        load_rows(team, network.z, task, first, count, width, tile);
        product<T>(count, team, team, core::Matrix{grads, width}, core::Matrix{tile, width},
                   core::Symmetric{gram_grad});
        each_entry(count, team,
                   [&](int i, int, int k) { grads[k] = labelled.select(first + i, grads[k] * labelled.inverse); });
        if (rows.stack) add_result_grads(read, first, count, incoming, grads);
        store_rows(team, grads, network.grad_z, task, first, count, width);
      }
      const int done = rows.stack ? rows.context : 0;
      if (!rows.stack) store_zeros<T>(team, network.grad_z, task, rows.context, rows.out_first - rows.context, width);
      for (int first = done; first < rows.out_count; first += result_rows) {
        const int count = smaller(rows.out_count - first, result_rows);
        if (rows.stack) {
          each_entry(count, team, [&](int, int, int k) { grads[k] = T(0); });
          add_result_grads(read, first, count, incoming, grads);
        } else {
          load_rows(team, network.z, task, rows.out_first + first, count, width, tile);
          predicted_grads(read, first, count, tile, errors, grads);
        }
        store_rows(team, grads, network.grad_z, task, rows.out_first + first, count, width);
      }
    }

    // Adds the gradients that reach tokens [first, first + count) from their own results.
    MEMFORMER_DEVICE void add_result_grads(TaskCells read, int first, int count, TaskCells incoming,
                                           TaskCells grads) const {
      const int width = team;
      load_rows(team, network.result, task, first, count, width, incoming);
      product<T>(count, team, team, Adding<core::Matrix<T, Team::tasks>>{{grads, width}}, core::Matrix{incoming, width},
                 core::Transposed<core::Matrix<T, Team::tasks>>{{read, width}});
    }

    // Gradients of query rows, from those of their predictions.
    MEMFORMER_DEVICE void predicted_grads(TaskCells read, int first, int count, TaskCells tile, TaskCells errors,
                                          TaskCells grads) const {
      const int width = team;
      each_entry(count, team, [&](int, int, int k) { grads[k] = T(0); });
      for (int l = 0; l < network.result_layers; ++l) {
        for (int i = team.member(); i < count; i += Team::members) {
          if (readout.is_loss()) {
            const T found = response(tile.at(i * width), read.at(l * width));
            errors[i] = readout.grad_of_error(readout.error(first + i, found));
          } else {
            errors[i] = readout.grad(l, first + i);
          }
        }
        team.sync();
        each_entry(count, team, [&](int i, int c, int k) { grads[k] += errors[i] * read[l * width + c]; });
      }
    }
  };
};

}  // namespace memformer::cuda
