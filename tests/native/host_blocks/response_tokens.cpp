// Response-only networks in token space, on the host.

#include "cuda/team/response_tokens.cuh"
#include "team_machine.h"

using namespace memformer::cuda;

template <class T>
static void run(const int64_t* numbers, unsigned order) {
  run_in_scratch<T>(
      numbers, order, [](auto& network, auto& parameters) { return response_tokens_layout(network, parameters).bytes; },
      [](auto& network, auto& parameters, void* scratch, auto machine) {
        run_response_tokens(network, parameters, scratch, machine);
      });
}

extern "C" void response_tokens(const int64_t* numbers, int wide, unsigned order) {
  wide ? run<double>(numbers, order) : run<float>(numbers, order);
}
