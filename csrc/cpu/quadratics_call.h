// Learned first-order methods as their kernels take them: steps may end in a prox.

#pragma once

#include "core/calls.h"
#include "core/proximal_parameters.h"

namespace memformer {

// The totals go on behind those of beta with the gradients of level, lower, upper and radius, of those that there are.
template <class T>
struct ProximalQuadratics : Quadratics<T> {
  core::Proximal<const T> proximal;  // in the dense form, nothing where no step ends in a prox
};

}  // namespace memformer
