// A call's arguments from Python: one list of 64-bit integers, read in order; pointers are addresses.

#pragma once

#include "cuda/launch.h"

namespace memformer::cuda {

class Numbers {
 public:
  explicit Numbers(const int64_t* numbers) : next_(numbers) {}

  int64_t number() { return *next_++; }
  int size() { return static_cast<int>(number()); }
  void* pointer() { return reinterpret_cast<void*>(static_cast<std::uintptr_t>(number())); }
  Storage storage() { return static_cast<Storage>(number()); }

  Array array() {
    Array made;
    made.data = pointer();
    made.storage = storage();
    for (int64_t& stride : made.stride) stride = number();
    return made;
  }

  Parameter parameter() {
    Parameter made;
    made.present = number();
    made.data = pointer();
    made.storage = storage();
    for (int& size_of_axis : made.size) size_of_axis = size();
    for (int& given : made.given) given = size();
    for (int64_t& stride : made.stride) stride = number();
    made.matrix = number();
    made.corner = static_cast<float>(number());
    made.lower = number();
    made.first_column = size();
    made.context = size();
    made.first_query = size();
    made.grad = pointer();
    made.grad_storage = storage();
    return made;
  }

  Parameters parameters() {
    Parameters made;
    made.q = parameter();
    made.p = parameter();
    made.gamma = parameter();
    made.beta = parameter();
    made.loss = pointer();
    return made;
  }

  template <class T>
  Network<T> network() {
    Network<T> made{};
    made.pass = static_cast<Pass>(number());
    made.block = number();
    made.diagonal = number();
    made.tasks = number();
    for (int* field : {&made.tokens, &made.width, &made.layers, &made.heads, &made.kept, &made.context, &made.queries,
                       &made.gamma_rows, &made.beta_rows, &made.result_layers}) {
      *field = size();
    }
    made.lengths = static_cast<const int64_t*>(pointer());
    made.z = array();
    made.result = array();
    made.target = array();
    made.grad_z = array();
    made.grad_target = array();
    return made;
  }

 private:
  const int64_t* next_;
};

}  // namespace memformer::cuda
