// Response-only networks in Gram space on a GPU: one task a thread, 32 tasks a block, tokens read once.
//
// A block is one warp with a tile of tokens of its own. It waits for the tile, adds up H and b of each task in
// registers, runs the method forward, makes the errors, lets the next tile come in, runs backward and adds up the
// parameters' gradients over its tasks (task_sums.cuh). Blocks never wait for each other. Contexts too long for shared
// memory come in chunks of 8, 16 or 32 rows through the same buffer, once for every pass over them.
//
// Workload W (d = 5, n = 20, L = 4, float32, fused loss and parameter gradients), a task: 508 bytes read, 8 of partial
// sums written and read again. Arithmetic: 400 multiply-adds for H and b, 230 forward, 325 backward with the products
// of gamma, 100 for the sums of A. Of sm_90's code about 1900 instructions run for a warp's 32 tasks, 60 of them reads
// of 8 bytes (tokens), 75 single words written and 45 read, 50 reads of 16 bytes, most of them parameters that all
// lanes share. Reading at memory's speed leaves a multiprocessor 3400 instructions for the same tasks. Up to four
// layers, traces stay in registers. Above d = 8, and in double, H is more than a thread's registers hold (136 numbers
// of 255 at d = 16, and the sums it is made of beside it): it lies in local memory, 1.4 to 4.2 KB a thread and
// contiguous over a warp, of which the first-level cache holds what shared memory leaves and the second-level cache the
// rest. Gradients of parameters alone are team/split_gram.cuh's there.

#pragma once

#include <type_traits>

#include "cuda/thread/response_gram_call.cuh"
#include "cuda/thread/tile_tasks.cuh"

namespace memformer::cuda {

// Most: at most so many layers with one register each, a trace in registers, only the last layer's predictions and no
// gradient of tokens; 0: any.
template <class T, class Extent, Work Task, int Most = 0>
class ResponseGram {
  using Width = decltype(core::successor(Extent{}));
  using Cells = core::Cells<T, warp_threads>;
  using Trace = std::conditional_t<Most != 0, RegisterTrace<T, Extent, warp_threads, Most>,
                                   InPlaceTrace<T, Extent, warp_threads>>;
  using Quadratic = core::SymmetricQuadratic<T, Extent>;
  static constexpr bool fixed = core::is_fixed<Extent>;
  static constexpr bool may_want_tokens = Task == Work::parameters && Most == 0;
  static constexpr int arrivals_bytes = 32;

 public:
  using Arguments = ResponseGramCall<T, Extent>;
  static constexpr int threads = tile_tasks;
  static constexpr bool in_local_memory = !fixed;
  // Eight warps, two a scheduler, leave 255 registers for each; workload W's shared memory would allow nine.
  static constexpr int blocks_of_multiprocessor = !fixed || Extent::limit > 5 || Most ? 8 : 16;

  static int64_t shared_bytes(const Arguments& call) {
    return arrivals_bytes + divided_up(call.layout.bytes(tile_tasks), 32) * 32 +
           (call.memory ? 0 : call.space.count * static_cast<int64_t>(sizeof(T)));
  }

  template <class Block>
  static MEMFORMER_DEVICE void run(const Arguments& call, const Block& block) {
    char* const tile_cells = block.shared() + arrivals_bytes;
    T* memory = reinterpret_cast<T*>(tile_cells + (call.layout.bytes(tile_tasks) + 31) / 32 * 32);
    if constexpr (!fixed) {
      if (call.memory) memory = call.memory + block.index() * call.space.count;
    }
    Tile<Block> tile{block, call.layout, tile_cells, reinterpret_cast<Arrivals*>(block.shared())};
    Run<Block>({call, block, tile}, memory).all();
  }

 private:
  template <class Block>
  struct Run : TileTasks<T, Arguments, Block> {
    using Base = TileTasks<T, Arguments, Block>;
    using Base::begin, Base::block, Base::call, Base::each_chunk, Base::first_task, Base::labelled, Base::leave;
    using Base::real, Base::start, Base::task, Base::tasks, Base::tile;
    T* memory;

    MEMFORMER_DEVICE Run(const Base& base, T* memory) : Base(base), memory(memory) {}

    MEMFORMER_DEVICE void all() {
      tile.make();
      if (call.partials.arrivals && block.index() == 0 && block.thread() == 0) *call.partials.arrivals = 0;
      block.sync();
      if (call.resident) start(block.index() * call.unit_tasks);
      const auto method =
          load_method<Most>(block, call.parameters, call.space, call.layers, call.heads, call.diagonal, call.d, memory);
      block.sync();
      each_tile(block, call.tasks, call.unit_tasks, call.space, memory, call.partials,
                [&](int64_t first, int64_t next, T* totals) { one_tile(method, first, next, totals); });
    }

    template <class Method>
    MEMFORMER_DEVICE void one_tile(const Method& method, int64_t first, int64_t next, T* totals) {
      const int context = begin(first);
      const T ready_target = call.loss && real ? read_number<T>(call.target, task * call.target.stride[0]) : T(0);
      if (call.resident) tile.wait();

      Quadratic quadratic;
      quadratic.extent = call.d;
      const int d = call.d;
      const Cells trace_cells{memory + call.space.trace + block.thread()};
      const T scale = T(1) / static_cast<T>(context);
      context_gram(quadratic, trace_cells, scale);

      [[maybe_unused]] T updates[Most ? Most * Extent::limit : 1], memories[Most ? Most * Extent::limit : 1];
      const Trace trace = [&] {
        if constexpr (Most) {
          return Trace{trace_cells, updates, memories, call.d};
        } else {
          return Trace{trace_cells, call.layers, call.heads, call.d, wants_tokens() || call.result_layers > 1};
        }
      }();
      T s[Extent::limit];
      MEMFORMER_UNROLL
      for (int c = 0; c < d; ++c) s[c] = T(0);
      core::response_forward<false>(quadratic, method, s, trace);

      if constexpr (Task == Work::forward) {
        if (!call.loss) {
          write_result(trace, s);
          leave(next);
          return;
        }
      }
      const Cells outer = trace_cells.at(call.trace_cells);
      T squared = T(0);
      read_errors(trace, s, outer, ready_target, squared);
      TaskSums<T, Extent, Block> sums{block,
                                      call.d,
                                      call.heads,
                                      call.layers * call.heads,
                                      gamma_start(),
                                      beta_start(),
                                      call.partials.count - 1,
                                      totals,
                                      memory + call.space.slot_cells,
                                      trace_cells.at((Most ? 1 : 2) * call.layers * d),
                                      trace.residual(0)};
      if (call.loss) sums.squared_error(squared);
      if constexpr (Task == Work::forward) {
        sums.empty_slots();
        leave(next);
      } else {
        if (!wants_tokens()) leave(next);
        Quadratic grad;
        if constexpr (may_want_tokens) {
          grad.extent = call.d;
          MEMFORMER_UNROLL
          for (int k = 0; k < core::packed_size(d); ++k) grad.h[k] = T(0);
          MEMFORMER_UNROLL
          for (int c = 0; c < d; ++c) grad.b[c] = T(0);
        }
        const int first_layer = call.layers - call.result_layers;
        core::response_backward<false>(
            quadratic, method, trace,
            [&](int l, T* ds) {
              if (l < first_layer) return;
              MEMFORMER_UNROLL
              for (int c = 0; c < d; ++c) ds[c] += outer[(l - first_layer) * d + c];
            },
            sums, s, may_want_tokens ? &grad : nullptr, wants_tokens());
        sums.finish();
        if constexpr (may_want_tokens) {
          if (!wants_tokens()) return;
          write_token_grads(trace, grad, scale, ready_target);
          leave(next);
        }
      }
    }

    MEMFORMER_DEVICE bool wants_tokens() const { return may_want_tokens && call.grad_z.data; }
    MEMFORMER_DEVICE int gamma_start() const { return static_cast<int>(call.parameters.q.count()); }
    MEMFORMER_DEVICE int beta_start() const { return gamma_start() + static_cast<int>(call.parameters.gamma.count()); }

    // H and b of this lane's task.
    MEMFORMER_DEVICE void context_gram(Quadratic& quadratic, Cells waiting, T scale) {
      const int d = call.d;
      T sums[core::packed_size(Width::limit)];
      this->template sum_context<false>(core::successor(call.d), sums, waiting);
      MEMFORMER_UNROLL
      for (int k = 0; k < core::packed_size(d); ++k) quadratic.h[k] = sums[k] * scale;
      MEMFORMER_UNROLL
      for (int c = 0; c < d; ++c) quadratic.b[c] = sums[core::packed_size(d) + c] * scale;
    }

    // s after the layer that gives result `layer`: in registers where there is only one.
    MEMFORMER_DEVICE T state(const Trace& trace, const T* s, int layer, int c) const {
      if constexpr (Most) {
        return s[c];
      } else {
        return call.result_layers == 1 ? s[c]
                                       : static_cast<T>(trace.state(call.layers - call.result_layers + layer + 1)[c]);
      }
    }

    // The response slot of a row: y + x . s.
    MEMFORMER_DEVICE T response(const T* row, const Trace& trace, const T* s, int layer) const {
      const int d = call.d;
      T sum = row[d];
      MEMFORMER_UNROLL
      for (int c = 0; c < d; ++c) sum += row[c] * state(trace, s, layer, c);
      return sum;
    }

    MEMFORMER_DEVICE int out_first() const { return call.stack ? 0 : call.tokens - call.queries; }

    MEMFORMER_DEVICE static int64_t entry(const Array& array, int64_t a, int64_t b, int64_t c) {
      return a * array.stride[0] + b * array.stride[1] + c * array.stride[2];
    }

    MEMFORMER_DEVICE void write_result(const Trace& trace, const T* s) {
      const Width width = core::successor(call.d);
      each_chunk(out_first(), call.tokens, [&](char* rows, int row, int count) {
#pragma unroll 1
        for (int i = 0; real && i < count; ++i) {
          T values[Width::limit];
          char* const here = rows + i * call.layout.row_bytes;
          read_any_row(call.z.storage, here, width, values);
          if (call.stack) {
            write_number_of_row(call.z.storage, here, call.d, response(values, trace, s, 0));
            continue;
          }
#pragma unroll 1
          for (int l = 0; l < call.result_layers; ++l) {
            write_number(call.result, entry(call.result, l, task, row + i - out_first()),
                         -response(values, trace, s, l));
          }
        }
        if (call.stack) write_rows(call.rows, row, count);
      });
    }

    // Writes the tile's rows to where they belong; the next copies into it come after these writes.
    MEMFORMER_DEVICE void write_rows(const TokenArray& to, int row, int count) const {
      block.fence_copies();
      block.sync();
      tile.write(to, first_task, tasks, row, count);
    }

    MEMFORMER_DEVICE T target(int query, T ready) const {
      return query == 0 ? ready : read_number<T>(call.target, entry(call.target, task, query, 0));
    }

    // Gradient of the response slot of result row `index` after result `layer`.
    MEMFORMER_DEVICE T slot_grad(int layer, int index) const {
      if (call.stack) return read_number<T>(call.result, entry(call.result, task, index, call.d));
      return -read_number<T>(call.result, entry(call.result, layer, task, index));
    }

    // outer[layer] = the sum over result rows of the gradient e of their slot times their features.
    MEMFORMER_DEVICE void read_errors(const Trace& trace, const T* s, Cells outer, T ready_target, T& squared) {
      const Width width = core::successor(call.d);
      const int d = call.d;
      if (Task != Work::forward) {
#pragma unroll 1
        for (int k = 0; k < call.result_layers * d; ++k) outer[k] = T(0);
      }
      each_chunk(out_first(), call.tokens, [&](const char* rows, int row, int count) {
#pragma unroll 1
        for (int i = 0; real && i < count; ++i) {
          const int index = row + i - out_first();
          T values[Width::limit];
          read_any_row(call.z.storage, rows + i * call.layout.row_bytes, width, values);
#pragma unroll 1
          for (int l = 0; l < call.result_layers; ++l) {
            T e;
            if (Task == Work::forward || call.loss) {
              const T error = -response(values, trace, s, l) - target(index, ready_target);
              squared += error * error;
              if (Task == Work::forward) continue;
              e = -error * call.error_scale;
              if (call.grad_target.data) write_number(call.grad_target, entry(call.grad_target, task, index, 0), e);
            } else {
              e = slot_grad(l, index);
            }
            MEMFORMER_UNROLL
            for (int c = 0; c < d; ++c) outer[l * d + c] += e * values[c];
          }
        }
      });
    }

    // Rows of the context get (dG + dG^T) z / n, rows with a result e s in their features and e in their response slot,
    // what a result's own row brings besides, and rows of neither zeros. In place where the gradient is stored as the
    // tokens are; that of half-precision tokens in a loss is float32, and goes out number by number.
    MEMFORMER_DEVICE void write_token_grads(const Trace& trace, const Quadratic& grad, T scale, T ready_target) {
      const Width width = core::successor(call.d);
      const int d = call.d, size = width;
      T symmetric[core::packed_size(Width::limit)];
      MEMFORMER_UNROLL
      for (int k = 0; k < core::packed_size(d); ++k) symmetric[k] = grad.h[k] * scale;
      MEMFORMER_UNROLL
      for (int c = 0; c < d; ++c) symmetric[core::packed_size(d) + c] = grad.b[c] * scale;
      symmetric[core::packed_size(width) - 1] = T(0);
      const bool in_place = call.grad_z.storage == call.z.storage;
      each_chunk(0, call.tokens, [&](char* rows, int row, int count) {
#pragma unroll 1
        for (int i = 0; real && i < count; ++i) {
          T values[Width::limit], to[Width::limit];
          char* const here = rows + i * call.layout.row_bytes;
          read_any_row(call.z.storage, here, width, values);
          MEMFORMER_UNROLL
          for (int c = 0; c < size; ++c) to[c] = T(0);
          if (row + i < labelled) {
            core::add_gram_grad(symmetric, core::Cells<const T>{values}, width, core::Cells<T>{to});
          }
          if (row + i >= out_first()) add_out_grad(trace, row + i - out_first(), values, ready_target, to);
          char* const there = in_place ? here : call.grad_z.row(task, row + i);
          const int64_t step = in_place ? call.z.number_bytes : call.grad_z.stride[2];
          MEMFORMER_UNROLL
          for (int c = 0; c < size; ++c) write_number_of_row(call.grad_z.storage, there + c * step, 0, to[c]);
        }
        if (in_place) write_rows(call.grad_z, row, count);
      });
    }

    MEMFORMER_DEVICE void add_out_grad(const Trace& trace, int index, const T* values, T ready_target, T* to) const {
      const int d = call.d;
      const int first_layer = call.layers - call.result_layers;
#pragma unroll 1
      for (int l = 0; l < call.result_layers; ++l) {
        const auto s = trace.state(first_layer + l + 1);
        T e;
        if (call.loss) {
          T error = -values[d];
          MEMFORMER_UNROLL
          for (int c = 0; c < d; ++c) error += -values[c] * s[c];
          e = -(error - target(index, ready_target)) * call.error_scale;
        } else {
          e = slot_grad(l, index);
        }
        if (call.stack) {
          for (int c = 0; c < d; ++c) to[c] += read_number<T>(call.result, entry(call.result, task, index, c));
        }
        MEMFORMER_UNROLL
        for (int c = 0; c < d; ++c) to[c] += e * s[c];
        to[d] += e;
      }
    }
  };
};

}  // namespace memformer::cuda
