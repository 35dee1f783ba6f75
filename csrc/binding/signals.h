// Signals during a call: Python's handlers run while it lasts, and what they raise ends it.
//
// The library knows nothing of Python and is linked to none: it asks the process it finds itself in, by the functions
// of Python's stable ABI. Without them, and on any thread but the first, where Python runs no handlers, nothing is
// asked.
//
// On the short way (memformer_kernels/torch_ops/fast_path.py) handlers find grad mode as the caller has it. On every
// other the dispatcher has excluded autograd's keys, which PyTorch's stable ABI does not reach: handlers that want
// gradients then get none, as in any kernel of PyTorch's that is written in Python.

#pragma once

#include "cpu/threads.h"

namespace memformer::binding {

// Runs the handlers of signals that have come. Whether one of them raised: then the exception is raised on this thread
// as soon as Python goes on, which is when the call returns.
bool signal_raised();

// An operator that ends early where a handler raises. It then returns without a result, which nobody sees: the
// exception comes first. For operators that write to nothing but what their caller has just allocated for them, or only
// when they can no longer end early.
template <auto function>
struct Interruptible;

template <class... Arguments, void (*function)(Arguments...)>
struct Interruptible<function> {
  static void run(Arguments... arguments) {
    const cpu::Polling polling(&signal_raised);
    try {
      function(arguments...);
    } catch (const cpu::Interrupted&) {
    }
  }
};

}  // namespace memformer::binding
