// The calls of context_gram, lfom_solve and memformer_layer: tensors to a kernel's arguments, sums back to gradients.

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
class QuadraticsCall {
 public:
  QuadraticsCall(const QuadraticsArguments& given, const ProximalArguments& steps, const Tensor& result)
      : call{quadratics_of<T>(given, result), {}} {
    const int layers = call.layers, d = call.weights;
    narrow(narrow_product({layers, d, d}, "the numbers of a") +
               static_cast<int64_t>(narrow_product({layers, layers + 4, d}, "the numbers of gamma")),
           "the numbers of a, gamma, beta and a prox");
    a_form_ = {1, layers, d, false, 0.0};
    a_.resize(a_form_.count());
    a_form_.read(given.a, a_.data());
    call.a = a_.data();
    if (given.gamma) {
      gamma_form_ = {layers, true, 1, 1, 0, d, {}};
      gamma_.resize(gamma_form_.count());
      gamma_form_.read(*given.gamma, gamma_.data());
      call.gamma = gamma_.data();
    }
    if (given.beta) {
      beta_form_ = {layers, false, 1, 1, 0, d, {}};
      beta_.resize(beta_form_.count());
      beta_form_.read(*given.beta, beta_.data());
      call.beta = beta_.data();
    }
    call.proximal = {parameter(steps.level, 0, d), parameter(steps.lower, 1, d), parameter(steps.upper, 2, d),
                     parameter(steps.radius, 3, 1)};
  }

  void run() {
    totals_.resize(behind_beta() + steps_[0].size() + steps_[1].size() + steps_[2].size() + steps_[3].size());
    call.totals = totals_.data();
    const auto& kernels = cpu::kernels<T>();
    (call.weights <= tiny_width ? kernels.quadratics : kernels.wide_quadratics)(call, parallel_for);
  }

  void write(const MaybeTensor& grad_a, const MaybeTensor& grad_gamma, const MaybeTensor& grad_beta) const {
    if (grad_a) a_form_.write(totals_.data(), *grad_a);
    if (grad_gamma) gamma_form_.write(totals_.data() + a_.size(), *grad_gamma);
    if (grad_beta) beta_form_.write(totals_.data() + a_.size() + gamma_.size(), *grad_beta);
  }

  void write(const ProximalArguments& grads) const {
    const double* totals = totals_.data() + behind_beta();
    const MaybeTensor* const given[] = {&grads.level, &grads.lower, &grads.upper, &grads.radius};
    for (int k = 0; k < 4; ++k) {
      if (*given[k]) steps_form_[k].write(totals, **given[k]);
      totals += steps_[k].size();
    }
  }

  ProximalQuadratics<T> call{};

 private:
  // A parameter of proxes in the dense form, `features` numbers a layer, or null.
  const T* parameter(const MaybeTensor& given, int k, int features) {
    if (!given) return nullptr;
    steps_form_[k] = {call.layers, false, 1, 1, 0, features, {}};
    steps_[k].resize(steps_form_[k].count());
    steps_form_[k].read(*given, steps_[k].data());
    return steps_[k].data();
  }

  std::size_t behind_beta() const { return a_.size() + gamma_.size() + beta_.size(); }

  Projections a_form_{};
  Coefficients gamma_form_{}, beta_form_{}, steps_form_[4]{};
  std::vector<T> a_, gamma_, beta_, steps_[4];
  std::vector<double> totals_;
};

template <class T>
class LayerCall {
 public:
  explicit LayerCall(const LayerArguments& given)
      : call(layer_of<T>(given)), registers_(registers_of(given.registers)) {
    const int width = call.width, heads = call.heads, kept = call.kept, earlier = call.earlier;
    call.registers = registers_.data();
    narrow(2 * static_cast<int64_t>(narrow_product({heads, width, width}, "the numbers of q")) +
               narrow_product({earlier + 2, kept, std::max(call.gamma_rows, call.beta_rows), width},
                              "the numbers of gamma"),
           "the numbers of q, p, gamma and beta");
    narrow_product({2 * static_cast<int64_t>(earlier) + 4, kept, call.tokens, width},
                   "the numbers of a task's registers");
    q_form_ = {1, heads, width, false, 0.0};
    p_form_ = {1, heads, width, false, 1.0};
    q_.resize(q_form_.count());
    p_.resize(p_form_.count());
    q_form_.read(given.q, q_.data());
    p_form_.read(given.p, p_.data());
    call.q = q_.data();
    call.p = p_.data();
    const Rows rows{call.tokens, call.tokens, call.tokens};
    if (given.gamma) {
      gamma_form_ = {earlier + 1, false, kept, call.gamma_rows, 0, width, rows};
      gamma_.resize(gamma_form_.count());
      gamma_form_.read(*given.gamma, gamma_.data());
      call.gamma = gamma_.data();
    }
    if (given.beta && earlier) {
      beta_form_ = {1, false, kept, call.beta_rows, 0, width, rows};
      beta_.resize(beta_form_.count());
      beta_form_.read(*given.beta, beta_.data());
      call.beta = beta_.data();
    }
  }

  void run() {
    totals_.resize(q_.size() + p_.size() + gamma_.size() + beta_.size());
    call.totals = totals_.data();
    const auto& kernels = cpu::kernels<T>();
    const bool tiny = call.width <= tiny_width && call.tokens <= tiny_tokens;
    (tiny ? kernels.layer : kernels.wide_layer)(call, parallel_for);
  }

  void write(const MaybeTensor& grad_q, const MaybeTensor& grad_p, const MaybeTensor& grad_gamma,
             const MaybeTensor& grad_beta) const {
    const double* totals = totals_.data();
    if (grad_q) q_form_.write(totals, *grad_q);
    totals += q_.size();
    if (grad_p) p_form_.write(totals, *grad_p);
    totals += p_.size();
    if (grad_gamma) gamma_form_.write(totals, *grad_gamma);
    totals += gamma_.size();
    if (grad_beta) {
      if (call.beta) {
        beta_form_.write(totals, *grad_beta);
      } else {
        Totals(*grad_beta).write();
      }
    }
  }

  Layer<T> call{};

 private:
  std::vector<Registers> registers_;
  Projections q_form_{}, p_form_{};
  Coefficients gamma_form_{}, beta_form_{};
  std::vector<T> q_, p_, gamma_, beta_;
  std::vector<double> totals_;
};

}  // namespace memformer::binding
