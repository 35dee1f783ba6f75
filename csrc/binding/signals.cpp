#include "binding/signals.h"

#include <dlfcn.h>
#include <sys/syscall.h>
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
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
  void (*clear)();
  void* (*text)(const char*);
  void* (*module)(void*);
  void* (*attribute)(void*, const char*);
  void* (*frame)();
  void* (*entry)(void*, void*);
  int (*is_true)(void*);
  void (*keep)(void*);
  void (*forget)(void*);

  bool found() const {
    return is_initialized && ensure && release && check_signals && fetch && restore && add_pending_call && clear &&
           text && module && attribute && frame && entry && is_true && keep && forget;
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
  find("PyErr_Clear", made.clear);
  find("PyUnicode_FromString", made.text);
  find("PyImport_GetModule", made.module);
  find("PyObject_GetAttrString", made.attribute);
  find("PyEval_GetFrame", made.frame);
  find("PyDict_GetItemWithError", made.entry);
  find("PyObject_IsTrue", made.is_true);
  find("Py_IncRef", made.keep);
  find("Py_DecRef", made.forget);
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

// Whether the call's maker has grad mode on although it is off here: so says `turns` of torch_ops.nodes, of the
// innermost of its frames that it knows.
bool caller_has_grad_mode(const Python& py) {
  void* const name = py.text("memformer_kernels.torch_ops.nodes");
  void* const nodes = name ? py.module(name) : nullptr;
  void* const turns = nodes ? py.attribute(nodes, "turns") : nullptr;
  void* known = nullptr;  // an entry of the dictionary, which keeps it
  void* frame = turns ? py.frame() : nullptr;
  py.keep(frame);
  while (frame && !known) {
    void* const code = py.attribute(frame, "f_code");
    if (!code) break;  // None, behind the outermost
    known = py.entry(turns, code);
    py.forget(code);
    void* const outer = py.attribute(frame, "f_back");
    py.forget(frame);
    frame = outer;
  }
  const bool has = known && py.is_true(known) == 1;
  for (void* const held : {frame, turns, nodes, name}) py.forget(held);
  py.clear();
  return has;
}

// While it lives, grad mode is as the caller has it.
class CallersGradMode {
 public:
  explicit CallersGradMode(const Python& py)
      : switched_(!aoti_torch_grad_mode_is_enabled() && caller_has_grad_mode(py)) {
    if (switched_) aoti_torch_grad_mode_set_enabled(true);
  }
  ~CallersGradMode() {
    if (switched_) aoti_torch_grad_mode_set_enabled(false);
  }
  CallersGradMode(const CallersGradMode&) = delete;
  CallersGradMode& operator=(const CallersGradMode&) = delete;

 private:
  const bool switched_;
};

bool is_first_thread() { return syscall(SYS_gettid) == getpid(); }

// What a handler raised, or null.
Raised* run_handlers(const Python& py) {
  const CallersGradMode caller(py);
  if (py.check_signals() == 0) return nullptr;
  auto* const raised = new Raised{};
  py.fetch(&raised->kind, &raised->value, &raised->trace);
  return raised;
}

}  // namespace

bool signal_raised() {
  const Python& py = python();
  if (!is_first_thread() || !py.found() || !py.is_initialized()) return false;
  const int state = py.ensure();
  auto* const raised = run_handlers(py);
  if (raised) {
    // Full, it stays as it is: Python then finds an error that nobody has reported, and reports it.
    if (py.add_pending_call(&raise_now, raised) != 0) raise_now(raised);
  }
  py.release(state);
  return raised != nullptr;
}

}  // namespace memformer::binding
