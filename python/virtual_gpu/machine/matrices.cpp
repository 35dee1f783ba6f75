// ldmatrix and stmatrix: 8 x 8 matrices of 16 bits between shared memory and the registers of a warp.

#include "access.h"

namespace virtual_gpu {
namespace {

constexpr int ROWS = 8, COLUMNS = 8, MOST = 4;
constexpr u32 ROW_BYTES = 16;

struct Matrices {
  u16 element[MOST][ROWS][COLUMNS];
  bool defined[MOST][ROWS];
};

// Lane 8 k + r holds the address of row r of matrix k: the rows as one request. Calls `body` with each access.
template <class Body>
void for_each_row(Step& step, int count, bool writes, Body body) {
  Step rows = step;
  rows.lanes = count == MOST ? ALL_LANES : (1u << (ROWS * count)) - 1;
  rows.lanes &= step.lanes;
  for_each_access(rows, step.instruction.results != 0 ? count : step.instruction.count - 1, ROW_BYTES, writes, body);
}

// Lane l holds the elements 2 (l % 4) and the next of row l / 4, or of that column.
template <bool Transposed>
Outcome load(Step& step) {
  const int count = step.instruction.results;
  Matrices matrices{};
  for_each_row(step, count, false, [&](Access& access) {
    observe_reads(access, observer_of(access.step, false));
    const u32 known = defined_bytes(access, 0, ROW_BYTES);
    for_lanes(access.lanes, [&](int lane) {
      std::memcpy(matrices.element[lane / ROWS][lane % ROWS], access.bytes[lane], ROW_BYTES);
      matrices.defined[lane / ROWS][lane % ROWS] = known >> lane & 1;
    });
  });
  for (int k = 0; k < count; ++k) {
    u32 known = 0;
    for (int lane = 0; lane < WARP; ++lane) {
      const int row = lane / 4, column = 2 * (lane % 4);
      const auto& matrix = matrices.element[k];
      const auto& defined = matrices.defined[k];
      const u16 low = Transposed ? matrix[column][row] : matrix[row][column];
      const u16 high = Transposed ? matrix[column + 1][row] : matrix[row][column + 1];
      const bool both = Transposed ? defined[column] && defined[column + 1] : defined[row];
      step.values<u32>(k)[lane] = static_cast<u32>(high) << 16 | low;
      known |= static_cast<u32>(both) << lane;
    }
    step.define(k, known);
  }
  return Outcome::Next;
}

template <bool Transposed>
Outcome store(Step& step) {
  const int count = step.instruction.count - 1;
  Matrices matrices{};
  for (int k = 0; k < count; ++k) {
    for (bool& row : matrices.defined[k]) row = true;
    for (int lane = 0; lane < WARP; ++lane) {
      const u32 both = step.values<u32>(k)[lane];
      const bool known = step.defined(k) >> lane & 1;
      for (int half = 0; half < 2; ++half) {
        const int row = Transposed ? 2 * (lane % 4) + half : lane / 4;
        const int column = Transposed ? lane / 4 : 2 * (lane % 4) + half;
        matrices.element[k][row][column] = static_cast<u16>(both >> (16 * half));
        matrices.defined[k][row] &= known;
      }
    }
  }
  for_each_row(step, count, true, [&](Access& access) {
    const auto row = [&](int lane) { return matrices.element[lane / ROWS][lane % ROWS]; };
    const auto held = [&] {
      u32 out = 0;
      for_lanes(access.lanes, [&](int lane) {
        out |= static_cast<u32>(std::memcmp(access.bytes[lane], row(lane), ROW_BYTES) == 0) << lane;
      });
      return out;
    };
    const u32 before = held();
    u32 known = 0;
    for_lanes(access.lanes, [&](int lane) {
      std::memcpy(access.bytes[lane], row(lane), ROW_BYTES);
      known |= static_cast<u32>(matrices.defined[lane / ROWS][lane % ROWS]) << lane;
    });
    observe_writes(access, observer_of(access.step, false), before, held());
    define_bytes(access, 0, ROW_BYTES, known);
  });
  ++step.machine.events;
  return Outcome::Next;
}

}  // namespace

void add_matrices(Registry& registry) {
  registry["ldmatrix"] = {load<false>, Nature::CollectiveOfAll};
  registry["ldmatrix.trans"] = {load<true>, Nature::CollectiveOfAll};
  registry["stmatrix"] = {store<false>, Nature::CollectiveOfAll};
  registry["stmatrix.trans"] = {store<true>, Nature::CollectiveOfAll};
}

}  // namespace virtual_gpu
