// One layer on tokens on a GPU, with the registers of the layers before it: a team of 4 lanes (D <= 6 in float) or 16
// (D <= 16) to a task.
//
// Who owns what: team.cuh. Bytes per task: its tokens and J + 1 layers' registers, read or written once, and as much
// again for their gradients. Cells in shared memory: (J + 3) N D forward, (2 J + 4) N D backward, one register a
// layer, and 6 D^2. Operations per task: those of core/layer.h.

#pragma once

#include "core/layer.h"
#include "cuda/team/team_plan.cuh"

namespace memformer::cuda {

// Layers before that a call may bring registers of: their places travel with the launch.
constexpr int most_earlier = 32;

// What the kernel is told; the pointers to parameters and registers in `layer` are not used.
template <class T>
struct TeamLayer {
  Layer<T> layer;
  core::Parameters<T> parameters;
  TeamPlan<T> plan;
  Registers registers[most_earlier];
  Registers grad_registers[most_earlier];
};

template <class T, int Tile, int Grid, bool InShared>
struct OneLayer {
  using Arguments = TeamLayer<T>;
  static_assert(sizeof(Arguments) <= 4096, "what a launch takes as arguments");
  static constexpr int threads = warp_threads;
  static constexpr int blocks_of_multiprocessor = team_blocks<T, Tile, Grid>;

  static int64_t cells(const Layer<T>& layer) {
    const int64_t registers = (layer.earlier + 1) * static_cast<int64_t>(layer.kept);
    const int64_t square = static_cast<int64_t>(layer.width) * layer.width;
    return (2 + registers * (layer.backward ? 2 : 1)) * layer.tokens * layer.width + (layer.backward ? 6 : 3) * square;
  }

  template <class Block>
  static MEMFORMER_DEVICE void run(const Arguments& arguments, const Block& block) {
    using Mates = CellsOf<Block, InShared>;
    using Team = Spread<Mates, Tile, Grid>;
    const Team team{Mates{block}, arguments.layer.width};
    run_units<InShared, T>(team, arguments.plan, [&](Task task, Cells<T, Team::tasks> cells, T* sums, T*) {
      run_tasks(arguments, team, task, cells, sums);
    });
  }

 private:
  template <class Team>
  static MEMFORMER_DEVICE void run_tasks(const Arguments& arguments, const Team& team, Task task,
                                         Cells<T, Team::tasks> tokens, T* sums) {
    using TaskCells = Cells<T, Team::tasks>;
    const Layer<T>& layer = arguments.layer;
    const core::Shape<false, Team> shape{team};
    const int size = layer.tokens * layer.width, per_layer = layer.kept * size;
    const int registers = (layer.earlier + 1) * per_layer;
    const TaskCells next = tokens.at(size), memory = next.at(size), memory_grad = memory.at(registers);
    const TaskCells work = layer.backward ? memory_grad.at(registers) : memory_grad;

    const T count = labelled_count<T>(layer.lengths, layer.context, task);
    const core::Labelled<T> labelled{layer.context, layer.lengths != nullptr, count, T(1) / count};
    load_rows(team, layer.z, task, 0, layer.tokens, layer.width, tokens);
    for (int j = 0; j < layer.earlier; ++j) load(layer, team, arguments.registers[j], task, memory.at(j * per_layer));
    const TaskCells fresh = memory.at(layer.earlier * per_layer);
    core::layer_forward(shape, arguments.parameters, labelled, layer.tokens, tokens, memory, next, work);
    if (!layer.backward) {
      store_rows(team, next, layer.result, task, 0, layer.tokens, layer.width);
      store(layer, team, fresh, layer.fresh, task);
      return;
    }

    const TaskCells grad = next;
    load_rows(team, layer.result, task, 0, layer.tokens, layer.width, grad);
    load(layer, team, layer.fresh, task, memory_grad.at(layer.earlier * per_layer));
    core::ParameterSums<T> sink = arguments.plan.counts.from(sums);
    core::layer_backward(shape, arguments.parameters, labelled, layer.tokens, tokens, memory, grad, memory_grad, work,
                         sink);
    if (layer.grad_z.data) store_rows(team, grad, layer.grad_z, task, 0, layer.tokens, layer.width);
    for (int j = 0; j < layer.earlier; ++j) {
      if (arguments.grad_registers[j].array.data) {
        store(layer, team, memory_grad.at(j * per_layer), arguments.grad_registers[j], task);
      }
    }
  }

  // Register r of each task.
  static MEMFORMER_DEVICE Array of_head(const Registers& registers, int r) {
    Array one = registers.array;
    one.data = static_cast<char*>(one.data) + r * registers.stride * bytes_of_number(one.storage);
    return one;
  }

  template <class Team>
  static MEMFORMER_DEVICE void load(const Layer<T>& layer, const Team& team, const Registers& from, Task task,
                                    Cells<T, Team::tasks> to) {
    for (int r = 0; r < layer.kept; ++r) {
      load_rows(team, of_head(from, r), task, 0, layer.tokens, layer.width, to.at(r * layer.tokens * layer.width));
    }
  }

  template <class Team>
  static MEMFORMER_DEVICE void store(const Layer<T>& layer, const Team& team, Cells<T, Team::tasks> from,
                                     const Registers& to, Task task) {
    for (int r = 0; r < layer.kept; ++r) {
      store_rows(team, from.at(r * layer.tokens * layer.width), of_head(to, r), task, 0, layer.tokens, layer.width);
    }
  }
};

template <class T>
TeamLayout<T> layer_layout(const Layer<T>& layer, const Parameters& parameters) {
  return team_layout<T>(layer.tasks, layer.width, completed(parameters, layer.width),
                        OneLayer<T, 4, 4, false>::cells(layer), layer.backward, false);
}

// All launches of a layer's call; -1 of scratch for more registers than a launch takes.
template <class T, class Machine>
int run_team_layer(const Layer<T>& layer, const Parameters& parameters, void* scratch, const Machine& machine) {
  if (layer.tasks == 0) return 0;
  TeamLayout<T> layout = layer_layout(layer, parameters);
  T* const dense = place(layout, scratch);
  const Parameters& given = layout.dense;
  using Dense = DenseParameters<T>;
  if (const int error = machine.template run<Dense>({given, dense}, Dense::parameters, 0)) return error;
  const T* const p = dense + given.q.count();
  const T* const gamma = p + given.p.count();
  const T* const beta = given.beta.present ? gamma + given.gamma.count() : nullptr;
  TeamLayer<T> arguments{layer,
                         {{layer.earlier + 1, layer.kept, false, layer.gamma_rows, layer.beta_rows,
                           given.gamma.present ? gamma : nullptr, beta},
                          layer.heads,
                          dense,
                          p},
                         layout.plan,
                         {},
                         {}};
  for (int j = 0; j < layer.earlier; ++j) {
    arguments.registers[j] = layer.registers[j];
    if (layer.grad_registers) arguments.grad_registers[j] = layer.grad_registers[j];
  }
  const int error = with_team<T, OneLayer>(layout, [&](auto tag) {
    return machine.template run<typename decltype(tag)::type>(arguments, blocks_of(layout), layout.shared_bytes);
  });
  if (error || !layout.plan.wants_sums) return error;
  return machine.totals(layout.plan.partials, layout.summed, layer.tasks, 0.0);
}

}  // namespace memformer::cuda
