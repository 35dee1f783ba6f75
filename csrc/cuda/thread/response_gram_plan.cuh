// A response-only network's call on a machine that runs kernels: which kernel, how much memory, how its tasks are
// shared out.

#pragma once

#include "cuda/thread/response_gram.cuh"

namespace memformer::cuda {

// Whether a trace may live in registers: few layers with one register each, and only parameters' gradients of the last
// layer's predictions are asked for.
constexpr int layers_in_registers = 4;
template <class T>
bool in_registers(const Network<T>& network) {
  return sizeof(T) == 4 && network.layers <= layers_in_registers && network.kept == 1 && network.result_layers == 1 &&
         network.width <= 9 && (network.pass == Pass::backward || network.pass == Pass::loss_backward) &&
         !network.grad_z.data;
}

// Everything about a call but where it runs.
template <class T, class Extent>
ResponseGramCall<T, Extent> response_gram_call(const Network<T>& network, const Parameters& parameters, Extent d) {
  ResponseGramCall<T, Extent> call{};
  call.d = d;
  call.loss = network.pass == Pass::loss || network.pass == Pass::loss_backward;
  call.stack = network.queries < 0;
  call.diagonal = network.diagonal;
  call.layers = network.layers;
  call.heads = network.kept;
  call.tokens = network.tokens;
  call.queries = call.stack ? network.tokens : network.queries;
  call.context = network.lengths && !call.stack ? network.tokens - network.queries : network.context;
  call.result_layers = network.result_layers;
  call.tasks = network.tasks;
  const bool sums = network.pass != Pass::forward;
  call.unit_tasks = tasks_of_unit(network.tasks, sums);
  call.units = divided_up(network.tasks, call.unit_tasks);
  call.error_scale = static_cast<T>(2.0 / (static_cast<double>(network.tasks) * call.queries));
  call.lengths = network.lengths;
  call.z = token_array(network.z, network.width);
  call.grad_z = token_array(network.grad_z, network.width);
  call.rows = token_array(network.result, network.width);
  call.result = network.result;
  call.target = network.target;
  call.grad_target = network.grad_target;
  call.parameters = parameters;

  const int number = call.z.number_bytes;
  call.layout = tile_layout(network.tokens, network.width, number);
  call.resident = call.layout.bytes(tile_tasks) <= 48 * 1024;
  for (int rows = 32; !call.resident; rows /= 2) {
    call.layout = tile_layout(rows, network.width, number);
    if (call.layout.bytes(tile_tasks) <= 40 * 1024) break;
  }
  const bool states = network.grad_z.data || network.result_layers > 1;
  const bool registers = core::is_fixed<Extent> && in_registers(network);
  call.trace_cells = registers ? 2 * network.layers * d : trace_cells(network.layers, network.kept, d, states);
  const int with_outer = call.trace_cells + (sums ? network.result_layers * d : 0);
  int waiting = 0;
  for (int blocks = (call.context + core::gram_block - 1) / core::gram_block; blocks > 1; blocks = (blocks + 1) / 2) {
    waiting += core::packed_size(d + 1);
  }
  const int64_t sum_numbers = !sums ? 0 : network.pass == Pass::loss ? 1 : sum_count(parameters);
  call.space = method_space(parameters, d, sum_numbers, waiting > with_outer ? waiting : with_outer);
  return call;
}

// Numbers of a call that one partial sum has: none forward, one for a loss alone.
template <class T>
int64_t response_sums(const Network<T>& network, const Parameters& parameters) {
  return network.pass == Pass::forward ? 0 : network.pass == Pass::loss ? 1 : sum_count(parameters);
}

// Whether a block's parameters, sums and traces fit in shared memory beside its tile.
template <class T, class Extent>
bool fits_shared(const ResponseGramCall<T, Extent>& call) {
  return call.layout.bytes(tile_tasks) + 64 + call.space.count * static_cast<int64_t>(sizeof(T)) <= most_shared;
}

// Bytes of scratch: partial sums, then what does not fit in shared memory, for as many blocks as may run at a time.
template <class T>
int64_t response_gram_bytes(const Network<T>& network, const Parameters& parameters) {
  const auto call = response_gram_call(network, parameters, core::UpTo<16>{network.width - 1});
  const int64_t sums = response_sums(network, parameters);
  return (sums ? partials_bytes<T>(network.tasks, call.unit_tasks, sums) : 0) +
         (fits_shared(call) ? 0 : blocks_in_global_memory * call.space.count * static_cast<int64_t>(sizeof(T)));
}

// A whole call, on a machine that runs kernels.
template <class T, class Extent, class Machine>
int run_response_gram(const Network<T>& network, const Parameters& parameters, void* scratch, const Machine& machine,
                      Extent d) {
  auto call = response_gram_call(network, parameters, d);
  const int64_t sums = response_sums(network, parameters);
  if (sums) call.partials = partials_in<T>(scratch, network.tasks, call.unit_tasks, sums);
  int64_t blocks = call.units;
  if (!fits_shared(call)) {
    call.memory = reinterpret_cast<T*>(static_cast<char*>(scratch) +
                                       (sums ? partials_bytes<T>(network.tasks, call.unit_tasks, sums) : 0));
    blocks = blocks < blocks_in_global_memory ? blocks : blocks_in_global_memory;
  }
  const auto run = [&](auto kernel) {
    using Kernel = decltype(kernel);
    return machine.template run<Kernel>(call, blocks, Kernel::shared_bytes(call));
  };
  const auto run_parameters = [&] {
    if constexpr (core::is_fixed<Extent>) {
      if (in_registers(network)) return run(ResponseGram<T, Extent, Work::parameters, layers_in_registers>{});
    }
    return run(ResponseGram<T, Extent, Work::parameters>{});
  };
  const bool forward = network.pass == Pass::forward || network.pass == Pass::loss;
  const int error = forward ? run(ResponseGram<T, Extent, Work::forward>{}) : run_parameters();
  if (error || !sums) return error;
  Parameters wanted = parameters;
  if (network.pass == Pass::loss) wanted.q = wanted.p = wanted.gamma = wanted.beta = {};
  return machine.totals(call.partials, wanted, network.tasks,
                        1.0 / (static_cast<double>(network.tasks) * call.queries));
}

}  // namespace memformer::cuda
