// The CUDA implementations of memformer_native::*, whose schemas the CPU library defines, on PyTorch's stable ABI.
//
// As on the CPU: results and gradients are allocated by the caller and written here; a gradient that is not wanted is
// None; arguments have been checked. Nothing waits for the device, so calls can be captured in CUDA graphs.

#include <torch/csrc/stable/library.h>

#include <limits>

#include "binding/arguments.h"
#include "binding/cuda/device.h"
#include "binding/cuda/parameters.h"

namespace memformer::binding {
namespace {

const ParameterGrads none{std::nullopt, std::nullopt, std::nullopt, std::nullopt};

// Where no task or no prediction is, nothing reaches a gradient.
void fill_with_zeros(const ParameterGrads& grads) {
  for (const MaybeTensor* grad : {&grads.q, &grads.p, &grads.gamma, &grads.beta}) fill(*grad, 0.0);
}

// Runs the kernel of the network's structure and space.
template <class T>
void run(const Network<T>& network, bool response, const cuda::Parameters& parameters, const Tensor& z) {
  OnDevice device(z);
  if (network.gram_space && response) {
    device.run(cuda::response_gram_scratch(network, parameters),
               [&](const cuda::Launch& launch) { return cuda::response_gram(network, parameters, launch); });
  } else if (network.gram_space) {
    device.run(cuda::general_gram_scratch(network, parameters),
               [&](const cuda::Launch& launch) { return cuda::general_gram(network, parameters, launch); });
  } else if (response) {
    device.run(cuda::response_tokens_scratch(network, parameters),
               [&](const cuda::Launch& launch) { return cuda::response_tokens(network, parameters, launch); });
  } else {
    device.run(cuda::general_tokens_scratch(network, parameters),
               [&](const cuda::Launch& launch) { return cuda::general_tokens(network, parameters, launch); });
  }
}

void forward(const Tensor& z, const Tensor& q, const MaybeTensor& p, const MaybeTensor& gamma, const MaybeTensor& beta,
             const MaybeTensor& lengths, int64_t context, bool gram_space, int64_t queries, const Tensor& result) {
  if (result.numel() == 0) return;
  with_compute_type(z, [&](auto type) {
    const NetworkArguments given{z, q, p, gamma, beta, lengths, context, gram_space, queries};
    auto network = network_of<decltype(type)>(given);
    network.pass = Pass::forward;
    network.result = array_of(result);
    if (queries >= 0) network.result_layers = narrow(result.size(0), "result");
    run(network, is_response_only(given), parameters_of(given, network, none), z);
  });
}

void backward(const Tensor& grad, const Tensor& z, const Tensor& q, const MaybeTensor& p, const MaybeTensor& gamma,
              const MaybeTensor& beta, const MaybeTensor& lengths, int64_t context, bool gram_space, int64_t queries,
              const MaybeTensor& grad_z, const MaybeTensor& grad_q, const MaybeTensor& grad_p,
              const MaybeTensor& grad_gamma, const MaybeTensor& grad_beta) {
  const ParameterGrads grads{grad_q, grad_p, grad_gamma, grad_beta};
  if (grad.numel() == 0) {
    fill(grad_z, 0.0);
    return fill_with_zeros(grads);
  }
  with_compute_type(z, [&](auto type) {
    const NetworkArguments given{z, q, p, gamma, beta, lengths, context, gram_space, queries};
    auto network = network_of<decltype(type)>(given);
    network.pass = Pass::backward;
    network.result = array_of(grad);
    if (queries >= 0) network.result_layers = narrow(grad.size(0), "grad");
    network.grad_z = array_of(grad_z);
    run(network, is_response_only(given), parameters_of(given, network, grads), z);
  });
}

void loss(const Tensor& z, const Tensor& target, const Tensor& q, const MaybeTensor& p, const MaybeTensor& gamma,
          const MaybeTensor& beta, const MaybeTensor& lengths, int64_t context, bool gram_space, int64_t queries,
          const Tensor& value, const MaybeTensor& grad_z, const MaybeTensor& grad_target, const MaybeTensor& grad_q,
          const MaybeTensor& grad_p, const MaybeTensor& grad_gamma, const MaybeTensor& grad_beta) {
  const ParameterGrads grads{grad_q, grad_p, grad_gamma, grad_beta};
  if (target.numel() == 0) {
    fill(value, std::numeric_limits<double>::quiet_NaN());
    fill(grad_z, 0.0);
    return fill_with_zeros(grads);
  }
  with_compute_type(z, [&](auto type) {
    const NetworkArguments given{z, q, p, gamma, beta, lengths, context, gram_space, queries};
    auto network = network_of<decltype(type)>(given);
    network.pass = grads.any() || grad_z || grad_target ? Pass::loss_backward : Pass::loss;
    network.target = array_of(target);
    network.grad_z = array_of(grad_z);
    network.grad_target = array_of(grad_target);
    cuda::Parameters parameters = parameters_of(given, network, grads);
    parameters.loss = value.data_ptr();
    run(network, is_response_only(given), parameters, z);
  });
}

template <class T>
void run(const Gram<T>& call, const Tensor& z) {
  OnDevice(z).run(cuda::context_gram_scratch(call),
                  [&](const cuda::Launch& launch) { return cuda::context_gram(call, launch); });
}

void context_gram(const Tensor& z, const MaybeTensor& lengths, int64_t context, const Tensor& matrix) {
  if (z.size(0) == 0) return;
  with_compute_type(z, [&](auto type) { run(gram_of<decltype(type)>(z, lengths, context, matrix), z); });
}

void context_gram_backward(const Tensor& grad, const Tensor& z, const MaybeTensor& lengths, int64_t context,
                           const Tensor& grad_z) {
  if (z.size(0) == 0) return;
  with_compute_type(z, [&](auto type) {
    auto call = gram_of<decltype(type)>(z, lengths, context, grad);
    call.backward = true;
    call.grad_z = array_of(grad_z);
    run(call, z);
  });
}

template <class T>
void run(const Quadratics<T>& call, const cuda::Parameters& parameters, const Tensor& h) {
  OnDevice(h).run(cuda::quadratics_scratch(call, parameters),
                  [&](const cuda::Launch& launch) { return cuda::quadratics(call, parameters, launch); });
}

void lfom_solve(const Tensor& h, const Tensor& b, const Tensor& a, const MaybeTensor& gamma, const MaybeTensor& beta,
                const MaybeTensor& w0, const Tensor& result) {
  if (h.size(0) == 0) return;
  with_compute_type(h, [&](auto type) {
    const QuadraticsArguments given{h, b, a, gamma, beta, w0};
    const auto call = quadratics_of<decltype(type)>(given, result);
    run(call, parameters_of(given, call, none.q, none.gamma, none.beta), h);
  });
}

void lfom_solve_backward(const Tensor& grad, const Tensor& h, const Tensor& b, const Tensor& a,
                         const MaybeTensor& gamma, const MaybeTensor& beta, const MaybeTensor& w0,
                         const MaybeTensor& grad_h, const MaybeTensor& grad_b, const MaybeTensor& grad_a,
                         const MaybeTensor& grad_gamma, const MaybeTensor& grad_beta, const MaybeTensor& grad_w0) {
  if (h.size(0) == 0) return fill_with_zeros({grad_a, std::nullopt, grad_gamma, grad_beta});
  with_compute_type(h, [&](auto type) {
    const QuadraticsArguments given{h, b, a, gamma, beta, w0};
    auto call = quadratics_of<decltype(type)>(given, grad);
    call.backward = true;
    call.grad_h = array_of(grad_h);
    call.grad_b = array_of(grad_b);
    call.grad_w0 = array_of(grad_w0);
    run(call, parameters_of(given, call, grad_a, grad_gamma, grad_beta), h);
  });
}

template <class T>
void run(const Layer<T>& call, const cuda::Parameters& parameters, const Tensor& z) {
  OnDevice(z).run(cuda::layer_scratch(call, parameters),
                  [&](const cuda::Launch& launch) { return cuda::layer(call, parameters, launch); });
}

void layer(const Tensor& z, const Tensor& q, const MaybeTensor& p, const std::vector<Tensor>& registers,
           const MaybeTensor& gamma, const MaybeTensor& beta, const MaybeTensor& lengths, int64_t context,
           const Tensor& result, const Tensor& fresh) {
  if (z.size(0) == 0) return;
  with_compute_type(z, [&](auto type) {
    const LayerArguments given{z, q, p, registers, gamma, beta, lengths, context};
    auto call = layer_of<decltype(type)>(given);
    const auto past = registers_of(registers);
    call.registers = past.data();
    call.result = array_of(result);
    call.fresh = registers_of(fresh);
    run(call, parameters_of(given, call, none), z);
  });
}

void layer_backward(const Tensor& grad, const Tensor& grad_fresh, const Tensor& z, const Tensor& q,
                    const MaybeTensor& p, const std::vector<Tensor>& registers, const MaybeTensor& gamma,
                    const MaybeTensor& beta, const MaybeTensor& lengths, int64_t context, const MaybeTensor& grad_z,
                    const std::vector<Tensor>& grad_registers, const std::vector<bool>& wanted,
                    const MaybeTensor& grad_q, const MaybeTensor& grad_p, const MaybeTensor& grad_gamma,
                    const MaybeTensor& grad_beta) {
  const ParameterGrads grads{grad_q, grad_p, grad_gamma, grad_beta};
  if (z.size(0) == 0) return fill_with_zeros(grads);
  if (registers.empty()) fill(grad_beta, 0.0);
  with_compute_type(z, [&](auto type) {
    const LayerArguments given{z, q, p, registers, gamma, beta, lengths, context};
    auto call = layer_of<decltype(type)>(given);
    const auto past = registers_of(registers), places = wanted_registers(grad_registers, wanted);
    call.backward = true;
    call.registers = past.data();
    call.result = array_of(grad);
    call.fresh = registers_of(grad_fresh);
    call.grad_z = array_of(grad_z);
    call.grad_registers = places.data();
    run(call, parameters_of(given, call, grads), z);
  });
}

// From now on this thread's calls load their kernels and run none, or run them again. Results are not written then.
void rehearse_on_cuda(bool on) { rehearses = on; }

}  // namespace
}  // namespace memformer::binding

STABLE_TORCH_LIBRARY_FRAGMENT(memformer_native, m) { m.def("rehearse_on_cuda(bool on) -> ()"); }

STABLE_TORCH_LIBRARY_IMPL(memformer_native, CompositeExplicitAutograd, m) {
  m.impl("rehearse_on_cuda", TORCH_BOX(&memformer::binding::rehearse_on_cuda));
}

STABLE_TORCH_LIBRARY_IMPL(memformer_native, CUDA, m) {
  m.impl("forward", TORCH_BOX(&memformer::binding::forward));
  m.impl("backward", TORCH_BOX(&memformer::binding::backward));
  m.impl("loss", TORCH_BOX(&memformer::binding::loss));
  m.impl("context_gram", TORCH_BOX(&memformer::binding::context_gram));
  m.impl("context_gram_backward", TORCH_BOX(&memformer::binding::context_gram_backward));
  m.impl("lfom_solve", TORCH_BOX(&memformer::binding::lfom_solve));
  m.impl("lfom_solve_backward", TORCH_BOX(&memformer::binding::lfom_solve_backward));
  m.impl("layer", TORCH_BOX(&memformer::binding::layer));
  m.impl("layer_backward", TORCH_BOX(&memformer::binding::layer_backward));
}
