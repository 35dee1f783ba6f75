// Parameters as the kernels find them on the device: where the caller has them, what their axes mean, and where their
// gradients go.

#pragma once

#include "binding/arguments.h"
#include "cuda/launch.h"

namespace memformer::binding {

// Which of the kernels' axes [l, j, head, row, column] the caller's axes are, aligned at the end.
constexpr int paired_axes[] = {0, 1, 2, 3, 4};  // [l, j, ...]
constexpr int layer_axes[] = {0, 2, 3, 4};      // [l or j, head, row, column], as far as they are there
constexpr int matrix_axes[] = {0, 3, 4};        // [l, row, column]

template <int Count>
cuda::Parameter parameter_of(const Tensor& given, const MaybeTensor& grad, const int (&axes)[Count],
                             const int (&size)[5]) {
  cuda::Parameter made;
  made.present = true;
  made.data = given.data_ptr();
  made.storage = storage_of(given);
  const auto sizes = given.sizes();
  const auto strides = given.strides();
  const int count = static_cast<int>(sizes.size());
  for (int k = 1; k <= count; ++k) {
    made.given[axes[Count - k]] = narrow(sizes[count - k], "q, p, gamma and beta");
    made.stride[axes[Count - k]] = strides[count - k];
  }
  for (int k = 0; k < 5; ++k) made.size[k] = size[k];
  narrow_product({size[0], size[1], size[2], size[3], size[4]}, "the numbers of q, p, gamma or beta");
  if (grad) {
    made.grad = grad->data_ptr();
    made.grad_storage = storage_of(*grad);
  }
  return made;
}

// Q or P, `heads` matrices of `width` columns a layer; what the caller's smaller ones or none lack is zeros and the
// corner.
template <int Count>
cuda::Parameter projection_of(const MaybeTensor& given, const MaybeTensor& grad, const int (&axes)[Count], int layers,
                              int heads, int width, float corner) {
  const int size[] = {layers, 1, heads, width, width};
  cuda::Parameter made;
  if (given) {
    made = parameter_of(*given, grad, axes, size);
  } else {
    for (int k = 0; k < 5; ++k) made.size[k] = size[k];
    made.given[3] = made.given[4] = 0;
    made.present = true;
  }
  made.matrix = true;
  made.corner = corner;
  return made;
}

inline cuda::Parameter coefficient_rows(cuda::Parameter made, const Rows& rows, int first_column) {
  made.first_column = first_column;
  made.context = rows.context;
  made.first_query = rows.first_query;
  return made;
}

template <class T>
cuda::Parameters parameters_of(const NetworkArguments& given, const Network<T>& network, const ParameterGrads& grads) {
  const bool response = is_response_only(given);
  const int layers = network.layers, width = network.width;
  const int matrix = response || network.block ? width - 1 : width;
  const int first = response ? width - 1 : 0, columns = width - first;
  const Rows rows = rows_of(network);
  cuda::Parameters made;
  made.q = projection_of(given.q, grads.q, layer_axes, layers, network.heads, matrix, 0.0f);
  if (!response) made.p = projection_of(given.p, grads.p, layer_axes, layers, network.heads, matrix, 1.0f);
  if (given.gamma && network.diagonal) {
    made.gamma =
        parameter_of(*given.gamma, grads.gamma, layer_axes, {layers, 1, network.kept, network.gamma_rows, columns});
  } else if (given.gamma) {
    made.gamma = parameter_of(*given.gamma, grads.gamma, paired_axes,
                              {layers, layers, network.kept, network.gamma_rows, columns});
    made.gamma.lower = true;
  }
  made.gamma = coefficient_rows(made.gamma, rows, first);
  if (given.beta) {
    made.beta =
        parameter_of(*given.beta, grads.beta, layer_axes, {layers, 1, network.kept, network.beta_rows, columns});
  }
  made.beta = coefficient_rows(made.beta, rows, first);
  return made;
}

template <class T>
cuda::Parameters parameters_of(const QuadraticsArguments& given, const Quadratics<T>& call, const MaybeTensor& grad_a,
                               const MaybeTensor& grad_gamma, const MaybeTensor& grad_beta) {
  const int layers = call.layers, d = call.weights;
  cuda::Parameters made;
  made.q = projection_of(given.a, grad_a, matrix_axes, layers, 1, d, 0.0f);
  if (given.gamma) {
    made.gamma = parameter_of(*given.gamma, grad_gamma, paired_axes, {layers, layers, 1, 1, d});
    made.gamma.lower = true;
  }
  if (given.beta) made.beta = parameter_of(*given.beta, grad_beta, layer_axes, {layers, 1, 1, 1, d});
  return made;
}

// beta multiplies the newest earlier register: without one it is not read.
template <class T>
cuda::Parameters parameters_of(const LayerArguments& given, const Layer<T>& call, const ParameterGrads& grads) {
  const int width = call.width;
  const Rows rows{call.tokens, call.tokens, call.tokens};
  cuda::Parameters made;
  made.q = projection_of(given.q, grads.q, layer_axes, 1, call.heads, width, 0.0f);
  made.p = projection_of(given.p, grads.p, layer_axes, 1, call.heads, width, 1.0f);
  if (given.gamma) {
    made.gamma =
        parameter_of(*given.gamma, grads.gamma, layer_axes, {call.earlier + 1, 1, call.kept, call.gamma_rows, width});
  }
  made.gamma = coefficient_rows(made.gamma, rows, 0);
  if (given.beta && call.earlier) {
    made.beta = parameter_of(*given.beta, grads.beta, layer_axes, {1, 1, call.kept, call.beta_rows, width});
  }
  made.beta = coefficient_rows(made.beta, rows, 0);
  return made;
}

}  // namespace memformer::binding
