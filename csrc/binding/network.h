// A network's call: from the tensors of the public contract to a kernel's arguments, and its sums back to gradients.

#pragma once

#include <algorithm>
#include <optional>
#include <vector>

#include "binding/parameters.h"
#include "binding/run.h"
#include "binding/sizes.h"
#include "cpu/dispatch.h"

namespace memformer::binding {

template <class T>
class NetworkCall {
 public:
  explicit NetworkCall(const NetworkArguments& given) {
    network = network_of<T>(given);
    const bool response = is_response_only(given);
    const int layers = network.layers, width = network.width, kept = network.kept;
    const int heads = narrow(given.q.size(1), "q"), matrix = response || network.block ? width - 1 : width;
    check_counts(heads, matrix, response);
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
    const Rows rows = rows_of(network);
    const int first_feature = response ? width - 1 : 0;
    if (given.gamma) {
      gamma_form_ = {layers, !network.diagonal, kept, network.gamma_rows, first_feature, width, rows};
      gamma_.resize(gamma_form_.count());
      gamma_form_.read(*given.gamma, gamma_.data());
      network.gamma = gamma_.data();
    }
    if (given.beta) {
      beta_form_ = {layers, false, kept, network.beta_rows, first_feature, width, rows};
      beta_.resize(beta_form_.count());
      beta_form_.read(*given.beta, beta_.data());
      network.beta = beta_.data();
    }
  }

  // Runs the kernel of this structure and space.
  void run() { run(kernel()); }

  // Runs the one of every prefix.
  void run_prefixes() {
    const auto& kernels = cpu::kernels<T>();
    run(network.p ? kernels.prefix_general : kernels.prefix_response);
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
  void run(void (*chosen)(const Network<T>&, cpu::ParallelFor)) {
    totals_.resize(q_.size() + p_.size() + gamma_.size() + beta_.size() + 1);
    network.totals = totals_.data();
    chosen(network, parallel_for);
  }

  // The dense form's numbers, and a task's states, updates and registers after every layer, are found by an int each.
  // (Where vectors run along the tokens of one task, they are not.)
  void check_counts(int heads, int matrix, bool response) const {
    const int64_t layers = network.layers, kept = network.kept, width = network.width,
                  rows = std::min(network.tokens, tiny_tokens);
    const int64_t coefficients = std::max(network.gamma_rows, network.beta_rows) * (response ? 1 : width);
    const int64_t state = network.gram_space ? (response ? width : width * width)
                          : response         ? width + rows
                                             : width * rows;
    narrow(
        2 * static_cast<int64_t>(narrow_product({layers, heads, matrix, matrix}, "the numbers of q")) +
            narrow_product({layers, (network.diagonal ? 1 : layers) + 1, kept, coefficients}, "the numbers of gamma"),
        "the numbers of q, p, gamma and beta");
    narrow_product({layers + 1, kept + 4, state}, "the numbers that a task's layers leave");
  }

  // One task a lane where all of it fits in registers and the first caches, else vectors along one task.
  auto kernel() const {
    const auto& kernels = cpu::kernels<T>();
    const int width = network.width;
    if (network.gram_space) {
      if (network.p) return width <= tiny_width ? kernels.general_gram : kernels.wide_general;
      return width <= tiny_width + 1 ? kernels.response_gram : kernels.wide_gram;
    }
    if (network.p) return kernels.general_tokens;
    return width <= tiny_width && network.tokens <= tiny_tokens ? kernels.response_tokens : kernels.wide_tokens;
  }

  Projections q_form_{}, p_form_{};
  Coefficients gamma_form_{}, beta_form_{};
  std::vector<T> q_, p_, gamma_, beta_;
  std::vector<double> totals_;
};

}  // namespace memformer::binding
