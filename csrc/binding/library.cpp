// The operators of the native CPU library, memformer_native::*, on PyTorch's stable ABI.
//
// Results and gradients are allocated by the caller and written here; a gradient that is not wanted is None. Arguments
// have been checked by the package, which is the only caller.

#include <torch/csrc/stable/library.h>

#include <string>

#include "binding/attention.h"
#include "binding/network.h"
#include "binding/pages.h"
#include "binding/signals.h"
#include "binding/solve.h"
#include "binding/train.h"
#include "binding/train_checks.h"
#include "binding/update.h"
#include "binding/weighted.h"

namespace memformer::binding {
namespace {

void forward(const Tensor& z, const Tensor& q, const MaybeTensor& p, const MaybeTensor& gamma, const MaybeTensor& beta,
             const MaybeTensor& lengths, int64_t context, bool gram_space, int64_t queries, const Tensor& result) {
  with_compute_type(z, [&](auto type) {
    NetworkCall<decltype(type)> call({z, q, p, gamma, beta, lengths, context, gram_space, queries});
    call.network.pass = Pass::forward;
    call.network.result = made_array(result);
    if (queries >= 0) call.network.result_layers = narrow(result.size(0), "result");
    call.run();
  });
}

void backward(const Tensor& grad, const Tensor& z, const Tensor& q, const MaybeTensor& p, const MaybeTensor& gamma,
              const MaybeTensor& beta, const MaybeTensor& lengths, int64_t context, bool gram_space, int64_t queries,
              const MaybeTensor& grad_z, const MaybeTensor& grad_q, const MaybeTensor& grad_p,
              const MaybeTensor& grad_gamma, const MaybeTensor& grad_beta) {
  with_compute_type(z, [&](auto type) {
    NetworkCall<decltype(type)> call({z, q, p, gamma, beta, lengths, context, gram_space, queries});
    call.network.pass = Pass::backward;
    call.network.result = array_of(grad);
    if (queries >= 0) call.network.result_layers = narrow(grad.size(0), "grad");
    call.network.grad_z = made_array(grad_z);
    call.run();
    call.write({grad_q, grad_p, grad_gamma, grad_beta});
  });
}

void loss(const Tensor& z, const Tensor& target, const Tensor& q, const MaybeTensor& p, const MaybeTensor& gamma,
          const MaybeTensor& beta, const MaybeTensor& lengths, int64_t context, bool gram_space, int64_t queries,
          const Tensor& value, const MaybeTensor& grad_z, const MaybeTensor& grad_target, const MaybeTensor& grad_q,
          const MaybeTensor& grad_p, const MaybeTensor& grad_gamma, const MaybeTensor& grad_beta) {
  with_compute_type(z, [&](auto type) {
    NetworkCall<decltype(type)> call({z, q, p, gamma, beta, lengths, context, gram_space, queries});
    const ParameterGrads grads{grad_q, grad_p, grad_gamma, grad_beta};
    call.network.pass = grads.any() || grad_z || grad_target ? Pass::loss_backward : Pass::loss;
    call.network.target = array_of(target);
    call.network.grad_z = made_array(grad_z);
    call.network.grad_target = array_of(grad_target);
    call.run();
    call.write(grads);
    const double mean = call.squared_error() / (static_cast<double>(z.size(0)) * static_cast<double>(queries));
    Entries(value).write(0, 1, &mean);
  });
}

void weighted_forward(const Tensor& z, const Tensor& q, const MaybeTensor& p, const MaybeTensor& gamma,
                      const MaybeTensor& beta, const MaybeTensor& lengths, int64_t context, int64_t queries,
                      const Tensor& weights, const Tensor& result) {
  with_compute_type(z, [&](auto type) {
    NetworkCall<decltype(type)> call({z, q, p, gamma, beta, lengths, context, true, queries});
    call.network.pass = Pass::forward;
    call.network.result = made_array(result);
    call.network.result_layers = narrow(result.size(0), "result");
    run_weighted(call, weights, std::nullopt);
  });
}

void weighted_backward(const Tensor& grad, const Tensor& z, const Tensor& q, const MaybeTensor& p,
                       const MaybeTensor& gamma, const MaybeTensor& beta, const MaybeTensor& lengths, int64_t context,
                       int64_t queries, const Tensor& weights, const MaybeTensor& grad_z, const MaybeTensor& grad_q,
                       const MaybeTensor& grad_p, const MaybeTensor& grad_gamma, const MaybeTensor& grad_beta,
                       const MaybeTensor& grad_weights) {
  with_compute_type(z, [&](auto type) {
    NetworkCall<decltype(type)> call({z, q, p, gamma, beta, lengths, context, true, queries});
    call.network.pass = Pass::backward;
    call.network.result = array_of(grad);
    call.network.result_layers = narrow(grad.size(0), "grad");
    call.network.grad_z = made_array(grad_z);
    run_weighted(call, weights, grad_weights);
    call.write({grad_q, grad_p, grad_gamma, grad_beta});
  });
}

void weighted_loss(const Tensor& z, const Tensor& target, const Tensor& q, const MaybeTensor& p,
                   const MaybeTensor& gamma, const MaybeTensor& beta, const MaybeTensor& lengths, int64_t context,
                   int64_t queries, const Tensor& weights, const Tensor& value, const MaybeTensor& grad_z,
                   const MaybeTensor& grad_target, const MaybeTensor& grad_q, const MaybeTensor& grad_p,
                   const MaybeTensor& grad_gamma, const MaybeTensor& grad_beta, const MaybeTensor& grad_weights) {
  with_compute_type(z, [&](auto type) {
    NetworkCall<decltype(type)> call({z, q, p, gamma, beta, lengths, context, true, queries});
    const ParameterGrads grads{grad_q, grad_p, grad_gamma, grad_beta};
    const bool learns = grads.any() || grad_z || grad_target || grad_weights;
    call.network.pass = learns ? Pass::loss_backward : Pass::loss;
    call.network.target = array_of(target);
    call.network.grad_z = made_array(grad_z);
    call.network.grad_target = array_of(grad_target);
    run_weighted(call, weights, grad_weights);
    call.write(grads);
    const double mean = call.squared_error() / (static_cast<double>(z.size(0)) * static_cast<double>(queries));
    Entries(value).write(0, 1, &mean);
  });
}

// Every prefix of a network: `first` tokens has the shortest.
NetworkArguments prefixes_of(const Tensor& z, const Tensor& q, const MaybeTensor& p, const MaybeTensor& gamma,
                             const MaybeTensor& beta, int64_t first) {
  static const MaybeTensor no_lengths;
  return {z, q, p, gamma, beta, no_lengths, first, true, z.size(1) - first};
}

void prefix_predict(const Tensor& z, const Tensor& q, const MaybeTensor& p, const MaybeTensor& gamma,
                    const MaybeTensor& beta, int64_t first, const Tensor& result) {
  with_compute_type(z, [&](auto type) {
    NetworkCall<decltype(type)> call(prefixes_of(z, q, p, gamma, beta, first));
    call.network.pass = Pass::forward;
    call.network.result = made_array(result);
    call.network.result_layers = narrow(result.size(0), "result");
    call.run_prefixes();
  });
}

void prefix_predict_backward(const Tensor& grad, const Tensor& z, const Tensor& q, const MaybeTensor& p,
                             const MaybeTensor& gamma, const MaybeTensor& beta, int64_t first,
                             const MaybeTensor& grad_z, const MaybeTensor& grad_q, const MaybeTensor& grad_p,
                             const MaybeTensor& grad_gamma, const MaybeTensor& grad_beta) {
  with_compute_type(z, [&](auto type) {
    NetworkCall<decltype(type)> call(prefixes_of(z, q, p, gamma, beta, first));
    call.network.pass = Pass::backward;
    call.network.result = array_of(grad);
    call.network.result_layers = narrow(grad.size(0), "grad");
    call.network.grad_z = made_array(grad_z);
    call.run_prefixes();
    call.write({grad_q, grad_p, grad_gamma, grad_beta});
  });
}

void prefix_loss(const Tensor& z, const Tensor& target, const Tensor& q, const MaybeTensor& p, const MaybeTensor& gamma,
                 const MaybeTensor& beta, int64_t first, const Tensor& value, const MaybeTensor& grad_z,
                 const MaybeTensor& grad_target, const MaybeTensor& grad_q, const MaybeTensor& grad_p,
                 const MaybeTensor& grad_gamma, const MaybeTensor& grad_beta) {
  with_compute_type(z, [&](auto type) {
    NetworkCall<decltype(type)> call(prefixes_of(z, q, p, gamma, beta, first));
    const ParameterGrads grads{grad_q, grad_p, grad_gamma, grad_beta};
    call.network.pass = grads.any() || grad_z || grad_target ? Pass::loss_backward : Pass::loss;
    call.network.target = array_of(target);
    call.network.grad_z = made_array(grad_z);
    call.network.grad_target = array_of(grad_target);
    call.run_prefixes();
    call.write(grads);
    const double mean = call.squared_error() / static_cast<double>(target.numel());
    Entries(value).write(0, 1, &mean);
  });
}

template <class T>
void run(const Gram<T>& call) {
  const auto& kernels = cpu::kernels<T>();
  (call.width <= tiny_width + 1 ? kernels.context_gram : kernels.wide_context_gram)(call, parallel_for);
}

void context_gram(const Tensor& z, const MaybeTensor& lengths, int64_t context, const Tensor& matrix) {
  with_compute_type(z, [&](auto type) {
    expect_large_pages(matrix);
    run(gram_of<decltype(type)>(z, lengths, context, matrix));
  });
}

void context_gram_backward(const Tensor& grad, const Tensor& z, const MaybeTensor& lengths, int64_t context,
                           const Tensor& grad_z) {
  with_compute_type(z, [&](auto type) {
    auto call = gram_of<decltype(type)>(z, lengths, context, grad);
    call.backward = true;
    call.grad_z = made_array(grad_z);
    run(call);
  });
}

void proximal_solve(const Tensor& h, const Tensor& b, const Tensor& a, const MaybeTensor& gamma,
                    const MaybeTensor& beta, const MaybeTensor& w0, const MaybeTensor& level, const MaybeTensor& lower,
                    const MaybeTensor& upper, const MaybeTensor& radius, const Tensor& result) {
  with_compute_type(h, [&](auto type) {
    QuadraticsCall<decltype(type)>({h, b, a, gamma, beta, w0}, {level, lower, upper, radius}, result).run();
  });
}

void proximal_solve_backward(const Tensor& grad, const Tensor& h, const Tensor& b, const Tensor& a,
                             const MaybeTensor& gamma, const MaybeTensor& beta, const MaybeTensor& w0,
                             const MaybeTensor& level, const MaybeTensor& lower, const MaybeTensor& upper,
                             const MaybeTensor& radius, const MaybeTensor& grad_h, const MaybeTensor& grad_b,
                             const MaybeTensor& grad_a, const MaybeTensor& grad_gamma, const MaybeTensor& grad_beta,
                             const MaybeTensor& grad_w0, const MaybeTensor& grad_level, const MaybeTensor& grad_lower,
                             const MaybeTensor& grad_upper, const MaybeTensor& grad_radius) {
  with_compute_type(h, [&](auto type) {
    QuadraticsCall<decltype(type)> made({h, b, a, gamma, beta, w0}, {level, lower, upper, radius}, grad);
    made.call.backward = true;
    made.call.grad_h = made_array(grad_h);
    made.call.grad_b = array_of(grad_b);
    made.call.grad_w0 = array_of(grad_w0);
    made.run();
    made.write(grad_a, grad_gamma, grad_beta);
    made.write({grad_level, grad_lower, grad_upper, grad_radius});
  });
}

// What steps end in where they end in no prox.
const MaybeTensor absent;

void lfom_solve(const Tensor& h, const Tensor& b, const Tensor& a, const MaybeTensor& gamma, const MaybeTensor& beta,
                const MaybeTensor& w0, const Tensor& result) {
  proximal_solve(h, b, a, gamma, beta, w0, absent, absent, absent, absent, result);
}

void lfom_solve_backward(const Tensor& grad, const Tensor& h, const Tensor& b, const Tensor& a,
                         const MaybeTensor& gamma, const MaybeTensor& beta, const MaybeTensor& w0,
                         const MaybeTensor& grad_h, const MaybeTensor& grad_b, const MaybeTensor& grad_a,
                         const MaybeTensor& grad_gamma, const MaybeTensor& grad_beta, const MaybeTensor& grad_w0) {
  proximal_solve_backward(grad, h, b, a, gamma, beta, w0, absent, absent, absent, absent, grad_h, grad_b, grad_a,
                          grad_gamma, grad_beta, grad_w0, absent, absent, absent, absent);
}

void layer(const Tensor& z, const Tensor& q, const MaybeTensor& p, const std::vector<Tensor>& registers,
           const MaybeTensor& gamma, const MaybeTensor& beta, const MaybeTensor& lengths, int64_t context,
           const Tensor& result, const Tensor& fresh) {
  with_compute_type(z, [&](auto type) {
    LayerCall<decltype(type)> made({z, q, p, registers, gamma, beta, lengths, context});
    made.call.result = made_array(result);
    expect_large_pages(fresh);
    made.call.fresh = registers_of(fresh);
    made.run();
  });
}

void layer_backward(const Tensor& grad, const Tensor& grad_fresh, const Tensor& z, const Tensor& q,
                    const MaybeTensor& p, const std::vector<Tensor>& registers, const MaybeTensor& gamma,
                    const MaybeTensor& beta, const MaybeTensor& lengths, int64_t context, const MaybeTensor& grad_z,
                    const std::vector<Tensor>& grad_registers, const std::vector<bool>& wanted,
                    const MaybeTensor& grad_q, const MaybeTensor& grad_p, const MaybeTensor& grad_gamma,
                    const MaybeTensor& grad_beta) {
  with_compute_type(z, [&](auto type) {
    LayerCall<decltype(type)> made({z, q, p, registers, gamma, beta, lengths, context});
    made.call.backward = true;
    made.call.result = array_of(grad);
    made.call.fresh = registers_of(grad_fresh);
    made.call.grad_z = made_array(grad_z);
    for (const Tensor& one : grad_registers) expect_large_pages(one);
    const auto places = wanted_registers(grad_registers, wanted);
    made.call.grad_registers = places.data();
    made.run();
    made.write(grad_q, grad_p, grad_gamma, grad_beta);
  });
}

void train_steps(const Tensor& q, const MaybeTensor& p, const MaybeTensor& gamma, const MaybeTensor& beta,
                 const std::vector<Tensor>& first, const std::vector<Tensor>& second, const std::vector<Tensor>& masks,
                 const Tensor& skipped, const std::string& rule, const Tensor& hyper, const std::string& clip,
                 const Tensor& factors, int64_t max_skipped, int64_t first_step, const Tensor& counter,
                 const MaybeTensor& tied, int64_t resample_every, const Tensor& seeds, const Tensor& streams,
                 const std::string& sampler, int64_t features, int64_t tasks, int64_t tokens, int64_t context,
                 int64_t queries, bool prefixes, double noise, double most_noise, const MaybeTensor& weight_factor,
                 const MaybeTensor& covariate_factor, const MaybeTensor& z, const MaybeTensor& target,
                 const MaybeTensor& index, const std::string&, double seconds, const Tensor& losses) {
  const TrainedParameters models{q, p, gamma, beta};
  const TaskArguments given{seeds,   streams,  sampler, features,   tasks,         tokens,           context,
                            queries, prefixes, noise,   most_noise, weight_factor, covariate_factor, z,
                            target,  index};
  const OptimizerArguments optimizer{first, second,  masks,       skipped,    rule,    hyper,
                                     clip,  factors, max_skipped, first_step, counter, tied};
  check_models(models, features);
  check_optimizer(models, optimizer, losses);
  check_tasks(given, q, draws_of(first_step, optimizer.begun() + losses.size(0), resample_every));
  with_compute_type(q, [&](auto type) {
    using T = decltype(type);
    TrainCall<T> call(models, task_source<T>(given), *optimizer.counted(), first_step, resample_every);
    call.optimizer(optimizer);
    call.training.steps = losses.size(0);
    call.training.seconds = seconds;
    call.training.losses = static_cast<double*>(losses.data_ptr());
    call.write(optimizer, cpu::kernels<T>().train(call.training, parallel_for));
  });
}

void train_gradients(const Tensor& q, const MaybeTensor& p, const MaybeTensor& gamma, const MaybeTensor& beta,
                     const Tensor& active, int64_t step, int64_t resample_every, const Tensor& seeds,
                     const Tensor& streams, const std::string& sampler, int64_t features, int64_t tasks, int64_t tokens,
                     int64_t context, int64_t queries, bool prefixes, double noise, double most_noise,
                     const MaybeTensor& weight_factor, const MaybeTensor& covariate_factor, const MaybeTensor& z,
                     const MaybeTensor& target, const MaybeTensor& index, int64_t first_block, const Tensor& sums) {
  const TrainedParameters models{q, p, gamma, beta};
  const TaskArguments given{seeds,   streams,  sampler, features,   tasks,         tokens,           context,
                            queries, prefixes, noise,   most_noise, weight_factor, covariate_factor, z,
                            target,  index};
  check_models(models, features);
  check_tasks(given, q, draws_of(step, 1, resample_every));
  check_tensor("active", active, ScalarType::Bool, {q.size(0)}, q);
  check_sums(models, sums);
  STD_TORCH_CHECK(first_block >= 0 && first_block + sums.size(1) <= (tasks + 1023) / 1024,
                  "sums: expected blocks of the batch");
  with_compute_type(q, [&](auto type) {
    using T = decltype(type);
    TrainCall<T> call(models, task_source<T>(given), step, step, resample_every);
    const BlockSums blocks{first_block, sums.size(1), static_cast<const bool*>(active.data_ptr()),
                           static_cast<double*>(sums.data_ptr())};
    cpu::kernels<T>().train_gradients(call.training, blocks, parallel_for);
  });
}

void train_update(const Tensor& q, const MaybeTensor& p, const MaybeTensor& gamma, const MaybeTensor& beta,
                  const std::vector<Tensor>& first, const std::vector<Tensor>& second, const std::vector<Tensor>& masks,
                  const Tensor& skipped, const std::string& rule, const Tensor& hyper, const std::string& clip,
                  const Tensor& factors, int64_t max_skipped, int64_t first_step, const Tensor& counter,
                  const MaybeTensor& tied, int64_t features, int64_t tasks, int64_t queries, const Tensor& sums,
                  const Tensor& losses) {
  const TrainedParameters models{q, p, gamma, beta};
  const OptimizerArguments optimizer{first, second,  masks,       skipped,    rule,    hyper,
                                     clip,  factors, max_skipped, first_step, counter, tied};
  check_models(models, features);
  check_optimizer(models, optimizer, losses);
  check_sums(models, sums);
  with_compute_type(q, [&](auto type) {
    using T = decltype(type);
    TaskSource<T> source{};
    source.features = narrow(features, "features");
    source.tasks = tasks;
    source.queries = narrow(queries, "queries");
    TrainCall<T> call(models, source, *optimizer.counted(), first_step, 1);
    call.optimizer(optimizer);
    call.training.losses = static_cast<double*>(losses.data_ptr());
    cpu::kernels<T>().train_update(call.training, {0, sums.size(1), nullptr, static_cast<double*>(sums.data_ptr())});
    call.write(optimizer, 1);
  });
}

void sample_tasks(const Tensor& seeds, const Tensor& streams, const std::string& sampler, int64_t features,
                  int64_t tasks, int64_t tokens, int64_t context, int64_t queries, bool prefixes, double noise,
                  double most_noise, const MaybeTensor& weight_factor, const MaybeTensor& covariate_factor,
                  const MaybeTensor& z, const MaybeTensor& target, const MaybeTensor& index, int64_t draw,
                  const Tensor& cells) {
  with_compute_type(cells, [&](auto type) {
    using T = decltype(type);
    const auto source = task_source<T>({seeds, streams, sampler, features, tasks, tokens, context, queries, prefixes,
                                        noise, most_noise, weight_factor, covariate_factor, z, target, index});
    cpu::kernels<T>().sample_tasks(source, draw, static_cast<T*>(cells.data_ptr()));
  });
}

void random_numbers(const std::string& kind, int64_t seed, int64_t stream, int64_t draw, bool dual,
                    const Tensor& numbers) {
  const auto run = [&](auto type) {
    using T = decltype(type);
    const Numbers wanted = kind == "words" ? Numbers::words : kind == "uniforms" ? Numbers::uniforms : Numbers::normals;
    cpu::kernels<T>().random_numbers(
        {wanted, seed, stream, draw, numbers.size(0), numbers.size(1) / 4, static_cast<double*>(numbers.data_ptr())});
  };
  if (dual) {
    run(double{});
  } else {
    run(float{});
  }
}

void register_update(const Tensor& z, const std::vector<Tensor>& registers, const Tensor& gamma, const Tensor& result) {
  with_compute_type(z, [&](auto type) {
    using T = decltype(type);
    expect_large_pages(result);
    UpdateCall<T> made(z, registers, gamma);
    made.call.result = static_cast<T*>(result.data_ptr());
    made.run();
  });
}

void register_update_backward(const Tensor& grad, const std::vector<Tensor>& registers, const Tensor& gamma,
                              const std::vector<Tensor>& grad_registers, const std::vector<bool>& wanted,
                              const MaybeTensor& grad_gamma) {
  with_compute_type(grad, [&](auto type) {
    using T = decltype(type);
    UpdateCall<T> made(grad, registers, gamma);
    for (const Tensor& one : grad_registers) expect_large_pages(one);
    std::vector<T*> places(wanted.size(), nullptr);
    for (std::size_t k = 0, next = 0; k < wanted.size(); ++k) {
      if (wanted[k]) places[k] = static_cast<T*>(grad_registers[next++].data_ptr());
    }
    made.call.backward = true;
    made.call.grad_registers = places.data();
    made.call.grad_gamma = grad_gamma ? static_cast<T*>(grad_gamma->data_ptr()) : nullptr;
    made.run();
  });
}

void attention(const Tensor& q, const Tensor& k, const Tensor& v, const MaybeTensor& rows, const MaybeTensor& keys,
               const MaybeTensor& bounds, bool causal, const Tensor& result) {
  with_compute_type(q, [&](auto type) {
    using T = decltype(type);
    auto call = attention_of<T>({q, k, v, rows, keys, bounds, causal});
    expect_large_pages(result);
    call.result = heads_of(result);
    cpu::kernels<T>().attention(call, parallel_for);
  });
}

void attention_backward(const Tensor& grad, const Tensor& q, const Tensor& k, const Tensor& v, const MaybeTensor& rows,
                        const MaybeTensor& keys, const MaybeTensor& bounds, bool causal, const MaybeTensor& grad_q,
                        const MaybeTensor& grad_k, const MaybeTensor& grad_v) {
  with_compute_type(q, [&](auto type) {
    using T = decltype(type);
    auto call = attention_of<T>({q, k, v, rows, keys, bounds, causal});
    call.backward = true;
    call.result = heads_of(grad);
    for (const MaybeTensor* one : {&grad_q, &grad_k, &grad_v}) expect_large_pages(*one);
    call.grad_q = heads_of(grad_q);
    call.grad_k = heads_of(grad_k);
    call.grad_v = heads_of(grad_v);
    cpu::kernels<T>().attention(call, parallel_for);
  });
}

std::string instruction_set() { return cpu::instruction_set(); }

void use_instruction_set(const std::string& name) {
  STD_TORCH_CHECK(cpu::use_instruction_set(name.c_str()), "this build or this processor has no instruction set ", name);
}

}  // namespace
}  // namespace memformer::binding

#define MEMFORMER_NETWORK \
  "Tensor q, Tensor? p, Tensor? gamma, Tensor? beta, Tensor? lengths, int context, bool gram_space, int queries, "
#define MEMFORMER_WEIGHTED \
  "Tensor q, Tensor? p, Tensor? gamma, Tensor? beta, Tensor? lengths, int context, int queries, Tensor weights, "
#define MEMFORMER_PREFIXES "Tensor q, Tensor? p, Tensor? gamma, Tensor? beta, int first, "
#define MEMFORMER_LAYER \
  "Tensor z, Tensor q, Tensor? p, Tensor[] registers, Tensor? gamma, Tensor? beta, Tensor? lengths, int context, "
#define MEMFORMER_QUADRATICS "Tensor h, Tensor b, Tensor a, Tensor? gamma, Tensor? beta, Tensor? w0, "
#define MEMFORMER_PROXIMAL "Tensor? level, Tensor? lower, Tensor? upper, Tensor? radius, "
#define MEMFORMER_PARAMETER_GRADS \
  "Tensor(c!)? grad_q, Tensor(d!)? grad_p, Tensor(e!)? grad_gamma, Tensor(f!)? grad_beta"

#define MEMFORMER_ATTENTION "Tensor q, Tensor k, Tensor v, Tensor? rows, Tensor? keys, Tensor? bounds, bool causal, "
#define MEMFORMER_OPTIMIZER                                                                                            \
  "Tensor(a!) q, Tensor(b!)? p, Tensor(c!)? gamma, Tensor(d!)? beta, Tensor(e!)[] first, Tensor(f!)[] second, "        \
  "Tensor[] masks, "                                                                                                   \
  "Tensor(g!) skipped, str rule, Tensor hyper, str clip, Tensor factors, int max_skipped, int first_step, Tensor(h!) " \
  "counter, Tensor? tied, "
#define MEMFORMER_TASKS                                                                                             \
  "Tensor seeds, Tensor streams, str sampler, int features, int tasks, int tokens, int context, int queries, bool " \
  "prefixes, float noise, float most_noise, "                                                                       \
  "Tensor? weight_factor, Tensor? covariate_factor, Tensor? z, Tensor? target, Tensor? index, "

STABLE_TORCH_LIBRARY(memformer_native, m) {
  m.def("forward(Tensor z, " MEMFORMER_NETWORK "Tensor(a!) result) -> ()");
  m.def("backward(Tensor grad, Tensor z, " MEMFORMER_NETWORK "Tensor(a!)? grad_z, " MEMFORMER_PARAMETER_GRADS
        ") -> ()");
  m.def("loss(Tensor z, Tensor target, " MEMFORMER_NETWORK
        "Tensor(a!) value, Tensor(b!)? grad_z, Tensor(g!)? grad_target, " MEMFORMER_PARAMETER_GRADS ") -> ()");
  m.def("weighted_forward(Tensor z, " MEMFORMER_WEIGHTED "Tensor(a!) result) -> ()");
  m.def("weighted_backward(Tensor grad, Tensor z, " MEMFORMER_WEIGHTED "Tensor(a!)? grad_z, " MEMFORMER_PARAMETER_GRADS
        ", Tensor(b!)? grad_weights) -> ()");
  m.def("weighted_loss(Tensor z, Tensor target, " MEMFORMER_WEIGHTED
        "Tensor(a!) value, Tensor(b!)? grad_z, Tensor(g!)? grad_target, " MEMFORMER_PARAMETER_GRADS
        ", Tensor(h!)? grad_weights) -> ()");
  m.def("prefix_predict(Tensor z, " MEMFORMER_PREFIXES "Tensor(a!) result) -> ()");
  m.def("prefix_predict_backward(Tensor grad, Tensor z, " MEMFORMER_PREFIXES
        "Tensor(a!)? grad_z, " MEMFORMER_PARAMETER_GRADS ") -> ()");
  m.def("prefix_loss(Tensor z, Tensor target, " MEMFORMER_PREFIXES
        "Tensor(a!) value, Tensor(b!)? grad_z, Tensor(g!)? grad_target, " MEMFORMER_PARAMETER_GRADS ") -> ()");
  m.def("context_gram(Tensor z, Tensor? lengths, int context, Tensor(a!) matrix) -> ()");
  m.def("context_gram_backward(Tensor grad, Tensor z, Tensor? lengths, int context, Tensor(a!) grad_z) -> ()");
  m.def("lfom_solve(" MEMFORMER_QUADRATICS "Tensor(a!) result) -> ()");
  m.def("lfom_solve_backward(Tensor grad, " MEMFORMER_QUADRATICS
        "Tensor(a!)? grad_h, Tensor(b!)? grad_b, Tensor(c!)? grad_a, Tensor(d!)? grad_gamma, Tensor(e!)? grad_beta, "
        "Tensor(f!)? grad_w0) -> ()");
  m.def("proximal_solve(" MEMFORMER_QUADRATICS MEMFORMER_PROXIMAL "Tensor(a!) result) -> ()");
  m.def("proximal_solve_backward(Tensor grad, " MEMFORMER_QUADRATICS MEMFORMER_PROXIMAL
        "Tensor(a!)? grad_h, Tensor(b!)? grad_b, Tensor(c!)? grad_a, Tensor(d!)? grad_gamma, Tensor(e!)? grad_beta, "
        "Tensor(f!)? grad_w0, Tensor(g!)? grad_level, Tensor(h!)? grad_lower, Tensor(i!)? grad_upper, "
        "Tensor(j!)? grad_radius) -> ()");
  m.def("layer(" MEMFORMER_LAYER "Tensor(a!) result, Tensor(b!) fresh) -> ()");
  m.def("layer_backward(Tensor grad, Tensor grad_fresh, " MEMFORMER_LAYER
        "Tensor(a!)? grad_z, Tensor(b!)[] grad_registers, bool[] wanted, " MEMFORMER_PARAMETER_GRADS ") -> ()");
  m.def("train_steps(" MEMFORMER_OPTIMIZER "int resample_every, " MEMFORMER_TASKS
        "str launches, float seconds, Tensor(i!) losses) -> ()");
  m.def(
      "train_gradients(Tensor q, Tensor? p, Tensor? gamma, Tensor? beta, Tensor active, int step, int "
      "resample_every, " MEMFORMER_TASKS "int first_block, Tensor(a!) sums) -> ()");
  m.def("train_update(" MEMFORMER_OPTIMIZER
        "int features, int tasks, int queries, Tensor sums, Tensor(i!) losses) -> ()");
  m.def("sample_tasks(" MEMFORMER_TASKS "int draw, Tensor(a!) cells) -> ()");
  m.def("random_numbers(str kind, int seed, int stream, int draw, bool dual, Tensor(a!) numbers) -> ()");
  m.def("register_update(Tensor z, Tensor[] registers, Tensor gamma, Tensor(a!) result) -> ()");
  m.def(
      "register_update_backward(Tensor grad, Tensor[] registers, Tensor gamma, Tensor(a!)[] grad_registers, "
      "bool[] wanted, Tensor(b!)? grad_gamma) -> ()");
  m.def("attention(" MEMFORMER_ATTENTION "Tensor(a!) result) -> ()");
  m.def("attention_backward(Tensor grad, " MEMFORMER_ATTENTION
        "Tensor(a!)? grad_q, Tensor(b!)? grad_k, Tensor(c!)? grad_v) -> ()");
  m.def("instruction_set() -> str");
  m.def("use_instruction_set(str name) -> ()");
}

#define MEMFORMER_BOX(name) TORCH_BOX(&memformer::binding::Interruptible<&memformer::binding::name>::run)

STABLE_TORCH_LIBRARY_IMPL(memformer_native, CPU, m) {
  m.impl("forward", MEMFORMER_BOX(forward));
  m.impl("backward", MEMFORMER_BOX(backward));
  m.impl("loss", MEMFORMER_BOX(loss));
  m.impl("weighted_forward", MEMFORMER_BOX(weighted_forward));
  m.impl("weighted_backward", MEMFORMER_BOX(weighted_backward));
  m.impl("weighted_loss", MEMFORMER_BOX(weighted_loss));
  m.impl("prefix_predict", MEMFORMER_BOX(prefix_predict));
  m.impl("prefix_predict_backward", MEMFORMER_BOX(prefix_predict_backward));
  m.impl("prefix_loss", MEMFORMER_BOX(prefix_loss));
  m.impl("context_gram", MEMFORMER_BOX(context_gram));
  m.impl("context_gram_backward", MEMFORMER_BOX(context_gram_backward));
  m.impl("lfom_solve", MEMFORMER_BOX(lfom_solve));
  m.impl("lfom_solve_backward", MEMFORMER_BOX(lfom_solve_backward));
  m.impl("proximal_solve", MEMFORMER_BOX(proximal_solve));
  m.impl("proximal_solve_backward", MEMFORMER_BOX(proximal_solve_backward));
  m.impl("layer", MEMFORMER_BOX(layer));
  m.impl("layer_backward", MEMFORMER_BOX(layer_backward));
  m.impl("train_steps", MEMFORMER_BOX(train_steps));
  m.impl("train_gradients", MEMFORMER_BOX(train_gradients));
  m.impl("train_update", TORCH_BOX(&memformer::binding::train_update));
  m.impl("sample_tasks", MEMFORMER_BOX(sample_tasks));
  m.impl("random_numbers", MEMFORMER_BOX(random_numbers));
  m.impl("register_update", MEMFORMER_BOX(register_update));
  m.impl("register_update_backward", MEMFORMER_BOX(register_update_backward));
  m.impl("attention", MEMFORMER_BOX(attention));
  m.impl("attention_backward", MEMFORMER_BOX(attention_backward));
}

STABLE_TORCH_LIBRARY_IMPL(memformer_native, CompositeExplicitAutograd, m) {
  m.impl("instruction_set", TORCH_BOX(&memformer::binding::instruction_set));
  m.impl("use_instruction_set", TORCH_BOX(&memformer::binding::use_instruction_set));
}
