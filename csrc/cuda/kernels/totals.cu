// Sums over all tasks: the last launch of every call that has any.

#include "cuda/grid.cuh"

namespace memformer::cuda {

template int launch_totals(const Partials<float>&, const Parameters&, int64_t, double, const Launch&);
template int launch_totals(const Partials<double>&, const Parameters&, int64_t, double, const Launch&);

}  // namespace memformer::cuda
