// Calls of teams on a device.

#pragma once

#include "cuda/grid.cuh"
#include "cuda/team_plan.cuh"

namespace memformer::cuda {

extern template int launch_kernel<DenseParameters<float>>(const DenseParameters<float>::Arguments&, int64_t, int64_t,
                                                          const Launch&);
extern template int launch_kernel<DenseParameters<double>>(const DenseParameters<double>::Arguments&, int64_t, int64_t,
                                                           const Launch&);

}  // namespace memformer::cuda
