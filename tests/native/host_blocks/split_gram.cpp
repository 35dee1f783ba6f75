// Response-only networks of 9 to 16 features with four lanes to a task, on the host.

#include "cuda/team/split_gram_plan.cuh"
#include "team_machine.h"

using namespace memformer::cuda;

template <class T>
static void run(const int64_t* numbers, unsigned order) {
  run_in_scratch<T>(
      numbers, order, [](auto& network, auto& parameters) { return split_gram_bytes(network, parameters); },
      [](auto& network, auto& parameters, void* scratch, auto machine) {
        run_split_gram(network, parameters, scratch, machine);
      });
}

extern "C" int split_gram_fits(const int64_t* numbers) {
  Numbers given(numbers);
  const auto network = given.network<float>();
  return fits_split(network, given.parameters());
}

extern "C" void split_gram(const int64_t* numbers, int wide, unsigned order) {
  wide ? run<double>(numbers, order) : run<float>(numbers, order);
}
