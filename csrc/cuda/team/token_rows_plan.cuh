// A response-only network with a gamma for every token on a machine that runs kernels: which calls have their rows in
// registers, and how.

#pragma once

#include "cuda/team/token_rows.cuh"

namespace memformer::cuda {

// Tasks below which 8 lanes have each: a warp for every 8 of them would leave
// multiprocessors of an H200 without one.
constexpr int64_t few_row_tasks = 4 * 8 * 132;

// Calls run(tag) with the instance that serves a call, if there is one for its
// d, context and queries: 4 lanes of 5 rows where registers suffice and there
// are many tasks, else 8 lanes of 3.
template <class T, class Run>
int with_rows(const Network<T>& network, int otherwise, Run run) {
  const int context = Rows<T>(network).context;
  const auto with = [&](auto extent) {
    constexpr int d = decltype(extent)::limit;
    using Eight = TokenRows<T, core::Fixed<d>, 8, 3>;
    if constexpr (d <= 6) {
      using Four = TokenRows<T, core::Fixed<d>, 4, 5>;
      if (network.tasks >= few_row_tasks && context <= Four::most_context && network.queries <= Four::most_queries) {
        return run(KernelTag<Four>{});
      }
    }
    return context <= Eight::most_context && network.queries <= Eight::most_queries ? run(KernelTag<Eight>{})
                                                                                    : otherwise;
  };
  switch (network.width) {
    case 3: return with(core::Fixed<2>{});
    case 4: return with(core::Fixed<3>{});
    case 5: return with(core::Fixed<4>{});
    case 6: return with(core::Fixed<5>{});
    case 7: return with(core::Fixed<6>{});
    case 8: return with(core::Fixed<7>{});
    case 9: return with(core::Fixed<8>{});
    default: return otherwise;
  }
}

// Everything about a call but where it runs.
template <class T>
TokenRowsCall<T> token_rows_call(const Network<T>& network, const Parameters& parameters, int at_once) {
  TokenRowsCall<T> call{};
  const Rows<T> rows(network);
  call.loss = is_loss(network);
  call.layers = network.layers;
  call.tokens = network.tokens;
  call.context = rows.context;
  call.queries = network.queries;
  call.gamma_rows = network.gamma_rows;
  call.unit_tasks = unit_of(network.tasks, at_once);
  call.tasks = network.tasks;
  call.units = divided_up(network.tasks, call.unit_tasks);
  call.error_scale = error_scale(network);
  call.lengths = network.lengths;
  call.z = token_array(network.z, network.width);
  call.result = network.result;
  call.target = network.target;
  call.grad_target = network.grad_target;
  call.parameters = parameters;
  call.layout = tile_layout(network.tokens, network.width, call.z.number_bytes);
  return call;
}

// Whether a call is one of these: gradients of parameters alone, from the last
// layer's predictions, one register a layer and a gamma for each layer,
// register and token; and whether there is an instance for it.
template <class T>
bool fits_rows(const Network<T>& network, const Parameters& parameters) {
  if (sizeof(T) == 8 || !is_backward(network) || network.grad_z.data) return false;
  if (network.queries < 0 || network.result_layers != 1 || network.layers > most_row_layers) return false;
  if (network.kept != 1 || network.diagonal || !parameters.gamma.present || parameters.beta.present) return false;
  if (network.gamma_rows == 1) return false;
  return with_rows(network, 0, [&](auto tag) {
    using Kernel = typename decltype(tag)::type;
    const TokenRowsCall<T> call = token_rows_call(network, parameters, Kernel::tasks_at_once);
    return Kernel::shared_bytes(call) <= most_shared ? 1 : 0;
  });
}

template <class T>
int64_t token_rows_bytes(const Network<T>& network, const Parameters& parameters) {
  int at_once = 0;
  with_rows(network, 0, [&](auto tag) { return at_once = decltype(tag)::type::tasks_at_once; });
  return partials_bytes<T>(network.tasks, unit_of(network.tasks, at_once), sum_count(parameters));
}

// A whole call, on a machine that runs kernels.
template <class T, class Machine>
int run_token_rows(const Network<T>& network, const Parameters& parameters, void* scratch, const Machine& machine) {
  if (network.tasks == 0) return 0;
  return with_rows(network, -1, [&](auto tag) {
    using Kernel = typename decltype(tag)::type;
    TokenRowsCall<T> call = token_rows_call(network, parameters, Kernel::tasks_at_once);
    call.partials = partials_in<T>(scratch, network.tasks, call.unit_tasks, sum_count(parameters));
    const int error = machine.template run<Kernel>(call, call.units, Kernel::shared_bytes(call));
    return error ? error : machine.totals(call.partials, parameters, network.tasks, loss_scale(network));
  });
}

}  // namespace memformer::cuda
