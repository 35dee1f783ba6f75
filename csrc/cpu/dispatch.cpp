#include "cpu/dispatch.h"

#include <atomic>
#include <cstring>

#include "cpu/kernels.h"

namespace memformer::cpu {
namespace {

struct InstructionSet {
  const char* name;
  bool (*present)();
  Kernels<float> single;
  Kernels<double> dual;
};

#define MEMFORMER_TABLE(isa) \
  {isa::response_gram, isa::response_tokens, isa::wide_gram,       isa::wide_tokens,  isa::general_gram, isa::general_tokens, \
   isa::context_gram,  isa::quadratics,      isa::wide_quadratics, isa::layer,        isa::train,        isa::train_gradients, \
   isa::train_update,  isa::random_numbers,  isa::sample_tasks,    isa::register_update, isa::attention}
#define MEMFORMER_SET(isa, present) {#isa, present, MEMFORMER_TABLE(isa), MEMFORMER_TABLE(isa)}

// Widest first.
const InstructionSet sets[] = {
#if defined(__x86_64__)
    MEMFORMER_SET(avx512,
                  [] {
                    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl") &&
                           __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512bw") &&
                           __builtin_cpu_supports("fma");
                  }),
    MEMFORMER_SET(avx2, [] { return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"); }),
#endif
    MEMFORMER_SET(baseline, [] { return true; }),
};

#undef MEMFORMER_SET
#undef MEMFORMER_TABLE

const InstructionSet* widest() {
#if defined(__x86_64__)
  __builtin_cpu_init();
#endif
  const InstructionSet* set = sets;
  while (!set->present()) ++set;
  return set;
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

const char* instruction_set() { return in_use().load()->name; }

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
