// A network's call: from the tensors of the public contract to a kernel's arguments, and its sums back to gradients.

#pragma once

#include <optional>
#include <vector>

#include "binding/parameters.h"
#include "binding/run.h"
#include "cpu/dispatch.h"

namespace memformer::binding {

// The arguments of every network operation, as they come; gates are already folded in.
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

// Where the gradients of the parameters go; those that are not wanted are absent.
struct ParameterGrads {
  const MaybeTensor& q;
  const MaybeTensor& p;
  const MaybeTensor& gamma;
  const MaybeTensor& beta;

  bool any() const { return q || p || gamma || beta; }
};

template <class T>
class NetworkCall {
 public:
  explicit NetworkCall(const NetworkArguments& given) {
    const int tokens = static_cast<int>(given.z.size(1)), width = static_cast<int>(given.z.size(2));
    const int layers = static_cast<int>(given.q.size(0)), heads = static_cast<int>(given.q.size(1));
    const bool block_q = given.q.size(3) != width;
    const bool response = !given.p && block_q;
    const bool block = given.p && block_q && given.p->size(3) != width;
    const int kept = kept_heads(heads, given.gamma, given.beta);
    const int queries = static_cast<int>(given.queries);

    network.gram_space = given.gram_space;
    network.block = block;
    network.tasks = given.z.size(0);
    network.tokens = tokens;
    network.width = width;
    network.layers = layers;
    network.heads = response ? kept : heads;
    network.kept = kept;
    network.context = static_cast<int>(given.context);
    network.queries = queries;
    network.lengths = given.lengths ? static_cast<const int64_t*>(given.lengths->data_ptr()) : nullptr;
    network.z = array_of(given.z);
    network.result_layers = 1;

    const int matrix = response || block ? width - 1 : width;
    q_form_ = {layers, heads, matrix, response && kept == 1, 0.0};
    q_.resize(q_form_.count());
    q_form_.read(given.q, q_.data());
    network.q = q_.data();
    if (!response) {
      p_form_ = {layers, heads, matrix, false, 1.0};
      p_.resize(p_form_.count());
      p_form_.read(given.p, p_.data());
      network.p = p_.data();
    }
    const bool all_rows = network.lengths || queries < 0;
    const Rows rows = all_rows ? Rows{tokens, tokens, tokens}
                               : Rows{network.context + queries, network.context, tokens - queries};
    const int first_feature = response ? width - 1 : 0;
    network.diagonal = !given.gamma || given.gamma->dim() == 4;
    network.gamma_rows = network.beta_rows = 1;
    if (given.gamma) {
      network.gamma_rows = given.gamma->size(given.gamma->dim() - 2) == 1 ? 1 : rows.count;
      gamma_form_ = {layers, !network.diagonal, kept, network.gamma_rows, first_feature, width, rows};
      gamma_.resize(gamma_form_.count());
      gamma_form_.read(*given.gamma, gamma_.data());
      network.gamma = gamma_.data();
    }
    if (given.beta) {
      network.beta_rows = given.beta->dim() < 2 || given.beta->size(given.beta->dim() - 2) == 1 ? 1 : rows.count;
      beta_form_ = {layers, false, kept, network.beta_rows, first_feature, width, rows};
      beta_.resize(beta_form_.count());
      beta_form_.read(*given.beta, beta_.data());
      network.beta = beta_.data();
    }
  }

  // Runs the kernel of this structure and space.
  void run() {
    totals_.resize(q_.size() + p_.size() + gamma_.size() + beta_.size() + 1);
    network.totals = totals_.data();
    const auto& kernels = cpu::kernels<T>();
    const bool response = !network.p;
    const auto kernel = network.gram_space ? (response ? kernels.response_gram : kernels.general_gram)
                                           : (response ? kernels.response_tokens : kernels.general_tokens);
    kernel(network, parallel_for);
  }

  // After a run that made a loss.
  double squared_error() const { return totals_.back(); }

  void write(const ParameterGrads& grads) const {
    const double* totals = totals_.data();
    if (grads.q) q_form_.write(totals, *grads.q);
    totals += q_.size();
    if (grads.p) p_form_.write(totals, *grads.p);
    totals += p_.size();
    if (grads.gamma) gamma_form_.write(totals, *grads.gamma);
    totals += gamma_.size();
    if (grads.beta) beta_form_.write(totals, *grads.beta);
  }

  Network<T> network{};

 private:
  Projections q_form_{}, p_form_{};
  Coefficients gamma_form_{}, beta_form_{};
  std::vector<T> q_, p_, gamma_, beta_;
  std::vector<double> totals_;
};

}  // namespace memformer::binding
