// Small networks of any structure in Gram space, one task a thread, on the host.

#include "cuda/thread/thread_gram.cuh"
#include "cuda/thread/sizes.cuh"
#include "team_machine.h"

using namespace memformer::cuda;

extern "C" int thread_gram_fits(const int64_t* numbers) {
  Numbers given(numbers);
  const auto network = given.network<float>();
  return fits_thread(network, given.parameters());
}

extern "C" void thread_gram(const int64_t* numbers, int, unsigned order) {
  run_in_scratch<float>(
      numbers, order, [](auto& network, auto& parameters) { return thread_gram_bytes(network, parameters); },
      [](auto& network, auto& parameters, void* scratch, auto machine) {
        with_small_width(network.width,
                         [&](auto width) { return run_thread_gram(network, parameters, scratch, machine, width); });
      });
}
