// The arguments of every operation as they come, and the sizes and arrays that kernels of any device read off them.
// What is left to each device: its parameters and its sums.

#pragma once

#include <vector>

#include "binding/sizes.h"
#include "binding/tensors.h"

namespace memformer::binding {

// Gates are already folded in.
struct NetworkArguments {
  const Tensor& z;
  const Tensor& q;
  const MaybeTensor& p;
  const MaybeTensor& gamma;
  const MaybeTensor& beta;
  const MaybeTensor& lengths;
  int64_t context;
  bool gram_space;
  int64_t queries;
};

struct LayerArguments {
  const Tensor& z;
  const Tensor& q;
  const MaybeTensor& p;
  const std::vector<Tensor>& registers;
  const MaybeTensor& gamma;
  const MaybeTensor& beta;
  const MaybeTensor& lengths;
  int64_t context;
};

// gamma (L, L or 1, ...) and beta come with axes [l, j, 1, 1, d] and [l, 1, 1, d].
struct QuadraticsArguments {
  const Tensor& h;
  const Tensor& b;
  const Tensor& a;
  const MaybeTensor& gamma;
  const MaybeTensor& beta;
  const MaybeTensor& w0;
};

// What steps end in, or where its gradients go, each with axes [l, 1, 1, d], of a radius [l, 1, 1, 1]; absent where
// there is none.
struct ProximalArguments {
  const MaybeTensor& level;
  const MaybeTensor& lower;
  const MaybeTensor& upper;
  const MaybeTensor& radius;
};

// Where the gradients of the parameters go; those that are not wanted are absent.
struct ParameterGrads {
  const MaybeTensor& q;
  const MaybeTensor& p;
  const MaybeTensor& gamma;
  const MaybeTensor& beta;

  bool any() const { return q || p || gamma || beta; }
};

// Which tokens a row of the kernel's stands for: those of the context and, behind them, the queries.
struct Rows {
  int count;
  int context;
  int first_query;

  int token(int row) const { return row < context ? row : first_query + row - context; }
};

// Calls body with a double for float64 tokens, else with a float.
template <class Body>
void with_compute_type(const Tensor& z, Body body) {
  if (storage_of(z) == Storage::float64) {
    body(double{});
  } else {
    body(float{});
  }
}

// One register a head where a coefficient has a head axis, else one for the sum over heads.
inline int kept_heads(int heads, const MaybeTensor& gamma, const MaybeTensor& beta) {
  const auto per_head = [](const MaybeTensor& x) { return x && x->dim() >= 3 && x->size(x->dim() - 3) > 1; };
  return per_head(gamma) || per_head(beta) ? heads : 1;
}

// The rows a coefficient has entries for: `rows`, or one that all of them share.
inline int rows_of_coefficient(const MaybeTensor& given, int rows) {
  return !given || given->dim() < 2 || given->size(given->dim() - 2) == 1 ? 1 : rows;
}

inline const int64_t* lengths_of(const MaybeTensor& lengths, int64_t tokens) {
  if (!lengths) return nullptr;
  if (tokens > most_ragged) refuse_size("the tokens of ragged contexts", tokens, most_ragged);
  return static_cast<const int64_t*>(lengths->data_ptr());
}

template <class T>
Rows rows_of(const Network<T>& network) {
  if (network.lengths || network.queries < 0) return {network.tokens, network.tokens, network.tokens};
  return {network.context + network.queries, network.context, network.tokens - network.queries};
}

inline bool is_response_only(const NetworkArguments& given) { return !given.p && given.q.size(3) != given.z.size(2); }

template <class T>
Network<T> network_of(const NetworkArguments& given) {
  const int width = narrow(given.z.size(2), "z"), heads = narrow(given.q.size(1), "q");
  const bool block_q = given.q.size(3) != width;
  Network<T> network{};
  network.gram_space = given.gram_space;
  network.block = given.p && block_q && given.p->size(3) != width;
  network.tasks = given.z.size(0);
  network.tokens = narrow(given.z.size(1), "z");
  narrow_product({given.z.size(1), given.z.size(2)}, "z's numbers a task");
  network.width = width;
  network.layers = narrow(given.q.size(0), "q");
  network.kept = kept_heads(heads, given.gamma, given.beta);
  network.heads = is_response_only(given) ? network.kept : heads;
  network.context = narrow(given.context, "context");
  network.queries = narrow(given.queries, "queries");
  network.lengths = lengths_of(given.lengths, given.z.size(1));
  network.z = array_of(given.z);
  network.result_layers = 1;
  network.diagonal = !given.gamma || given.gamma->dim() == 4;
  const Rows rows = rows_of(network);
  network.gamma_rows = rows_of_coefficient(given.gamma, rows.count);
  network.beta_rows = rows_of_coefficient(given.beta, rows.count);
  return network;
}

template <class T>
Gram<T> gram_of(const Tensor& z, const MaybeTensor& lengths, int64_t context, const Tensor& matrix) {
  Gram<T> call{};
  call.tasks = z.size(0);
  call.tokens = narrow(z.size(1), "z");
  call.width = narrow(z.size(2), "z");
  narrow_product({z.size(1), z.size(2)}, "z's numbers a task");
  call.context = narrow(context, "context");
  call.lengths = lengths_of(lengths, z.size(1));
  call.z = array_of(z);
  call.matrix = array_of(matrix);
  return call;
}

// `result` is the iterates, or their gradient.
template <class T>
Quadratics<T> quadratics_of(const QuadraticsArguments& given, const Tensor& result) {
  Quadratics<T> call{};
  call.tasks = given.h.size(0);
  call.weights = narrow(given.a.size(1), "a");
  call.layers = narrow(given.a.size(0), "a");
  call.h = array_of(given.h);
  call.b = array_of(given.b);
  call.w0 = array_of(given.w0);
  call.result = array_of(result);
  call.result_layers = narrow(result.size(0), "result");
  return call;
}

// Without the registers, which the caller keeps.
template <class T>
Layer<T> layer_of(const LayerArguments& given) {
  const int heads = narrow(given.q.size(0), "q"), tokens = narrow(given.z.size(1), "z");
  Layer<T> call{};
  call.tasks = given.z.size(0);
  call.tokens = tokens;
  call.width = narrow(given.z.size(2), "z");
  narrow_product({given.z.size(1), given.z.size(2)}, "z's numbers a task");
  call.heads = heads;
  call.kept = kept_heads(heads, given.gamma, given.beta);
  call.earlier = narrow(static_cast<int64_t>(given.registers.size()), "registers");
  call.context = narrow(given.context, "context");
  call.lengths = lengths_of(given.lengths, given.z.size(1));
  call.gamma_rows = rows_of_coefficient(given.gamma, tokens);
  call.beta_rows = call.earlier ? rows_of_coefficient(given.beta, tokens) : 1;
  call.z = array_of(given.z);
  return call;
}

inline std::vector<Registers> registers_of(const std::vector<Tensor>& tensors) {
  std::vector<Registers> made;
  for (const Tensor& one : tensors) made.push_back(registers_of(one));
  return made;
}

// One place a register of a layer, in order: those that are wanted take the next tensor, the others have no data.
inline std::vector<Registers> wanted_registers(const std::vector<Tensor>& tensors, const std::vector<bool>& wanted) {
  std::vector<Registers> places(wanted.size());
  for (std::size_t k = 0, next = 0; k < wanted.size(); ++k) {
    if (wanted[k]) places[k] = registers_of(tensors[next++]);
  }
  return places;
}

}  // namespace memformer::binding
