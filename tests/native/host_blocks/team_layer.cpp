// One layer with the registers of the layers before it, on the host.

#include "cuda/team/layer.cuh"
#include "team_machine.h"

using namespace memformer::cuda;

namespace {

memformer::Registers registers(Numbers& given) {
  memformer::Registers made;
  made.array = given.array();
  made.stride = given.number();
  return made;
}

template <class T>
void run(const int64_t* numbers, unsigned order) {
  Numbers given(numbers);
  memformer::Layer<T> layer{};
  layer.backward = given.number();
  layer.tasks = given.number();
  for (int* field : {&layer.tokens, &layer.width, &layer.heads, &layer.kept, &layer.earlier, &layer.context,
                     &layer.gamma_rows, &layer.beta_rows}) {
    *field = given.size();
  }
  layer.lengths = static_cast<const int64_t*>(given.pointer());
  layer.z = given.array();
  layer.result = given.array();
  layer.grad_z = given.array();
  layer.fresh = registers(given);
  std::vector<memformer::Registers> earlier, grads;
  for (int j = 0; j < layer.earlier; ++j) earlier.push_back(registers(given));
  for (int j = 0; j < layer.earlier; ++j) grads.push_back(registers(given));
  layer.registers = earlier.data();
  layer.grad_registers = grads.data();
  const Parameters parameters = given.parameters();
  Scratch scratch(layer_layout(layer, parameters).bytes);
  run_team_layer(layer, parameters, scratch.start(), HostMachine{order});
  scratch.check();
}

}  // namespace

extern "C" void layer(const int64_t* numbers, int wide, unsigned order) {
  wide ? run<double>(numbers, order) : run<float>(numbers, order);
}
