#include "interpreter.h"

#include <immintrin.h>

#include "barriers.h"
#include "copies.h"
#include "floats.h"
#include "paths.h"

namespace virtual_gpu {
namespace {

constexpr u32 USUAL_CONTROL = 0x1f80;  // of floating point on the host
constexpr int TURN = 20000;            // branches backward until another warp has its turn

enum class Left : u8 { Switched, GaveWay, Fatal };

u32 guarded_lanes(const Machine& machine, const Warp& warp, const Instruction& instruction, u32 lanes) {
  const Operand& guard = *instruction.guard;
  const char* base = guard.kind == Kind::Constant ? machine.program->constants.get() : warp.registers.get();
  u32 bits;
  std::memcpy(&bits, base + guard.offset, sizeof bits);
  return lanes & (guard.negated ? ~bits : bits);
}

void saturate_result(const Step& step) {
  if (step.operand(0).width == 4) {
    float* out = step.values<float>(0);
    for_lanes(step.lanes, [&](int lane) { out[lane] = saturate(out[lane]); });
  } else if (step.operand(0).width == 8) {
    double* out = step.values<double>(0);
    for_lanes(step.lanes, [&](int lane) { out[lane] = saturate(out[lane]); });
  }
}

// What is defined of a plain instruction's result: what is defined of all its operands.
void define_plain(const Step& step, u32 guard_known) {
  const Instruction& instruction = step.instruction;
  if (instruction.results == 0) return;
  const u32* defined = step.warp.defined.data();
  u32 known = guard_known;
  for (int k = 1; k < instruction.count; ++k) known &= defined[instruction.operands[k].slot];
  u32& result = step.warp.defined[instruction.operands[0].slot];
  result = (result & ~step.lanes) | (known & step.lanes);
}

void end_lanes(Machine& machine, Warp& warp, i32 path, u32 lanes) {
  Block& block = *warp.block;
  end_copies(machine, warp, lanes);
  warp.alive &= ~lanes;
  block.live -= static_cast<u32>(count_lanes(lanes));
  warp.paths[path].lanes &= ~lanes;
  ++machine.events;
  release_full_barriers(machine, block);
  release_full_cluster(machine, *block.group);
}

// Lanes that run a collective instruction at this place together, or none as long as some are missing. The lanes of
// other paths that wait for it are among them; those paths go on.
u32 gather(Machine& machine, Warp& warp, i32 path, i32 place, const Instruction& instruction, u32 lanes, u32 members) {
  const u32 needed = members & warp.alive;
  if (lanes & ~members) {
    machine.report(Check::WarpMask, place, "lanes 0x%x run it with the mask 0x%x: block %u warp %u", lanes, members,
                   warp.block->index, warp.index);
  }
  u32 here = lanes;
  const auto alike = [&](const Path& other) {
    // Barriers of a warp meet wherever they stand.
    return other.state == PathState::AtCollective &&
           (other.place == place || machine.program->code[other.place].run == instruction.run);
  };
  for (const Path& other : warp.paths) {
    if (alike(other)) here |= other.at_collective;
  }
  Path& mine = warp.paths[path];
  if (needed & ~here) {
    mine.state = PathState::AtCollective;
    mine.place = place;
    mine.at_collective = lanes;
    return 0;
  }
  u32 together = lanes;
  for (Path& other : warp.paths) {
    if (!alike(other) || !(other.at_collective & needed)) continue;
    if (other.place != place && instruction.results != 0) continue;
    together |= other.at_collective;
    other.state = PathState::Ready;
    ++other.place;
  }
  return together;
}

u32 members_of(const Step& step) {
  if (step.instruction.nature == Nature::CollectiveOfAll) return ALL_LANES;
  const int mask = step.instruction.count - 1;
  return step.values<u32>(mask)[first_lane(step.lanes)];
}

Left run_path(Machine& machine, Warp& warp, i32 path) {
  const Instruction* code = machine.program->code.data();
  Block& block = *warp.block;
  Profile* profile = machine.profile.data();
  i32 place = warp.paths[path].place;
  const i32 stop = warp.paths[path].reconverge;
  u32 active = warp.paths[path].lanes;
  int turn = TURN;
  for (;;) {
    if (place == stop) {
      end_path(warp, path);
      return Left::Switched;
    }
    const Instruction& instruction = code[place];
    u32 lanes = active, guard_known = ALL_LANES;
    if (instruction.guard != nullptr) {
      lanes = guarded_lanes(machine, warp, instruction, active);
      guard_known = warp.defined[instruction.guard->slot];
    }
    ++profile[place].executed;
    if (machine.trace.follows(block.index)) machine.trace.ran(warp.index, place);
    ++machine.counters.warp_instructions;
    machine.counters.thread_instructions += static_cast<u64>(count_lanes(lanes));
    if (machine.counters.warp_instructions > machine.instruction_limit) {
      machine.report(Check::InstructionLimit, place, "the launch ran %llu warp instructions and goes on",
                     static_cast<unsigned long long>(machine.instruction_limit));
      return Left::Fatal;
    }
    Step step{machine, block, warp, instruction, lanes, place, path};
    if (!warp.products.empty() && lanes != 0) check_pending_registers(step);
    if (instruction.nature == Nature::Plain) {
      if (lanes != 0) {
        if (instruction.control != 0) _mm_setcsr(instruction.control);
        instruction.run(step);
        if (instruction.saturates) saturate_result(step);
        if (instruction.control != 0) _mm_setcsr(USUAL_CONTROL);
        define_plain(step, guard_known);
      }
      ++place;
      continue;
    }
    if ((active & ~guard_known) && machine.checks.initialised) {
      Step all{machine, block, warp, instruction, active, place, path};
      all.report_undefined(active & ~guard_known, "a predicate");
    }
    if (instruction.nature == Nature::Branch) {
      if (lanes == 0 || instruction.target == place + 1) {
        ++place;
        continue;
      }
      if (instruction.target < 0) {
        warp.paths[path].place = place + 1;
        end_lanes(machine, warp, path, lanes);
        active &= ~lanes;
        if (active != 0) {
          ++place;
          continue;
        }
        end_path(warp, path);
        return Left::Switched;
      }
      if (lanes != active) {
        const bool other_first = machine.order == 0 ? false : machine.order == 1 ? true : machine.next_random() & 1;
        part_path(warp, path, instruction.target, place + 1, instruction.reconverge, lanes, other_first);
        return Left::Switched;
      }
      const bool backward = instruction.target <= place;
      place = instruction.target;
      if (backward && (warp.spins || --turn == 0)) {
        warp.spins = false;
        warp.paths[path].place = place;
        return Left::GaveWay;
      }
      continue;
    }
    if (lanes == 0) {
      ++place;
      continue;
    }
    if (instruction.nature != Nature::Own) {
      const u32 together = gather(machine, warp, path, place, instruction, lanes, members_of(step));
      if (together == 0) return Left::Switched;
      step.lanes = together;
    }
    if (instruction.control != 0) _mm_setcsr(instruction.control);
    const Outcome outcome = instruction.run(step);
    if (instruction.control != 0) _mm_setcsr(USUAL_CONTROL);
    if (outcome == Outcome::Next) {
      ++place;
    } else if (outcome == Outcome::Wait) {
      return Left::Switched;
    } else {
      return Left::Fatal;
    }
  }
}

// The next ready path after the last one that ran, so that none waits for ever behind one that spins.
i32 ready_path(const Warp& warp) {
  const i32 count = static_cast<i32>(warp.paths.size());
  for (i32 k = 0; k < count; ++k) {
    const i32 path = (warp.cursor + k) % count;
    if (warp.paths[path].state == PathState::Ready) return path;
  }
  return NOWHERE;
}

}  // namespace

void start_paths(Warp& warp) {
  warp.paths.clear();
  add_path(warp, NOWHERE, 0, NOWHERE, warp.alive);
  warp.cursor = 0;
}

bool run_warp(Machine& machine, Warp& warp) {
  for (;;) {
    const i32 path = ready_path(warp);
    if (path == NOWHERE) return true;
    warp.cursor = path;
    const Left left = run_path(machine, warp, path);
    if (left == Left::Fatal) return false;
    if (left == Left::GaveWay) {
      ++warp.cursor;
      return true;
    }
  }
}

void Step::report_undefined(u32 missing, const char* what) const {
  report(Check::Uninitialised, "%s that nothing has defined, in lanes 0x%x: block %u warp %u", what, missing,
         block.index, warp.index);
}

}  // namespace virtual_gpu
