// A network's call whose context's tokens have weights: the Gram matrices are summed before the network runs, and what
// reaches tokens and weights through them is made of their gradients after it.

#pragma once

#include "binding/network.h"
#include "cpu/scratch.h"

namespace memformer::binding {

// Weights (B, N) as rows of one number.
inline Array as_rows(Array weights) {
  weights.stride[2] = 1;
  return weights;
}

// Runs a call in Gram space whose pass, results and other gradients are set.
template <class T>
void run_weighted(NetworkCall<T>& call, const Tensor& weights, const MaybeTensor& grad_weights) {
  Network<T>& network = call.network;
  const bool wanted = network.grad_z.data || grad_weights;
  const int64_t width = network.width, entries = width * width;
  const cpu::Memory memory((wanted ? 2 : 1) * network.tasks * entries * sizeof(T));
  T* const matrices = static_cast<T*>(memory.data());
  const auto matrix = [&](T* first) -> Array {
    return {first, sizeof(T) == 8 ? Storage::float64 : Storage::float32, {entries, width, 1}};
  };
  WeightedGram<T> gram{};
  gram.tasks = network.tasks;
  gram.tokens = network.tokens;
  gram.width = network.width;
  gram.context = network.lengths ? network.tokens - network.queries : network.context;
  gram.lengths = network.lengths;
  gram.z = network.z;
  gram.weights = as_rows(array_of(weights));
  gram.total = matrix(matrices);
  const auto weighted_gram = cpu::kernels<T>().weighted_gram;
  weighted_gram(gram, parallel_for);
  network.gram = gram.total;
  if (wanted) network.grad_gram = matrix(matrices + network.tasks * entries);
  call.run();
  if (!wanted) return;
  gram.backward = true;
  gram.grad_total = network.grad_gram;
  gram.grad_z = network.grad_z;
  gram.grad_weights = as_rows(array_of(grad_weights));
  weighted_gram(gram, parallel_for);
}

}  // namespace memformer::binding
