// The dense forms of a call's parameters in device memory, for kernels whose blocks are too small to keep their own.
//
// One block a parameter, one entry a thread at a time. Bytes: the parameters once, and what is written. Operations: an
// addition for each head that is added up.

#pragma once

#include "cuda/machine/parameters.cuh"

namespace memformer::cuda {

template <class T>
struct DenseParameters {
  struct Arguments {
    Parameters parameters;
    T* to;  // q, p, gamma, beta, one after another
  };
  static constexpr int threads = 256;
  static constexpr int blocks_of_multiprocessor = 2;
  static constexpr int parameters = 4;

  template <class Block>
  static MEMFORMER_DEVICE void run(const Arguments& arguments, const Block& block) {
    const Parameters& given = arguments.parameters;
    T* const p = arguments.to + given.q.count();
    T* const gamma = p + given.p.count();
    for (int64_t which = block.index(); which < parameters; which += block.count()) {
      if (which == 0 && given.q.present) load_parameter(block, given.q, arguments.to);
      if (which == 1 && given.p.present) load_parameter(block, given.p, p);
      if (which == 2 && given.gamma.present) load_parameter(block, given.gamma, gamma);
      if (which == 3 && given.beta.present) load_parameter(block, given.beta, gamma + given.gamma.count());
    }
  }
};

}  // namespace memformer::cuda
