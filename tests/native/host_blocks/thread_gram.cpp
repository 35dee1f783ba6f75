// Small networks of any structure in Gram space, one task a thread, on the host.

#include "cuda/thread/thread_gram.cuh"
#include "cuda/thread/sizes.cuh"
#include "numbers.h"
#include "team_machine.h"

using namespace memformer::cuda;

extern "C" int thread_gram_fits(const int64_t* numbers) {
  Numbers given(numbers);
  const auto network = given.network<float>();
  return fits_thread(network, given.parameters());
}

extern "C" void thread_gram(const int64_t* numbers, int, unsigned order) {
  Numbers given(numbers);
  const auto network = given.network<float>();
  const Parameters parameters = given.parameters();
  Scratch scratch(thread_gram_bytes(network, parameters));
  with_small_width(network.width, [&](auto width) {
    return run_thread_gram(network, parameters, scratch.start(), HostMachine{order}, width);
  });
  scratch.check();
}
