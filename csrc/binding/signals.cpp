#include "binding/signals.h"

#include <dlfcn.h>
#include <sys/syscall.h>
#include <unistd.h>

namespace memformer::binding {
namespace {

// Of Python's stable ABI, as far as it is used here; its objects are only handed on.
struct Python {
  int (*is_initialized)();
  int (*ensure)();
  void (*release)(int);
  int (*check_signals)();
  void (*fetch)(void**, void**, void**);
  void (*restore)(void*, void*, void*);
  int (*add_pending_call)(int (*)(void*), void*);

  bool found() const {
    return is_initialized && ensure && release && check_signals && fetch && restore && add_pending_call;
  }
};

template <class Function>
void find(const char* name, Function& function) {
  function = reinterpret_cast<Function>(dlsym(RTLD_DEFAULT, name));
}

Python find_python() {
  Python made{};
  find("Py_IsInitialized", made.is_initialized);
  find("PyGILState_Ensure", made.ensure);
  find("PyGILState_Release", made.release);
  find("PyErr_CheckSignals", made.check_signals);
  find("PyErr_Fetch", made.fetch);
  find("PyErr_Restore", made.restore);
  find("Py_AddPendingCall", made.add_pending_call);
  return made;
}

const Python& python() {
  static const Python found = find_python();
  return found;
}

struct Raised {
  void *kind, *value, *trace;
};

int raise_now(void* given) {
  const auto* const raised = static_cast<const Raised*>(given);
  python().restore(raised->kind, raised->value, raised->trace);
  delete raised;
  return -1;
}

bool is_first_thread() { return syscall(SYS_gettid) == getpid(); }

}  // namespace

bool signal_raised() {
  const Python& py = python();
  if (!is_first_thread() || !py.found() || !py.is_initialized()) return false;
  const int state = py.ensure();
  const bool came = py.check_signals() != 0;
  if (came) {
    auto* const raised = new Raised{};
    py.fetch(&raised->kind, &raised->value, &raised->trace);
    // Full, it stays as it is: Python then finds an error that nobody has reported, and reports it.
    if (py.add_pending_call(&raise_now, raised) != 0) raise_now(raised);
  }
  py.release(state);
  return came;
}

}  // namespace memformer::binding
