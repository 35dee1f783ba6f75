// What was found, counted by what it is and where. The names and their order are those of report.py.
#pragma once

#include <cstdarg>
#include <cstdio>
#include <string>
#include <unordered_map>
#include <vector>

#include "types.h"

namespace virtual_gpu {

enum class Check : u8 {
  OutOfBounds,
  Misaligned,
  ReadOnly,
  Uninitialised,
  RaceShared,
  RaceGlobal,
  ReplicatedStore,
  CopyNotAwaited,
  ProxyFence,
  DivergentBarrier,
  BarrierCount,
  WarpMask,
  InactiveLane,
  Mbarrier,
  PendingRegister,
  Deadlock,
  Trap,
  InstructionLimit,
  Launch,
};

struct Report {
  Check check;
  u64 count;
  i32 file, line;
  std::string detail;
};

class Reports {
 public:
  // Counts one finding; only the first of its kind at its place is told in words.
  [[gnu::format(printf, 6, 7)]] void add(Check check, i32 place, i32 file, i32 line, const char* format, ...) {
    const u64 key = static_cast<u64>(check) << 32 | static_cast<u32>(place);
    const auto known = places_.find(key);
    if (known != places_.end()) {
      ++all_[known->second].count;
      return;
    }
    char text[600];
    va_list values;
    va_start(values, format);
    std::vsnprintf(text, sizeof text, format, values);
    va_end(values);
    places_.emplace(key, all_.size());
    all_.push_back({check, 1, file, line, text});
  }

  const std::vector<Report>& all() const { return all_; }

  void clear() {
    all_.clear();
    places_.clear();
  }

 private:
  std::vector<Report> all_;
  std::unordered_map<u64, size_t> places_;
};

}  // namespace virtual_gpu
