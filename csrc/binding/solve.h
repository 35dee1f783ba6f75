// The calls of context_gram, lfom_solve and memformer_layer: tensors to a kernel's arguments, sums back to gradients.

#pragma once

#include <optional>
#include <vector>

#include "binding/parameters.h"
#include "binding/run.h"
#include "cpu/dispatch.h"

namespace memformer::binding {

inline const int64_t* lengths_of(const MaybeTensor& lengths) {
  return lengths ? static_cast<const int64_t*>(lengths->data_ptr()) : nullptr;
}

template <class T>
Gram<T> gram_call(const Tensor& z, const MaybeTensor& lengths, int64_t context, const Tensor& matrix) {
  Gram<T> call{};
  call.tasks = z.size(0);
  call.tokens = static_cast<int>(z.size(1));
  call.width = static_cast<int>(z.size(2));
  call.context = static_cast<int>(context);
  call.lengths = lengths_of(lengths);
  call.z = array_of(z);
  call.matrix = array_of(matrix);
  return call;
}

// gamma (L, L or 1, ...) and beta come with axes [l, j, 1, 1, d] and [l, 1, 1, d].
template <class T>
class QuadraticsCall {
 public:
  QuadraticsCall(const Tensor& h, const Tensor& b, const Tensor& a, const MaybeTensor& gamma, const MaybeTensor& beta,
                 const MaybeTensor& w0, const Tensor& result) {
    const int layers = static_cast<int>(a.size(0)), d = static_cast<int>(a.size(1));
    call.tasks = h.size(0);
    call.weights = d;
    call.layers = layers;
    call.h = array_of(h);
    call.b = array_of(b);
    call.w0 = array_of(w0);
    call.result = array_of(result);
    call.result_layers = static_cast<int>(result.size(0));
    a_form_ = {1, layers, d, false, 0.0};
    a_.resize(a_form_.count());
    a_form_.read(a, a_.data());
    call.a = a_.data();
    if (gamma) {
      gamma_form_ = {layers, true, 1, 1, 0, d, {}};
      gamma_.resize(gamma_form_.count());
      gamma_form_.read(*gamma, gamma_.data());
      call.gamma = gamma_.data();
    }
    if (beta) {
      beta_form_ = {layers, false, 1, 1, 0, d, {}};
      beta_.resize(beta_form_.count());
      beta_form_.read(*beta, beta_.data());
      call.beta = beta_.data();
    }
  }

  void run() {
    totals_.resize(a_.size() + gamma_.size() + beta_.size());
    call.totals = totals_.data();
    cpu::kernels<T>().quadratics(call, parallel_for);
  }

  void write(const MaybeTensor& grad_a, const MaybeTensor& grad_gamma, const MaybeTensor& grad_beta) const {
    if (grad_a) a_form_.write(totals_.data(), *grad_a);
    if (grad_gamma) gamma_form_.write(totals_.data() + a_.size(), *grad_gamma);
    if (grad_beta) beta_form_.write(totals_.data() + a_.size() + gamma_.size(), *grad_beta);
  }

  Quadratics<T> call{};

 private:
  Projections a_form_{};
  Coefficients gamma_form_{}, beta_form_{};
  std::vector<T> a_, gamma_, beta_;
  std::vector<double> totals_;
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

template <class T>
class LayerCall {
 public:
  explicit LayerCall(const LayerArguments& given) {
    const int tokens = static_cast<int>(given.z.size(1)), width = static_cast<int>(given.z.size(2));
    const int heads = static_cast<int>(given.q.size(0)), earlier = static_cast<int>(given.registers.size());
    const int kept = kept_heads(heads, given.gamma, given.beta);
    call.tasks = given.z.size(0);
    call.tokens = tokens;
    call.width = width;
    call.heads = heads;
    call.kept = kept;
    call.earlier = earlier;
    call.context = static_cast<int>(given.context);
    call.lengths = lengths_of(given.lengths);
    call.gamma_rows = call.beta_rows = 1;
    call.z = array_of(given.z);
    for (const Tensor& one : given.registers) registers_.push_back(registers_of(one));
    call.registers = registers_.data();
    q_form_ = {1, heads, width, false, 0.0};
    p_form_ = {1, heads, width, false, 1.0};
    q_.resize(q_form_.count());
    p_.resize(p_form_.count());
    q_form_.read(given.q, q_.data());
    p_form_.read(given.p, p_.data());
    call.q = q_.data();
    call.p = p_.data();
    const Rows rows{tokens, tokens, tokens};
    if (given.gamma) {
      call.gamma_rows = given.gamma->size(2) == 1 ? 1 : tokens;
      gamma_form_ = {earlier + 1, false, kept, call.gamma_rows, 0, width, rows};
      gamma_.resize(gamma_form_.count());
      gamma_form_.read(*given.gamma, gamma_.data());
      call.gamma = gamma_.data();
    }
    if (given.beta && earlier) {
      call.beta_rows = given.beta->dim() < 2 || given.beta->size(given.beta->dim() - 2) == 1 ? 1 : tokens;
      beta_form_ = {1, false, kept, call.beta_rows, 0, width, rows};
      beta_.resize(beta_form_.count());
      beta_form_.read(*given.beta, beta_.data());
      call.beta = beta_.data();
    }
  }

  void run() {
    totals_.resize(q_.size() + p_.size() + gamma_.size() + beta_.size());
    call.totals = totals_.data();
    cpu::kernels<T>().layer(call, parallel_for);
  }

  void write(const MaybeTensor& grad_q, const MaybeTensor& grad_p, const MaybeTensor& grad_gamma, const MaybeTensor& grad_beta) const {
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
