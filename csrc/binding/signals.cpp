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
  int (*set_attribute)(void*, const char*, void*);
  void* (*truth)(long);
  int (*is_true)(void*);
  void (*forget)(void*);

  bool found() const {
    return is_initialized && ensure && release && check_signals && fetch && restore && add_pending_call && clear && text &&
           module && attribute && set_attribute && truth && is_true && forget;
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
  find("PyObject_SetAttrString", made.set_attribute);
  find("PyBool_FromLong", made.truth);
  find("PyObject_IsTrue", made.is_true);
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

// While it lives, grad mode is on where memformer_kernels.nodes.caller says that the caller has it on: autograd runs a node's
// forward with it off.
class CallersGradMode {
 public:
  explicit CallersGradMode(const Python& py) : py_(py), caller_(find_caller()), within_(aoti_torch_grad_mode_is_enabled()) {
    void* const learns = caller_ ? py_.attribute(caller_, "learns") : nullptr;
    switched_ = learns && py_.is_true(learns) == 1;
    py_.forget(learns);
    py_.clear();
    if (!switched_) return;
    tell(false);
    aoti_torch_grad_mode_set_enabled(true);
  }

  ~CallersGradMode() {
    if (switched_) {
      aoti_torch_grad_mode_set_enabled(within_);
      tell(true);
    }
    py_.forget(caller_);
  }

  CallersGradMode(const CallersGradMode&) = delete;
  CallersGradMode& operator=(const CallersGradMode&) = delete;

 private:
  void* find_caller() const {
    void* const name = py_.text("memformer_kernels.nodes");
    void* const nodes = name ? py_.module(name) : nullptr;
    void* const found = nodes ? py_.attribute(nodes, "caller") : nullptr;
    py_.forget(name);
    py_.forget(nodes);
    py_.clear();
    return found;
  }

  // The handlers' own calls have callers of their own.
  void tell(bool learns) {
    void* const value = py_.truth(learns);
    if (py_.set_attribute(caller_, "learns", value) != 0) py_.clear();
    py_.forget(value);
  }

  const Python& py_;
  void* const caller_;
  const bool within_;
  bool switched_ = false;
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
