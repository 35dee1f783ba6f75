// A register update as the kernel takes it.

#pragma once

#include <vector>

#include "binding/run.h"
#include "cpu/dispatch.h"

namespace memformer::binding {

// Holds the registers' addresses for the length of the call; `tokens` is z (A, M, C) or the gradient of the result.
template <class T>
class UpdateCall {
 public:
  UpdateCall(const Tensor& tokens, const std::vector<Tensor>& registers, const Tensor& gamma) {
    for (const Tensor& one : registers) values_.push_back(static_cast<const T*>(one.data_ptr()));
    call.before = tokens.size(0);
    call.middle = tokens.size(1);
    call.after = tokens.size(2);
    call.registers = static_cast<int64_t>(registers.size());
    call.tokens = static_cast<const T*>(tokens.data_ptr());
    call.values = values_.data();
    call.gamma = static_cast<const T*>(gamma.data_ptr());
  }

  void run() { cpu::kernels<T>().register_update(call, parallel_for); }

  RegisterUpdate<T> call{};

 private:
  std::vector<const T*> values_;
};

}  // namespace memformer::binding
