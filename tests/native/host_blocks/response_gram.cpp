// Response-only networks in Gram space, on the host, for every size that is compiled for itself and for all others.

#include "cuda/thread/response_gram_plan.cuh"
#include "cuda/thread/sizes.cuh"
#include "team_machine.h"

using namespace memformer::cuda;
namespace core = memformer::core;

namespace {

template <class T, class Extent>
int run(const int64_t* numbers, unsigned order, Extent d) {
  run_in_scratch<T>(
      numbers, order, [](auto& network, auto& parameters) { return response_gram_bytes(network, parameters); },
      [d](auto& network, auto& parameters, void* scratch, auto machine) {
        run_response_gram(network, parameters, scratch, machine, d);
      });
  return 0;
}

}  // namespace

// `fixed`: whether by the instance of this number of features, where there is one, or by that for all.
extern "C" void response_gram(const int64_t* numbers, int wide, unsigned order, int fixed) {
  const int d = Numbers(numbers).network<float>().width - 1;
  if (wide) {
    run<double>(numbers, order, core::UpTo<16>{d});
  } else {
    with_weights<float>(d, fixed, [&](auto extent) { return run<float>(numbers, order, extent); });
  }
}

// Where tasks lie in a tile, and the conflicts of a warp that reads it in vectors.
extern "C" int tile_task_bytes(int rows, int width, int number_bytes) {
  return tile_layout(rows, width, number_bytes).task_bytes;
}
extern "C" int tile_conflicts(int rows, int width, int number_bytes) {
  return bank_conflicts(tile_task_bytes(rows, width, number_bytes), vector_bytes(width * number_bytes));
}
