// Networks of any structure in Gram space, on the host.

#include "cuda/team/general_gram.cuh"
#include "team_machine.h"

using namespace memformer::cuda;

template <class T>
static void run(const int64_t* numbers, unsigned order) {
  run_in_scratch<T>(
      numbers, order,
      [](auto& network, auto& parameters) { return network_layout<T, GeneralGram>(network, parameters).bytes; },
      [](auto& network, auto& parameters, void* scratch, auto machine) {
        run_team_network<T, GeneralGram>(network, parameters, scratch, machine);
      });
}

extern "C" void general_gram(const int64_t* numbers, int wide, unsigned order) {
  wide ? run<double>(numbers, order) : run<float>(numbers, order);
}
