#include "cpu/dispatch.h"

#include <atomic>
#include <cstring>

#define MEMFORMER_ADDRESS(result, name, ...) &name,
#define MEMFORMER_TABLE(isa)                                           \
  namespace isa {                                                      \
  template <class T>                                                   \
  constexpr Kernels<T> table{MEMFORMER_KERNELS(MEMFORMER_ADDRESS, T)}; \
  }

namespace memformer::cpu {

#if defined(MEMFORMER_HAS_baseline)
MEMFORMER_TABLE(baseline)
#endif
#if defined(MEMFORMER_HAS_avx2)
MEMFORMER_TABLE(avx2)
#endif
#if defined(MEMFORMER_HAS_avx512)
MEMFORMER_TABLE(avx512)
#endif

#undef MEMFORMER_TABLE
#undef MEMFORMER_ADDRESS

namespace {

struct InstructionSet {
  const char* name;
  bool (*present)();
  Kernels<float> single;
  Kernels<double> dual;
};

#define MEMFORMER_SET(isa, present) {#isa, present, isa::table<float>, isa::table<double>}

// Those of this build, widest first.
const InstructionSet sets[] = {
#if defined(MEMFORMER_HAS_avx512)
    MEMFORMER_SET(avx512,
                  [] {
                    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl") &&
                           __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512bw") &&
                           __builtin_cpu_supports("fma");
                  }),
#endif
#if defined(MEMFORMER_HAS_avx2)
    MEMFORMER_SET(avx2, [] { return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"); }),
#endif
#if defined(MEMFORMER_HAS_baseline)
    MEMFORMER_SET(baseline, [] { return true; }),
#endif
};

#undef MEMFORMER_SET

// Null: this build is for other processors.
const InstructionSet* widest() {
#if defined(__x86_64__)
  __builtin_cpu_init();
#endif
  for (const InstructionSet& set : sets) {
    if (set.present()) return &set;
  }
  return nullptr;
}

std::atomic<const InstructionSet*>& in_use() {
  static std::atomic<const InstructionSet*> set{widest()};
  return set;
}

}  // namespace

template <>
const Kernels<float>& kernels() {
  return in_use().load()->single;
}

template <>
const Kernels<double>& kernels() {
  return in_use().load()->dual;
}

const char* instruction_set() {
  const InstructionSet* const set = in_use().load();
  return set ? set->name : "";
}

bool use_instruction_set(const char* name) {
  in_use();
  for (const InstructionSet& set : sets) {
    if (std::strcmp(set.name, name) == 0 && set.present()) {
      in_use().store(&set);
      return true;
    }
  }
  return false;
}

}  // namespace memformer::cpu
