// Response-only networks in token space with rows in registers, on the host.

#include "cuda/team/token_rows_plan.cuh"
#include "team_machine.h"

using namespace memformer::cuda;

extern "C" int token_rows_fits(const int64_t* numbers) {
  Numbers given(numbers);
  const auto network = given.network<float>();
  return fits_rows(network, given.parameters());
}

extern "C" void token_rows(const int64_t* numbers, int, unsigned order) {
  run_in_scratch<float>(
      numbers, order, [](auto& network, auto& parameters) { return token_rows_bytes(network, parameters); },
      [](auto& network, auto& parameters, void* scratch, auto machine) {
        run_token_rows(network, parameters, scratch, machine);
      });
}
