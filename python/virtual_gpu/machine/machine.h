// The state of the machine: warps and their paths, blocks, groups of blocks that run together, a launch.
#pragma once

#include <array>
#include <deque>
#include <memory>
#include <unordered_map>
#include <vector>

#include "memory.h"
#include "program.h"
#include "report.h"
#include "trace.h"

namespace virtual_gpu {

struct Block;
struct Group;
struct Machine;

// Generic addresses: the windows of the spaces that are not the host's memory, and of each block of a cluster.
constexpr u64 SHARED_WINDOW = 1ull << 60, LOCAL_WINDOW = 2ull << 60, PARAM_WINDOW = 3ull << 60;
constexpr int WINDOW_SHIFT = 60, RANK_SHIFT = 24;
constexpr u32 SHARED_OFFSET = (1u << RANK_SHIFT) - 1;

enum class PathState : u8 { Free, Ready, Parted, AtCollective, AtBarrier, AtCluster };

// Lanes of a warp that run together. Lanes that a branch parts are paths of their own until the place where the branch
// reconverges; there their parent goes on with those that have arrived.
struct Path {
  i32 place, reconverge, parent, children;
  u32 lanes, arrived;
  u32 at_collective;  // lanes that run the instruction they wait for
  PathState state;
  u8 barrier;
};

// What a warp knew when its lanes issued copies.
struct Issue {
  std::vector<u32> known;
  u32 together;
};

// An asynchronous copy by one thread, from its issue to its wait.
struct Copy {
  u64 target, source;
  u32 size, taken;  // bytes written, and bytes read; the rest is zero
  i32 group, place;
  std::shared_ptr<const Issue> issue;  // or it is no copy but an arrival on the mbarrier at `target`
};

// A wgmma that was issued, until its wait: what it was given, and what its warp knew then.
struct PendingProduct {
  void (*perform)(const Step&, const PendingProduct&);
  i32 place, group;
  u64 left, right;  // descriptors
  u32 accumulate;
  std::vector<u32> left_registers;
  u32 left_defined[4];
  std::vector<u32> known, proxy_known;
};

struct Warp {
  Block* block = nullptr;
  u32 index = 0, agent = 0;  // in its block; in its group
  u32 alive = 0;
  AlignedBytes registers;
  std::vector<u32> defined;      // lanes of each register that hold a value
  std::vector<Path> paths;       // the first ones are in use
  std::vector<u32> known;        // of each agent of the group: accesses up to this stamp come before
  std::vector<u32> proxy_known;  // the same, for what a proxy fence has made visible to asynchronous copies
  u32 clock = 0, floor = 0;      // stamp of accesses now; up to which no access is unordered with these
  u32 together = 0;              // what its lanes did up to this stamp comes before what any of them does now
  u32 cluster_phase = 0;         // in which it last arrived at the cluster's barrier
  u32 at_cluster = 0;            // lanes that have arrived there and not waited since
  bool spins = false;            // it has polled memory since it last gave way
  i32 cursor = 0;
  std::array<std::deque<Copy>, WARP> copies;
  std::array<i32, WARP> committed{};
  std::array<i32, WARP> bulk_committed{};
  std::vector<PendingProduct> products;
  std::vector<u8> pending_registers;  // by slot: written by a pending product
  i32 product_groups = 0;
};

// bar.sync and its kin: one of the sixteen of a block.
struct Barrier {
  u32 arrived = 0, expected = 0;
  bool counted = false;
  std::vector<u32> known, proxy_known;
  u32 votes_all = 1, votes_any = 0, votes = 0;
};

struct Mbarrier {
  bool valid = false;
  u32 count = 0, pending = 0, phase = 0;
  i64 bytes = 0;
  u32 maker = 0, made = 0;  // the agent that initialised it, and the stamp
  bool fenced = false;      // that the asynchronous proxy sees it by a fence of its own kind
  std::vector<u32> known, proxy_known, next, proxy_next;  // of the completed phase, and of the one under way
};

// A bulk copy under way: into shared memory, where it ends by an mbarrier, or out of it, where it is awaited by groups.
struct BulkCopy {
  u64 global;
  Block* owner;  // of the shared memory
  u32 shared, size;
  bool loads;
  Block* barrier_owner;
  u32 barrier;
  u32 warp;
  i32 group, place;
  std::vector<u32> known, proxy_known;  // of the warp at the issue
  u32 issuer, lane, together;           // its agent and the lane that issues; what other lanes did up to then is known
};

struct Block {
  Group* group = nullptr;
  u32 index = 0, rank = 0, threads = 0, live = 0;
  std::array<u32, 3> place{};
  AlignedBytes shared, local;
  u32 shared_bytes = 0;
  std::vector<SharedWord> words;
  std::vector<u32> reads;  // of each word by each agent of the group: the stamp of its last read
  std::vector<u8> local_defined;
  std::vector<Warp> warps;
  std::array<Barrier, 16> barriers;
  std::unordered_map<u32, Mbarrier> mbarriers;
  std::deque<BulkCopy> bulk_copies;
};

// Blocks that may touch each other's shared memory: a cluster, or one block.
struct Group {
  u32 index = 0, agents = 0;  // warps of all blocks, and one for asynchronous copies
  std::vector<Block*> blocks;
  std::vector<u32> known, fenced,
      pending;                // of other groups: what this one acquired, released last, and has yet to fence
  u32 asynchronous_last = 0;  // stamp of the last access by an asynchronous copy
  u32 cluster_arrived = 0, cluster_phase = 0;
  // Of the cluster's barrier: of the phase under way, and of the last one that completed.
  std::vector<u32> cluster_known, cluster_proxy_known, cluster_released, cluster_proxy_released;
};

struct Counters {
  u64 warp_instructions, thread_instructions;
  u64 global_requests, global_sectors, global_ideal_sectors, global_bytes_read, global_bytes_written;
  u64 shared_requests, shared_wavefronts, shared_ideal_wavefronts;
  u64 barriers, tensor_operations, atomics;
};

// Of one instruction of the kernel: how often it ran, and its requests to memory with what they took and might have.
struct Profile {
  u64 executed, requests, taken, ideal;
};

struct Dimensions {
  u32 grid[3], block[3], cluster[3];
};

// Checks that take time: they can be left out.
struct Checks {
  bool initialised = true, races = true;
};

struct Machine {
  Memory memory;
  Reports reports;
  Checks checks;
  u32 order = 0, multiprocessors = 1;
  u64 random = 0;
  u64 instruction_limit = 0;

  const Program* program = nullptr;
  const char* parameters = nullptr;
  u32 parameter_bytes = 0, dynamic_shared = 0;
  Dimensions dimensions{};
  Counters counters{};
  std::vector<Profile> profile;
  Trace trace;
  u32 time = ONE_TIME;                                 // of the last event
  u32 launched = 0;                                    // accesses up to this stamp precede the launch
  u32 groups = 1;                                      // of the launch
  u64 events = 0;                                      // whatever may let a warp go on
  std::unordered_map<u64, std::vector<u32>> released;  // by address: what groups have released there

  u32 next_time() { return time += ONE_TIME; }

  u32 next_random() {
    random = random * 6364136223846793005ull + 1442695040888963407ull;
    return static_cast<u32>(random >> 33);
  }

  template <class... Values>
  void report(Check check, i32 place, const char* format, Values... values) {
    const bool known = place >= 0 && static_cast<size_t>(place) < program->code.size();
    const i32 file = known ? program->code[place].file : 0, line = known ? program->code[place].line : 0;
    reports.add(check, place, file, line, format, values...);
  }
};

// One instruction of one warp's path, as its handler sees it.
struct Step {
  Machine& machine;
  Block& block;
  Warp& warp;
  const Instruction& instruction;
  u32 lanes;  // that run it
  i32 place, path;

  const Operand& operand(int k) const { return instruction.operands[k]; }
  bool given(int k) const { return operand(k).kind != Kind::None; }

  char* bytes(int k) const {
    const Operand& o = operand(k);
    return (o.kind == Kind::Constant ? machine.program->constants.get() : warp.registers.get()) + o.offset;
  }

  template <class T>
  T* values(int k) const {
    return reinterpret_cast<T*>(bytes(k));
  }

  // A lane's value of a register of any width.
  u64 value(int k, int lane) const {
    switch (operand(k).width) {
      case 2: return values<u16>(k)[lane];
      case 4: return values<u32>(k)[lane];
      case 8: return values<u64>(k)[lane];
      default: return predicate(k) >> lane & 1;
    }
  }

  void set_value(int k, int lane, u64 value) const {
    switch (operand(k).width) {
      case 2: values<u16>(k)[lane] = static_cast<u16>(value); break;
      case 4: values<u32>(k)[lane] = static_cast<u32>(value); break;
      case 8: values<u64>(k)[lane] = value; break;
    }
  }

  u32 predicate(int k) const {
    u32 bits;
    std::memcpy(&bits, bytes(k), sizeof bits);
    return operand(k).negated ? ~bits : bits;
  }

  void set_predicate(int k, u32 bits) const {
    if (!given(k)) return;
    u32 old;
    std::memcpy(&old, bytes(k), sizeof old);
    const u32 made = (old & ~lanes) | (bits & lanes);
    std::memcpy(bytes(k), &made, sizeof made);
  }

  u32 defined(int k) const { return warp.defined[operand(k).slot]; }

  void define(int k, u32 which) const {
    if (!given(k)) return;
    u32& known = warp.defined[operand(k).slot];
    known = (known & ~lanes) | (which & lanes);
  }

  template <class... Values>
  void report(Check check, const char* format, Values... values) const {
    machine.report(check, place, format, values...);
  }

  // Reports an operand that decides something and that nothing has defined in some lane.
  void require(int k, const char* what) const {
    const u32 missing = lanes & ~defined(k);
    if (missing != 0 && machine.checks.initialised) report_undefined(missing, what);
  }

  void report_undefined(u32 missing, const char* what) const;
};

// Reports operands that a product under way writes, or reads and that the instruction writes.
void check_pending_registers(const Step&);

using Registry = std::unordered_map<std::string, Operation>;

void add_arithmetic(Registry&);
void add_integers(Registry&);
void add_comparisons(Registry&);
void add_conversions(Registry&);
void add_moves(Registry&);
void add_loads_and_stores(Registry&);
void add_atomics(Registry&);
void add_copies(Registry&);
void add_bulk_copies(Registry&);
void add_mbarriers(Registry&);
void add_barriers(Registry&);
void add_exchanges(Registry&);
void add_matrices(Registry&);
void add_tensor_cores(Registry&);

}  // namespace virtual_gpu
