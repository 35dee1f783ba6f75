// Small networks of any structure in Gram space, one task a thread: 6 columns, float.

#include "cuda/grid.cuh"
#include "cuda/thread_gram.cuh"

namespace memformer::cuda {

template int run_thread_gram(const Network<float>&, const Parameters&, void*, const DeviceMachine&, core::Fixed<6>);

}  // namespace memformer::cuda
