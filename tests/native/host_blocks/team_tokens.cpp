// Networks of any structure in token space, on the host.

#include "cuda/team/general_tokens.cuh"
#include "numbers.h"
#include "team_machine.h"

using namespace memformer::cuda;

namespace {

template <class T>
void run(const int64_t* numbers, unsigned order) {
  Numbers given(numbers);
  const auto network = given.network<T>();
  const Parameters parameters = given.parameters();
  Scratch scratch(network_layout<T, GeneralTokens>(network, parameters).bytes);
  run_team_network<T, GeneralTokens>(network, parameters, scratch.start(), HostMachine{order});
  scratch.check();
}

}  // namespace

extern "C" void general_tokens(const int64_t* numbers, int wide, unsigned order) {
  wide ? run<double>(numbers, order) : run<float>(numbers, order);
}
