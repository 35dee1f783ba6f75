// A response-only network of 9 to 16 features on a machine that runs kernels: which calls are split over lanes, and
// how.

#pragma once

#include "cuda/team/split_gram.cuh"

namespace memformer::cuda {

// Everything about a call but where it runs.
template <class T>
SplitGramCall<T> split_gram_call(const Network<T>& network, const Parameters& parameters) {
  SplitGramCall<T> call{};
  call.d = network.width - 1;
  call.loss = is_loss(network);
  call.diagonal = network.diagonal;
  call.layers = network.layers;
  call.tokens = network.tokens;
  call.context = network.lengths ? network.tokens - network.queries : network.context;
  call.queries = network.queries;
  call.sum_numbers = static_cast<int>(sum_count(parameters));
  call.unit_tasks = unit_of(network.tasks);
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

// Calls run(tag) with the instance for d features.
template <class T, class Run>
int with_split(int d, Run run) {
  return d <= 12 ? run(KernelTag<SplitGram<T, 3>>{}) : run(KernelTag<SplitGram<T, 4>>{});
}

// Whether a call is one of these: gradients of parameters alone, from the last layer's predictions, of one register a
// layer, whose tokens fit in shared memory.
template <class T>
bool fits_split(const Network<T>& network, const Parameters& parameters) {
  if (network.width <= 9 || network.width > 17 || !is_backward(network) || network.grad_z.data) return false;
  if (network.queries < 0 || network.result_layers != 1 || network.kept != 1) return false;
  return with_split<T>(network.width - 1, [&](auto tag) {
    return decltype(tag)::type::shared_bytes(split_gram_call(network, parameters)) <= most_shared ? 1 : 0;
  });
}

template <class T>
int64_t split_gram_bytes(const Network<T>& network, const Parameters& parameters) {
  return partials_bytes<T>(network.tasks, unit_of(network.tasks), sum_count(parameters));
}

// A whole call, on a machine that runs kernels.
template <class T, class Machine>
int run_split_gram(const Network<T>& network, const Parameters& parameters, void* scratch, const Machine& machine) {
  if (network.tasks == 0) return 0;
  SplitGramCall<T> call = split_gram_call(network, parameters);
  call.partials = partials_in<T>(scratch, network.tasks, call.unit_tasks, sum_count(parameters));
  return with_split<T>(call.d, [&](auto tag) {
    using Kernel = typename decltype(tag)::type;
    const int error = machine.template run<Kernel>(call, call.units, Kernel::shared_bytes(call));
    return error ? error : machine.totals(call.partials, parameters, network.tasks, loss_scale(network));
  });
}

}  // namespace memformer::cuda
