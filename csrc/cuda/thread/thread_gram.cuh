// Small networks of one head with any P and Q in Gram space on a GPU: one task a thread, 32 tasks a block, predictions
// and the gradients of parameters.
//
// A block is one warp. Tokens come in chunks of 8 rows (stage.cuh); a thread adds up its G_0 and runs
// core/general_gram.h on matrices of compile-time size: G, Q G, M, and the gradients of M and G in registers, T_l, the
// registers R_l and what lives through a whole layer in columns of shared memory, [cell][task], free of conflicts.
// Gradients of Q and P are added up over the warp as whole matrices, lanes trading halves of what they hold; those of
// gamma and beta by slots (task_sums.cuh).
//
// D = 6, L = 4, float32, loss and gradients of parameters, a task: 508 bytes read; 465 cells, 60 KB a block, three of
// which share a multiprocessor; the multiply-adds of core/general_gram.h with about half as many other instructions.

#pragma once

#include "core/general_gram.h"
#include "cuda/team/team_gram.cuh"
#include "cuda/team/team_plan.cuh"
#include "cuda/thread/tile_tasks.cuh"

namespace memformer::cuda {

template <class T, class Extent>
struct ThreadGramCall {
  Extent width;
  bool loss;
  bool resident;  // a tile holds all rows
  int tokens;     // N
  int context;    // rows before this one may be labelled
  int queries;
  int result_layers;
  int unit_tasks;
  int64_t tasks, units;
  T error_scale;  // 2 / (B queries)
  const int64_t* lengths;
  TokenArray z;
  Array result, target, grad_target;
  bool backward;
  bool diagonal;
  int layers;
  Parameters parameters;
  TileLayout layout;
  MethodSpace space;  // q at 0
  int p;              // where P starts
  Partials<T> partials;
};

// A sink of the core's backward pass, for one tile.
template <class T, class Block>
struct ThreadSums {
  Slots<T, Block> slots;
  int p_start, gamma_start, beta_start;

  MEMFORMER_DEVICE void gamma(int k, T value) { slots.put(gamma_start + k, value); }
  MEMFORMER_DEVICE void beta(int k, T value) { slots.put(beta_start + k, value); }

  // Adds a matrix of every task to the sums from `begin` on.
  template <int Count>
  MEMFORMER_DEVICE void add(int begin, T (&values)[Count]) const {
    int first = 0, count = Count;
    spread_sums<Count, warp_threads / 2>(slots.block, values, first, count);
    MEMFORMER_UNROLL
    for (int k = 0; k < spread_count<Count, warp_threads / 2>(); ++k) {
      if (k < count) slots.totals[begin + first + k] += values[k];
    }
  }
};

// Products that are the gradient of Q or P, found by the type of their target.
template <class S, int Width, class T, class Block, class Left, class Right>
MEMFORMER_DEVICE void product(core::Fixed<Width> rows, core::Fixed<Width> inner, core::Fixed<Width> columns,
                              core::QGrad<ThreadSums<T, Block>> target, Left left, Right right) {
  S values[Width * Width];
  core::product<S>(rows, inner, columns, core::Matrix{Cells<S>{values}, Width}, left, right);
  target.sink.add(target.begin, values);
}
template <class S, int Width, class T, class Block, class Left, class Right>
MEMFORMER_DEVICE void product(core::Fixed<Width> rows, core::Fixed<Width> inner, core::Fixed<Width> columns,
                              core::PGrad<ThreadSums<T, Block>> target, Left left, Right right) {
  S values[Width * Width];
  core::product<S>(rows, inner, columns, core::Matrix{Cells<S>{values}, Width}, left, right);
  target.sink.add(target.sink.p_start + target.begin, values);
}

// Where a thread's matrices are: what lives through a layer in its column, the rest in registers.
template <class T, int Width>
struct ThreadMatrices {
  T* near;
  Cells<T, warp_threads> far;

  template <core::Working Which>
  MEMFORMER_DEVICE auto matrix() const {
    constexpr int size = Width * Width;
    if constexpr (Which == core::Working::grad) {
      return core::Matrix{far, Width};
    } else if constexpr (Which == core::Working::weighted) {
      return core::Matrix{far.at(size), Width};
    } else {
      return core::Matrix{Cells<T>{near + (static_cast<int>(Which) - 1) * size}, Width};
    }
  }
  // In registers: what is written to the column in between would have it read again and again.
  template <class Shape>
  static constexpr int copied = Width * Width;
  template <class View>
  MEMFORMER_DEVICE core::Matrix<T, 1> read_often(View state, T* copy) const {
    MEMFORMER_UNROLL
    for (int k = 0; k < Width * Width; ++k) copy[k] = state.cells[k];
    return {Cells<T>{copy}, Width};
  }
};

template <class T, class Extent>
class ThreadGram {
  static constexpr int arrivals_bytes = 32;
  static constexpr int width = Extent::limit;
  static constexpr int square = width * width;
  static constexpr int packed = core::packed_size(width);
  using Column = Cells<T, warp_threads>;

 public:
  using Arguments = ThreadGramCall<T, Extent>;
  static constexpr int threads = tile_tasks;
  static constexpr int blocks_of_multiprocessor = 8;

  static int64_t shared_bytes(const Arguments& call) {
    return arrivals_bytes + divided_up(call.layout.bytes(tile_tasks), 32) * 32 +
           call.space.count * static_cast<int64_t>(sizeof(T));
  }

  template <class Block>
  static MEMFORMER_DEVICE void run(const Arguments& call, const Block& block) {
    char* const tile_cells = block.shared() + arrivals_bytes;
    T* const memory = reinterpret_cast<T*>(tile_cells + (call.layout.bytes(tile_tasks) + 31) / 32 * 32);
    Tile<Block> tile{block, call.layout, tile_cells, reinterpret_cast<Arrivals*>(block.shared())};
    Run<Block>({call, block, tile}, memory).all();
  }

 private:
  template <class Block>
  struct Run : TileTasks<T, Arguments, Block> {
    using Base = TileTasks<T, Arguments, Block>;
    using Base::begin, Base::block, Base::call, Base::each_chunk, Base::leave, Base::real, Base::start, Base::task;
    using Base::tile;
    T* memory;

    MEMFORMER_DEVICE Run(const Base& base, T* memory) : Base(base), memory(memory) {}

    MEMFORMER_DEVICE void all() {
      tile.make();
      if (call.partials.arrivals && block.index() == 0 && block.thread() == 0) *call.partials.arrivals = 0;
      block.sync();
      if (call.resident) start(block.index() * call.unit_tasks);
      const Parameters& given = call.parameters;
      load_parameter(block, given.q, memory);
      load_parameter(block, given.p, memory + call.p);
      if (given.gamma.present) load_parameter(block, given.gamma, memory + call.space.gamma);
      if (given.beta.present) load_parameter(block, given.beta, memory + call.space.beta);
      const core::Parameters<T> parameters{
          {call.layers, 1, call.diagonal, 1, 1, given.gamma.present ? memory + call.space.gamma : nullptr,
           given.beta.present ? memory + call.space.beta : nullptr},
          1,
          memory,
          memory + call.p};
      block.sync();
      each_tile(block, call.tasks, call.unit_tasks, call.space, memory, call.partials,
                [&](int64_t first, int64_t next, T* totals) { one_tile(parameters, first, next, totals); });
    }

    MEMFORMER_DEVICE void one_tile(const core::Parameters<T>& parameters, int64_t first, int64_t next, T* totals) {
      const int context = begin(first);
      if (call.resident) tile.wait();
      const Column gram0{memory + call.space.trace + block.thread()};
      const Column far = gram0.at(packed), read = far.at(2 * square);
      const Column outer = read.at(call.result_layers * width), kept = outer.at(call.result_layers * width);
      const T scale = T(1) / static_cast<T>(context);
      T sums[packed];
      this->template sum_context<true>(call.width, sums, kept);
      MEMFORMER_UNROLL
      for (int k = 0; k < packed; ++k) gram0[k] = sums[k] * scale;

      const core::Shape<false, Extent> shape{call.width};
      const core::Trace<T, warp_threads> trace(kept, parameters, square, call.backward);
      const int first_layer = parameters.layers - call.result_layers;
      T near[5 * square];
      const ThreadMatrices<T, width> work{near, far};
      core::general_gram_forward(shape, parameters, gram0, trace, work, [&](int l, Column state) {
        if (l < first_layer) return;
        MEMFORMER_UNROLL
        for (int k = 0; k < width; ++k) read[(l - first_layer) * width + k] = state[k * width + width - 1];
      });
      if (!call.backward && !call.loss) {
        each_result([&](int l, int query, const T* row) {
          write_number(call.result, place(call.result, l, query), -response(row, read, l));
        });
        leave(next);
        return;
      }
      T squared = T(0);
#pragma unroll 1
      for (int k = 0; k < call.result_layers * width; ++k) outer[k] = T(0);
      each_result([&](int l, int query, const T* row) {
        T e;
        if (call.loss) {
          const int64_t at = task * call.target.stride[0] + query * call.target.stride[1];
          const T error = -response(row, read, l) - read_number<T>(call.target, at);
          squared += error * error;
          e = -error * call.error_scale;
          if (call.grad_target.data) {
            write_number(call.grad_target, task * call.grad_target.stride[0] + query * call.grad_target.stride[1], e);
          }
        } else {
          e = -read_number<T>(call.result, place(call.result, l, query));
        }
        MEMFORMER_UNROLL
        for (int k = 0; k < width; ++k) outer[l * width + k] += e * row[k];
      });
      leave(next);
      const Parameters& given = call.parameters;
      const int q_count = static_cast<int>(given.q.count()), p_count = static_cast<int>(given.p.count());
      const int gamma_start = q_count + p_count;
      ThreadSums<T, Block> sink{{block, totals, memory + call.space.slot_cells},
                                q_count,
                                gamma_start,
                                gamma_start + static_cast<int>(given.gamma.count())};
      if (call.loss) sink.slots.put(call.partials.count - 1, squared);
      if (call.backward) {
        core::general_gram_backward(
            shape, parameters, gram0, trace, work,
            [&](int l, Column grad) {
              if (l < first_layer) return;
              MEMFORMER_UNROLL
              for (int k = 0; k < width; ++k) grad[k * width + width - 1] += outer[(l - first_layer) * width + k];
            },
            sink, Column{nullptr});
      }
      sink.slots.empty();
    }

    // body(layer, query, row) for the results of this lane's task.
    template <class Body>
    MEMFORMER_DEVICE void each_result(Body body) {
      const int first = call.tokens - call.queries;
      each_chunk(first, call.tokens, [&](const char* rows, int row, int count) {
#pragma unroll 1
        for (int i = 0; real && i < count; ++i) {
          T values[width];
          read_any_row(call.z.storage, rows + i * call.layout.row_bytes, call.width, values);
#pragma unroll 1
          for (int l = 0; l < call.result_layers; ++l) body(l, row + i - first, values);
        }
      });
    }

    // The response slot of a row after the layer that gives result `layer`.
    static MEMFORMER_DEVICE T response(const T* row, Column read, int layer) {
      T sum = row[0] * read[layer * width];
      MEMFORMER_UNROLL
      for (int k = 1; k < width; ++k) sum += row[k] * read[layer * width + k];
      return sum;
    }

    MEMFORMER_DEVICE int64_t place(const Array& array, int layer, int query) const {
      return layer * array.stride[0] + task * array.stride[1] + query * array.stride[2];
    }
  };
};

// Everything about a call but where it runs.
template <class T, class Extent>
ThreadGramCall<T, Extent> thread_gram_call(const Network<T>& network, const Parameters& given, Extent width) {
  ThreadGramCall<T, Extent> call{};
  call.width = width;
  call.loss = is_loss(network);
  call.tokens = network.tokens;
  call.queries = network.queries;
  call.context = network.lengths ? network.tokens - network.queries : network.context;
  call.result_layers = network.result_layers;
  call.tasks = network.tasks;
  const bool sums = network.pass != Pass::forward;
  call.unit_tasks = tasks_of_unit(network.tasks, sums);
  call.units = divided_up(network.tasks, call.unit_tasks);
  call.error_scale = error_scale(network);
  call.lengths = network.lengths;
  call.z = token_array(network.z, network.width);
  call.result = network.result;
  call.target = network.target;
  call.grad_target = network.grad_target;
  call.backward = is_backward(network);
  call.diagonal = network.diagonal;
  call.layers = network.layers;
  call.parameters = completed(given, network.width);

  call.layout = tile_layout(network.tokens, network.width, call.z.number_bytes);
  call.resident = call.layout.bytes(tile_tasks) <= 8 * 1024;
  if (!call.resident) call.layout = tile_layout(8, network.width, call.z.number_bytes);

  const Parameters& dense = call.parameters;
  const int64_t square = static_cast<int64_t>(width) * width, entries = core::packed_size(width);
  const int64_t trace = trace_grids(network, dense) * square, waiting = waiting_levels(call.context) * entries;
  const int64_t cells = entries + 2 * square + 2 * call.result_layers * width + (trace > waiting ? trace : waiting);
  const int64_t count = !sums ? 0 : is_backward(network) ? sum_count(dense) : 1;
  MethodSpace& space = call.space;
  call.p = in_fours(dense.q.count());
  space.gamma = call.p + in_fours(dense.p.count());
  space.beta = space.gamma + in_fours(dense.gamma.count());
  space.sums = space.beta + in_fours(dense.beta.count());
  space.sum_step = in_fours(count);
  space.slot_cells = space.sums + 2 * space.sum_step;
  space.trace = space.slot_cells + (sums ? slots * slot_pitch : 0);
  space.count = space.trace + static_cast<int>(cells) * warp_threads;
  return call;
}

// Widths that are compiled for: narrower matrices leave a thread little to do beside its bookkeeping, and wider ones
// outgrow its registers.
constexpr int narrowest_thread_gram = 4;
constexpr int widest_thread_gram = 6;

// Whether a thread can have a task of this call: its matrices in registers, a block's columns in shared memory. Teams
// have the others, several heads, and what asks for tokens: as the result, or for their gradient.
template <class T>
bool fits_thread(const Network<T>& network, const Parameters& parameters) {
  if (sizeof(T) == 8 || network.width < narrowest_thread_gram || network.width > widest_thread_gram) return false;
  if (network.queries < 0 || network.grad_z.data || network.heads > 1) return false;
  const auto call = thread_gram_call(network, parameters, core::UpTo<widest_thread_gram>{network.width});
  return call.layout.bytes(tile_tasks) + 64 + call.space.count * static_cast<int64_t>(sizeof(T)) <= most_shared;
}

template <class T>
int64_t thread_gram_bytes(const Network<T>& network, const Parameters& parameters) {
  const auto call = thread_gram_call(network, parameters, core::UpTo<widest_thread_gram>{network.width});
  if (network.pass == Pass::forward) return 0;
  const int64_t count = is_backward(network) ? sum_count(call.parameters) : 1;
  return partials_bytes<T>(network.tasks, call.unit_tasks, count);
}

// A whole call, on a machine that runs kernels.
template <class T, class Extent, class Machine>
int run_thread_gram(const Network<T>& network, const Parameters& parameters, void* scratch, const Machine& machine,
                    Extent width) {
  auto call = thread_gram_call(network, parameters, width);
  const bool sums = network.pass != Pass::forward;
  Parameters summed;
  if (is_backward(network)) summed = call.parameters;
  summed.loss = is_loss(network) ? parameters.loss : nullptr;
  if (sums) {
    call.partials = partials_in<T>(scratch, network.tasks, call.unit_tasks, sum_count(summed));
  }
  using Kernel = ThreadGram<T, Extent>;
  const int error = machine.template run<Kernel>(call, call.units, Kernel::shared_bytes(call));
  return error || !sums ? error : machine.totals(call.partials, summed, network.tasks, loss_scale(network));
}

}  // namespace memformer::cuda
