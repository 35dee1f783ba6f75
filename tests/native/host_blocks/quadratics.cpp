// Learned first-order methods on given quadratics, on the host, for every size that is compiled for itself and for all
// others.

#include "cuda/thread/quadratics.cuh"
#include "cuda/thread/sizes.cuh"
#include "team_machine.h"

using namespace memformer;
using namespace memformer::cuda;

namespace {

template <class T>
Quadratics<T> read_call(Numbers& given) {
  Quadratics<T> call{};
  call.backward = given.number();
  call.diagonal = given.number();
  call.tasks = given.number();
  call.weights = given.size();
  call.layers = given.size();
  call.h = given.array();
  call.b = given.array();
  call.w0 = given.array();
  call.result = given.array();
  call.result_layers = given.size();
  call.grad_h = given.array();
  call.grad_b = given.array();
  call.grad_w0 = given.array();
  return call;
}

template <class T, class Extent>
int run(const int64_t* numbers, unsigned order, Extent d) {
  Numbers given(numbers);
  const auto call = read_call<T>(given);
  const Parameters parameters = given.parameters();
  Scratch scratch(quadratics_bytes(call, parameters));
  run_quadratics(call, parameters, scratch.start(), HostMachine{order}, d);
  scratch.check();
  return 0;
}

}  // namespace

// `fixed`: whether by the instance of this number of weights, where there is one, or by that for all.
extern "C" void quadratics(const int64_t* numbers, int wide, unsigned order, int fixed) {
  const int d = static_cast<int>(numbers[3]);
  if (wide) {
    run<double>(numbers, order, core::UpTo<16>{d});
  } else {
    with_weights<float>(d, fixed, [&](auto extent) { return run<float>(numbers, order, extent); });
  }
}
