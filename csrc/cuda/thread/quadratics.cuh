// Learned first-order methods on given quadratics (lfom_solve) on a GPU: one task a thread, 32 tasks a block.
//
// As response_gram.cuh, but H comes as it is: its tile is the rows of H, read into registers once. b, w0 and the
// iterates are a few numbers a task, read and written by the thread whose task it is. Bytes per task: 4 d (d + 1) read
// (w0: 4 d more) and 4 d written for every iterate; backward 4 d (d + 1) more written. Operations: those of
// core/response_gram.h. All tensors of tasks are stored in the type that is worked in. Above d = 8, and in double, H
// lies in local memory, as there.

#pragma once

#include <type_traits>

#include "cuda/machine/stage.cuh"
#include "cuda/thread/first_order.cuh"

namespace memformer::cuda {

template <class T, class Extent>
struct QuadraticsPlan {
  Extent d;
  bool diagonal;
  int layers;
  int result_layers;
  int unit_tasks;
  int64_t tasks, units;
  TokenArray h, grad_h;
  Array b, w0, result, grad_b, grad_w0;
  Parameters parameters;
  TileLayout layout;
  MethodSpace space;
  Partials<T> partials;
  T* memory;  // for `space` of every block; null: in shared memory
};

template <class T, class Extent, bool Backward>
class QuadraticsKernel {
  using Trace = InPlaceTrace<T, Extent, warp_threads>;
  using Quadratic = core::FullQuadratic<T, Extent>;
  using Stored = std::conditional_t<sizeof(T) == 8, Double, Single>;
  static constexpr bool fixed = core::is_fixed<Extent>;
  static constexpr int arrivals_bytes = 32;

 public:
  using Arguments = QuadraticsPlan<T, Extent>;
  static constexpr int threads = tile_tasks;
  static constexpr bool in_local_memory = !fixed;
  static constexpr int blocks_of_multiprocessor = fixed && Extent::limit <= 5 ? 16 : 8;

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
    tile.make();
    if (Backward && block.index() == 0 && block.thread() == 0) *call.partials.arrivals = 0;
    block.sync();
    start(call, tile, block.index() * call.unit_tasks);
    const auto method =
        load_method<0>(block, call.parameters, call.space, call.layers, 1, call.diagonal, call.d, memory);
    block.sync();
    each_tile(block, call.tasks, call.unit_tasks, call.space, memory, call.partials,
              [&](int64_t first, int64_t next, T* totals) {
                one_tile(call, block, tile, method, memory, first, next, totals);
              });
  }

 private:
  static MEMFORMER_DEVICE int tasks_from(const Arguments& call, int64_t first) {
    const int most = call.unit_tasks < tile_tasks ? call.unit_tasks : tile_tasks;
    return call.tasks - first < most ? static_cast<int>(call.tasks - first) : most;
  }

  template <class Tile>
  static MEMFORMER_DEVICE void start(const Arguments& call, Tile& tile, int64_t first) {
    if (first < call.tasks) tile.start(call.h, first, tasks_from(call, first), 0, call.d);
  }

  // Numbers of one task: of a vector (B, d), or of an iterate (layers, B, d).
  static MEMFORMER_DEVICE T& number(const Array& array, int64_t task, int c) {
    return static_cast<T*>(array.data)[task * array.stride[0] + c * array.stride[1]];
  }
  static MEMFORMER_DEVICE T& iterate(const Array& array, int layer, int64_t task, int c) {
    return static_cast<T*>(array.data)[layer * array.stride[0] + task * array.stride[1] + c * array.stride[2]];
  }

  template <class Block, class Tile, class Method>
  static MEMFORMER_DEVICE void one_tile(const Arguments& call, const Block& block, Tile& tile, const Method& method,
                                        T* memory, int64_t first, int64_t next, T* totals) {
    const int d = call.d, layers = call.layers, first_layer = layers - call.result_layers;
    const int tasks = tasks_from(call, first);
    const int64_t task = first + block.thread();
    const bool real = block.thread() < tasks;

    Quadratic quadratic;
    quadratic.extent = call.d;
    T s[Extent::limit];
    MEMFORMER_UNROLL
    for (int c = 0; c < d; ++c) {
      quadratic.b[c] = real ? number(call.b, task, c) : T(0);
      s[c] = real && call.w0.data ? -number(call.w0, task, c) : T(0);
    }
    tile.wait();
    MEMFORMER_UNROLL
    for (int r = 0; r < d; ++r) {
      T row[Extent::limit];
      read_row(Stored{}, tile.task() + r * call.layout.row_bytes, call.d, row);
      MEMFORMER_UNROLL
      for (int c = 0; c < d; ++c) quadratic.h[r * d + c] = real ? row[c] : T(0);
    }
    const bool keeps_tile = Backward && call.grad_h.data;
    if (!keeps_tile) {
      block.sync();
      start(call, tile, next);
    }

    const Trace trace{{memory + call.space.trace + block.thread()}, layers, 1, call.d, true};
    core::response_forward<true>(quadratic, method, s, trace);
    if constexpr (!Backward) {
#pragma unroll 1
      for (int l = first_layer; real && l < layers; ++l) {
        const auto state = trace.state(l + 1);
        MEMFORMER_UNROLL
        for (int c = 0; c < d; ++c) iterate(call.result, l - first_layer, task, c) = -state[c];
      }
      block.sync();
    } else {
      const int gamma_start = static_cast<int>(call.parameters.q.count());
      TaskSums<T, Extent, Block> sums{block,
                                      call.d,
                                      1,
                                      layers,
                                      gamma_start,
                                      gamma_start + static_cast<int>(call.parameters.gamma.count()),
                                      call.partials.count - 1,
                                      totals,
                                      memory + call.space.slot_cells,
                                      trace.memory(0, 0),
                                      trace.residual(0)};
      Quadratic grad;
      grad.extent = call.d;
      MEMFORMER_UNROLL
      for (int k = 0; k < d * d; ++k) grad.h[k] = T(0);
      MEMFORMER_UNROLL
      for (int c = 0; c < d; ++c) grad.b[c] = T(0);
      core::response_backward<true>(
          quadratic, method, trace,
          [&](int l, T* ds) {
            if (l < first_layer || !real) return;
            MEMFORMER_UNROLL
            for (int c = 0; c < d; ++c) ds[c] -= iterate(call.result, l - first_layer, task, c);
          },
          sums, s, &grad);
      sums.finish();
      MEMFORMER_UNROLL
      for (int c = 0; c < d; ++c) {
        if (real && call.grad_b.data) number(call.grad_b, task, c) = grad.b[c];
        if (real && call.grad_w0.data) number(call.grad_w0, task, c) = -s[c];
      }
      if (keeps_tile) {
        MEMFORMER_UNROLL
        for (int r = 0; r < d; ++r) {
          MEMFORMER_UNROLL
          for (int c = 0; c < d; ++c) {
            if (real) reinterpret_cast<T*>(tile.task() + r * call.layout.row_bytes)[c] = grad.h[r * d + c];
          }
        }
        block.fence_copies();
        block.sync();
        tile.write(call.grad_h, first, tasks, 0, call.d);
        block.sync();
        start(call, tile, next);
      }
    }
  }
};

template <class T, class Extent>
QuadraticsPlan<T, Extent> quadratics_plan(const Quadratics<T>& call, const Parameters& parameters, Extent d) {
  QuadraticsPlan<T, Extent> plan{};
  plan.d = d;
  plan.diagonal = call.diagonal;
  plan.layers = call.layers;
  plan.result_layers = call.result_layers;
  plan.unit_tasks = tasks_of_unit(call.tasks, call.backward);
  plan.tasks = call.tasks;
  plan.units = divided_up(call.tasks, plan.unit_tasks);
  plan.h = token_array(call.h, call.weights);
  plan.grad_h = token_array(call.grad_h, call.weights);
  plan.b = call.b;
  plan.w0 = call.w0;
  plan.result = call.result;
  plan.grad_b = call.grad_b;
  plan.grad_w0 = call.grad_w0;
  plan.parameters = parameters;
  plan.layout = tile_layout(call.weights, call.weights, plan.h.number_bytes);
  plan.space =
      method_space(parameters, d, call.backward ? sum_count(parameters) : 0, trace_cells(call.layers, 1, d, true));
  return plan;
}

template <class T, class Extent>
bool fits_shared(const QuadraticsPlan<T, Extent>& plan) {
  return plan.layout.bytes(tile_tasks) + 64 + plan.space.count * static_cast<int64_t>(sizeof(T)) <= most_shared;
}

// Bytes of scratch: partial sums, then what does not fit in shared memory, for as many blocks as may run at a time.
template <class T>
int64_t quadratics_bytes(const Quadratics<T>& call, const Parameters& parameters) {
  const auto plan = quadratics_plan(call, parameters, core::UpTo<16>{call.weights});
  return (call.backward ? partials_bytes<T>(call.tasks, plan.unit_tasks, sum_count(parameters)) : 0) +
         (fits_shared(plan) ? 0 : blocks_in_global_memory * plan.space.count * static_cast<int64_t>(sizeof(T)));
}

// A whole call, on a machine that runs kernels.
template <class T, class Extent, class Machine>
int run_quadratics(const Quadratics<T>& call, const Parameters& parameters, void* scratch, const Machine& machine,
                   Extent d) {
  auto plan = quadratics_plan(call, parameters, d);
  int64_t bytes = 0;
  if (call.backward) {
    plan.partials = partials_in<T>(scratch, call.tasks, plan.unit_tasks, sum_count(parameters));
    bytes = partials_bytes<T>(call.tasks, plan.unit_tasks, sum_count(parameters));
  }
  int64_t blocks = plan.units;
  if (!fits_shared(plan)) {
    plan.memory = reinterpret_cast<T*>(static_cast<char*>(scratch) + bytes);
    blocks = blocks < blocks_in_global_memory ? blocks : blocks_in_global_memory;
  }
  if (!call.backward) {
    using Kernel = QuadraticsKernel<T, Extent, false>;
    return machine.template run<Kernel>(plan, blocks, Kernel::shared_bytes(plan));
  }
  using Kernel = QuadraticsKernel<T, Extent, true>;
  const int error = machine.template run<Kernel>(plan, blocks, Kernel::shared_bytes(plan));
  return error ? error : machine.totals(plan.partials, parameters, call.tasks, 0.0);
}

}  // namespace memformer::cuda
