// A kernel as the machine runs it. The layouts of Record and Operand are those of ptx/records.py.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "types.h"

namespace virtual_gpu {

struct Step;

// What an instruction does to the course of its lanes.
enum class Outcome : u8 { Next, Wait, Fatal };

using Handler = Outcome (*)(Step&);

// Plain: one result for each lane from that lane's operands alone, so that the interpreter sees to what is defined.
// Collective: lanes of a warp run it together: those that its last operand names, or all.
enum class Nature : u8 { Plain, Own, Branch, CollectiveOfMask, CollectiveOfAll };

struct Operation {
  Handler run = nullptr;
  Nature nature = Nature::Own;
};

enum class Kind : u8 { Register, Constant, None };

struct Operand {
  u32 offset, slot;
  Kind kind;
  u8 width, negated, padding;
};

struct Record {
  i64 immediates[2];
  i32 key, first_operand, operands, results, guard, target, reconverge;
  u32 control;
  i32 flags, space, file, line;
};

enum Space : i32 { GENERIC, GLOBAL, SHARED, LOCAL, PARAM, CONST };

// Flags of an access to memory, as ptx/memory.py sets them.
enum AccessFlags : u16 { STRONG = 1, ACQUIRE = 2, RELEASE = 4, WHOLE_GRID = 8 };

struct Instruction {
  Handler run;
  const Operand* operands;
  const Operand* guard;  // or null
  i64 immediates[2];
  i32 count, results, target, reconverge;
  u32 control;
  u16 flags;
  u8 space;
  Nature nature;
  bool saturates;
  i32 file, line;
};

// A special register: which, and where its lanes lie.
struct SpecialRegister {
  u32 which, offset, slot;
};

constexpr size_t CACHE_LINE = 64;

struct AlignedFree {
  void operator()(char* bytes) const { std::free(bytes); }
};
using AlignedBytes = std::unique_ptr<char, AlignedFree>;

inline AlignedBytes aligned_bytes(size_t size) {
  const size_t rounded = (size + CACHE_LINE) / CACHE_LINE * CACHE_LINE;
  return AlignedBytes(static_cast<char*>(std::aligned_alloc(CACHE_LINE, rounded)));
}

struct Program {
  std::vector<Instruction> code;
  std::vector<Operand> operands;
  AlignedBytes constants;
  std::vector<SpecialRegister> special;
  u32 register_bytes = 0, registers = 0, local_bytes = 0, static_shared = 0;
};

}  // namespace virtual_gpu
