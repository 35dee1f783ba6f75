// Response-only networks in Gram space, on the host, for every size that is compiled for itself and for all others.

#include "cuda/thread/response_gram_plan.cuh"
#include "numbers.h"
#include "team_machine.h"

using namespace memformer::cuda;
namespace core = memformer::core;

namespace {

template <class T, class Extent>
void run(const int64_t* numbers, unsigned order, Extent d) {
  Numbers given(numbers);
  const auto network = given.network<T>();
  const Parameters parameters = given.parameters();
  Scratch scratch(response_gram_bytes(network, parameters));
  run_response_gram(network, parameters, scratch.start(), HostMachine{order}, d);
  scratch.check();
}

}  // namespace

// `fixed`: the number of features to use the instance of, or 0 for the one that serves all.
extern "C" void response_gram(const int64_t* numbers, int wide, unsigned order, int fixed) {
  const int d = Numbers(numbers).network<float>().width - 1;
  if (wide) return run<double>(numbers, order, core::UpTo<16>{d});
  switch (fixed) {
    case 1: return run<float>(numbers, order, core::Fixed<1>{});
    case 2: return run<float>(numbers, order, core::Fixed<2>{});
    case 3: return run<float>(numbers, order, core::Fixed<3>{});
    case 4: return run<float>(numbers, order, core::Fixed<4>{});
    case 5: return run<float>(numbers, order, core::Fixed<5>{});
    case 6: return run<float>(numbers, order, core::Fixed<6>{});
    case 7: return run<float>(numbers, order, core::Fixed<7>{});
    case 8: return run<float>(numbers, order, core::Fixed<8>{});
    default: return run<float>(numbers, order, core::UpTo<16>{d});
  }
}

// Where tasks lie in a tile, and the conflicts of a warp that reads it in vectors.
extern "C" int tile_task_bytes(int rows, int width, int number_bytes) {
  return tile_layout(rows, width, number_bytes).task_bytes;
}
extern "C" int tile_conflicts(int rows, int width, int number_bytes) {
  return bank_conflicts(tile_task_bytes(rows, width, number_bytes), vector_bytes(width * number_bytes));
}
