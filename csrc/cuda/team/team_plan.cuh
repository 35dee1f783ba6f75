// How a call of teams is laid out: units of tasks, the place of its sums, cells and dense parameters. Arithmetic on
// sizes.

#pragma once

#include <initializer_list>

#include "cuda/team/dense.cuh"
#include "cuda/team/team_run.cuh"

namespace memformer::cuda {

// Cells of a block that stay in shared memory, in bytes: with the sums, what a block may have on any device from
// sm_80 on.
constexpr int64_t resident_bytes = 80 * 1024;
// Sums of a block that lie in shared memory, in bytes.
constexpr int64_t shared_sums_bytes = 16 * 1024;
// Blocks that cells in device memory are provided for.
constexpr int64_t most_working_blocks = 1024;

// Tasks of a unit: few enough that units fill an H200, eight for each of its multiprocessors, and then many enough that
// their sums are small beside the tokens. No fewer than `least`, which may leave lanes of a warp idle.
inline int unit_of(int64_t tasks, int least = 4) {
  int unit = least;
  while (unit < block_tasks && tasks >= int64_t{2 * 8 * 132} * unit) unit *= 2;
  return unit;
}

// The teams' own form of the projections: dense D x D, completed with zeros and, for P, a one in the corner.
inline Parameters completed(Parameters parameters, int width) {
  for (Parameter* projection : {&parameters.q, &parameters.p}) {
    projection->size[3] = projection->size[4] = width;
    projection->matrix = true;
  }
  parameters.q.corner = 0.0f;
  parameters.p.corner = 1.0f;
  return parameters;
}

template <class T>
struct TeamLayout {
  Parameters dense;   // as the kernels take them
  Parameters summed;  // those of them that the call has sums of
  TeamPlan<T> plan;
  bool resident;
  int team_tasks;  // of a block
  int64_t units;
  int64_t shared_bytes;
  int64_t dense_offset;
  int64_t bytes;  // of scratch
};

inline int64_t rounded_up(int64_t bytes) { return (bytes + 255) / 256 * 256; }

// `team_tasks` tasks of `cells` cells each in a block; `backward`: sums of all parameters, `loss`: the squared error.
template <class T>
TeamLayout<T> team_layout(int64_t tasks, const Parameters& dense, int64_t cells, int team_tasks, bool backward,
                          bool loss) {
  TeamLayout<T> made{};
  made.dense = dense;
  if (backward) made.summed = dense;
  made.summed.loss = loss ? dense.loss : nullptr;
  TeamPlan<T>& plan = made.plan;
  plan.tasks = tasks;
  plan.unit_tasks = unit_of(tasks);
  plan.cells = static_cast<int>(cells);
  plan.wants_sums = backward || loss;
  made.units = divided_up(tasks, plan.unit_tasks);
  const int64_t count = plan.wants_sums ? sum_count(made.summed) : 0;
  const int64_t sums_bytes = count * static_cast<int64_t>(sizeof(T));
  plan.shared_sums = plan.wants_sums && sums_bytes <= shared_sums_bytes;
  if (backward) {
    plan.counts = {static_cast<int>(dense.q.count()), static_cast<int>(dense.p.count()),
                   static_cast<int>(dense.gamma.count()), static_cast<int>(dense.beta.count())};
  }
  const int64_t cell_bytes = cells * team_tasks * static_cast<int64_t>(sizeof(T));
  made.resident = cell_bytes <= resident_bytes;
  made.team_tasks = team_tasks;
  made.shared_bytes = (plan.shared_sums ? sums_bytes : 0) + (made.resident ? cell_bytes : 0);
  made.dense_offset = plan.wants_sums ? partials_bytes<T>(tasks, plan.unit_tasks, count) : 0;
  const int64_t entries = dense.q.count() + dense.p.count() + dense.gamma.count() + dense.beta.count();
  made.bytes = made.dense_offset + rounded_up(entries * static_cast<int64_t>(sizeof(T)));
  if (!made.resident) {
    plan.block_cells = rounded_up(cell_bytes) / static_cast<int64_t>(sizeof(T));
    const int64_t blocks = made.units < most_working_blocks ? made.units : most_working_blocks;
    made.bytes += blocks * plan.block_cells * static_cast<int64_t>(sizeof(T));
  }
  return made;
}

// Puts the layout into its scratch memory; returns where the dense parameters go.
template <class T>
T* place(TeamLayout<T>& layout, void* scratch) {
  char* const start = static_cast<char*>(scratch);
  if (layout.plan.wants_sums) {
    layout.plan.partials = partials_in<T>(scratch, layout.plan.tasks, layout.plan.unit_tasks, sum_count(layout.summed));
  }
  T* const dense = reinterpret_cast<T*>(start + layout.dense_offset);
  const Parameters& given = layout.dense;
  const int64_t entries = given.q.count() + given.p.count() + given.gamma.count() + given.beta.count();
  if (!layout.resident) {
    const int64_t dense_bytes = rounded_up(entries * static_cast<int64_t>(sizeof(T)));
    layout.plan.work = reinterpret_cast<T*>(start + layout.dense_offset + dense_bytes);
  }
  return dense;
}

// Work for a grid: its blocks take units in turn.
template <class T>
int64_t blocks_of(const TeamLayout<T>& layout) {
  return !layout.resident && layout.units > most_working_blocks ? most_working_blocks : layout.units;
}

// The parameters of a network as its kernels read them.
template <class T>
core::Parameters<T> network_parameters(const Network<T>& network, const Parameters& dense, const T* at) {
  const T* const p = at + dense.q.count();
  const T* const gamma = p + dense.p.count();
  return {{network.layers, network.kept, network.diagonal, network.gamma_rows, network.beta_rows,
           dense.gamma.present ? gamma : nullptr, dense.beta.present ? gamma + dense.gamma.count() : nullptr},
          network.heads,
          at,
          p};
}

template <class T>
double loss_scale(const Network<T>& network) {
  return is_loss(network) ? 1.0 / (static_cast<double>(network.tasks) * network.queries) : 0.0;
}

template <class T>
T error_scale(const Network<T>& network) {
  return static_cast<T>(2.0 * loss_scale(network));
}

// Double has one size of team for all: half as much to compile, for what is used to check the rest.
template <class T>
constexpr bool small_teams = sizeof(T) == 4;

// A kernel's type as a value.
template <class Kernel>
struct KernelTag {
  using type = Kernel;
};

// Calls body(tag) with the instance that serves a layout: one for D <= 6 in float, and one for all the rest.
template <class T, template <class, int, int, bool> class Kernel, class Body>
int with_team(const TeamLayout<T>& layout, Body body) {
  if constexpr (small_teams<T>) {
    if (layout.team_tasks > 2) return body(KernelTag<Kernel<T, 3, 2, true>>{});
  }
  return body(KernelTag<Kernel<T, 4, 4, false>>{});
}

// Teams of 4 lanes up to D = 6 in float, of 16 above and where 8 tasks do not fit in a block's shared memory.
template <class T>
TeamLayout<T> team_layout(int64_t tasks, int width, const Parameters& dense, int64_t cells, bool backward, bool loss) {
  if (small_teams<T> && width <= 6) {
    const TeamLayout<T> layout = team_layout<T>(tasks, dense, cells, 8, backward, loss);
    if (layout.resident) return layout;
  }
  return team_layout<T>(tasks, dense, cells, 2, backward, loss);
}

template <class T, template <class, int, int, bool> class Kernel>
TeamLayout<T> network_layout(const Network<T>& network, const Parameters& parameters) {
  const int64_t cells = Kernel<T, 4, 4, false>::cells(network, parameters);
  return team_layout<T>(network.tasks, network.width, completed(parameters, network.width), cells, is_backward(network),
                        is_loss(network));
}

// All launches of a network's call. A machine has run<Kernel>(arguments, work, shared_bytes) and totals(...).
template <class T, template <class, int, int, bool> class Kernel, class Machine>
int run_team_network(const Network<T>& network, const Parameters& parameters, void* scratch, const Machine& machine) {
  if (network.tasks == 0) return 0;
  TeamLayout<T> layout = network_layout<T, Kernel>(network, parameters);
  T* const dense = place(layout, scratch);
  using Dense = DenseParameters<T>;
  if (const int error = machine.template run<Dense>({layout.dense, dense}, Dense::parameters, 0)) return error;
  const TeamNetwork<T> arguments{network, network_parameters(network, layout.dense, dense), layout.plan,
                                 error_scale(network)};
  const int error = with_team<T, Kernel>(layout, [&](auto tag) {
    return machine.template run<typename decltype(tag)::type>(arguments, blocks_of(layout), layout.shared_bytes);
  });
  if (error || !layout.plan.wants_sums) return error;
  return machine.totals(layout.plan.partials, layout.summed, network.tasks, loss_scale(network));
}

}  // namespace memformer::cuda
