// The machine as Python calls it.

#include <algorithm>

#include "launch.h"

namespace virtual_gpu {
namespace {

const Registry& registry() {
  static const Registry all = [] {
    Registry made;
    add_arithmetic(made);
    add_integers(made);
    add_comparisons(made);
    add_conversions(made);
    add_moves(made);
    add_loads_and_stores(made);
    add_atomics(made);
    add_copies(made);
    add_bulk_copies(made);
    add_mbarriers(made);
    add_barriers(made);
    add_exchanges(made);
    add_matrices(made);
    add_tensor_cores(made);
    return made;
  }();
  return all;
}

Instruction decoded(const Record& record, const Operand* operands, const Operation& operation) {
  Instruction made{};
  made.run = operation.run;
  made.nature = operation.nature;
  made.operands = operands + record.first_operand;
  made.guard = record.guard < 0 ? nullptr : operands + record.guard;
  made.immediates[0] = record.immediates[0];
  made.immediates[1] = record.immediates[1];
  made.count = record.operands;
  made.results = record.results;
  made.target = record.target;
  made.reconverge = record.reconverge;
  made.control = record.control;
  made.flags = static_cast<u16>(record.flags);
  made.space = static_cast<u8>(record.space);
  made.saturates = operation.nature == Nature::Plain && (record.flags & 1);
  made.file = record.file;
  made.line = record.line;
  return made;
}

}  // namespace
}  // namespace virtual_gpu

using namespace virtual_gpu;

#pragma GCC visibility push(default)
extern "C" {

// The index of the first key that is no operation of the machine, or -1.
i64 vgpu_unknown(const char* const* keys, i64 count) {
  for (i64 k = 0; k < count; ++k) {
    if (registry().find(keys[k]) == registry().end()) return k;
  }
  return -1;
}

Program* vgpu_program(const Record* records, i64 count, const Operand* operands, i64 operand_count,
                      const char* const* keys, const char* constants, i64 constant_bytes,
                      const SpecialRegister* special, i64 special_count, u32 register_bytes, u32 registers,
                      u32 local_bytes, u32 static_shared) {
  auto program = std::make_unique<Program>();
  program->operands.assign(operands, operands + operand_count);
  program->constants = aligned_bytes(static_cast<size_t>(constant_bytes));
  std::memcpy(program->constants.get(), constants, static_cast<size_t>(constant_bytes));
  program->special.assign(special, special + special_count);
  program->register_bytes = register_bytes;
  program->registers = registers;
  program->local_bytes = local_bytes;
  program->static_shared = static_shared;
  program->code.reserve(static_cast<size_t>(count));
  for (i64 k = 0; k < count; ++k) {
    program->code.push_back(decoded(records[k], program->operands.data(), registry().at(keys[records[k].key])));
  }
  return program.release();
}

void vgpu_free_program(Program* program) { delete program; }

Machine* vgpu_machine(u32 order, u32 multiprocessors, int initialised, int races) {
  auto machine = std::make_unique<Machine>();
  machine->order = order;
  machine->multiprocessors = multiprocessors;
  machine->checks = {initialised != 0, races != 0};
  return machine.release();
}

void vgpu_free_machine(Machine* machine) { delete machine; }

void vgpu_register(Machine* machine, u64 address, u64 size, const char* name, int initialised, int writable) {
  machine->memory.add(address, size, name, initialised != 0, writable != 0);
}

void vgpu_forget(Machine* machine, u64 address) { machine->memory.forget(address); }

void vgpu_wrote(Machine* machine, u64 address, u64 size) {
  for (u64 at = address; at < address + size;) {
    Allocation* allocation = machine->memory.find(at);
    if (allocation == nullptr) return;
    const u64 end = std::min(address + size, allocation->end);
    if (allocation->defined) std::memset(allocation->defined->get() + (at - allocation->first), 1, end - at);
    at = end;
  }
}

int vgpu_initialised(Machine* machine, u64 address, u64 size) {
  const Allocation* allocation = machine->memory.find(address);
  if (allocation == nullptr || address + size > allocation->end) return 0;
  if (!allocation->defined) return 1;
  const u8* defined = allocation->defined->get() + (address - allocation->first);
  for (u64 k = 0; k < size; ++k) {
    if (defined[k] == 0) return 0;
  }
  return 1;
}

int vgpu_launch(Machine* machine, const Program* program, const Dimensions* dimensions, u32 shared,
                const char* parameters, u32 parameter_bytes, int together, u64 limit, u64 traced_block) {
  machine->program = program;
  machine->dimensions = *dimensions;
  machine->dynamic_shared = shared;
  machine->parameters = parameters;
  machine->parameter_bytes = parameter_bytes;
  machine->instruction_limit = limit;
  machine->reports.clear();
  machine->trace.start(traced_block);
  return run_launch(*machine, together != 0) ? 0 : 1;
}

void vgpu_counters(const Machine* machine, Counters* out) { *out = machine->counters; }
i64 vgpu_trace_length(const Machine* machine) { return static_cast<i64>(machine->trace.events().size()); }
void vgpu_trace(const Machine* machine, TraceEvent* out) { std::ranges::copy(machine->trace.events(), out); }
void vgpu_profile(const Machine* machine, Profile* out) {
  std::memcpy(out, machine->profile.data(), machine->profile.size() * sizeof(Profile));
}

i64 vgpu_report_count(const Machine* machine) { return static_cast<i64>(machine->reports.all().size()); }

const char* vgpu_report(const Machine* machine, i64 index, i32* check, u64* count, i32* file, i32* line) {
  const Report& report = machine->reports.all()[static_cast<size_t>(index)];
  *check = static_cast<i32>(report.check);
  *count = report.count;
  *file = report.file;
  *line = report.line;
  return report.detail.c_str();
}
}
#pragma GCC visibility pop
