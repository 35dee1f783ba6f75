// Networks of any structure in token space, on the host.

#include "cuda/team/general_tokens.cuh"
#include "team_machine.h"

using namespace memformer::cuda;

template <class T>
static void run(const int64_t* numbers, unsigned order) {
  run_in_scratch<T>(
      numbers, order,
      [](auto& network, auto& parameters) { return network_layout<T, GeneralTokens>(network, parameters).bytes; },
      [](auto& network, auto& parameters, void* scratch, auto machine) {
        run_team_network<T, GeneralTokens>(network, parameters, scratch, machine);
      });
}

extern "C" void general_tokens(const int64_t* numbers, int wide, unsigned order) {
  wide ? run<double>(numbers, order) : run<float>(numbers, order);
}
