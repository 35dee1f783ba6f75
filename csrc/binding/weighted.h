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
  const int64_t tasks = network.tasks, entries = static_cast<int64_t>(network.width) * network.width;
  const cpu::Memory memory(tasks * ((wanted ? 2 : 1) * entries + 2) * sizeof(T));
  T* next = static_cast<T*>(memory.data());
  const auto place = [&](int64_t numbers, int64_t row) -> Array {
    T* const first = next;
    next += tasks * numbers;
    return {first, sizeof(T) == 8 ? Storage::float64 : Storage::float32, {numbers, row, 1}};
  };
  WeightedGram<T> gram{};
  gram.tasks = tasks;
  gram.tokens = gram.context = network.lengths ? network.tokens - network.queries : network.context;
  gram.others = network.tokens - gram.tokens;
  gram.width = network.width;
  gram.lengths = network.lengths;
  gram.z = network.z;
  gram.weights = as_rows(array_of(weights));
  gram.total = gram.matrix = place(entries, network.width);
  gram.largest = place(1, 1);
  gram.share = place(1, 1);
  const auto weighted_gram = cpu::kernels<T>().weighted_gram;
  weighted_gram(gram, parallel_for);
  network.gram = gram.total;
  if (wanted) network.grad_gram = place(entries, network.width);
  call.run();
  if (!wanted) return;
  gram.backward = true;
  gram.matrix = network.grad_gram;
  gram.grad_z = network.grad_z;
  gram.grad_weights = as_rows(array_of(grad_weights));
  weighted_gram(gram, parallel_for);
}

}  // namespace memformer::binding
