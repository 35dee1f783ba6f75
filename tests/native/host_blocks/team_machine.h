// Calls of teams on the host: every launch is a grid of run_grid, with a few blocks so that they take several units
// in turn.

#pragma once

#include <cstring>
#include <stdexcept>
#include <vector>

#include "cuda/team/team_plan.cuh"
#include "host_block.h"
#include "numbers.h"

namespace memformer::cuda {

struct HostMachine {
  unsigned order;

  template <class Kernel>
  int run(const typename Kernel::Arguments& arguments, int64_t work, int64_t shared_bytes) const {
    run_grid<Kernel>(arguments, work < 3 ? work : 3, static_cast<std::size_t>(shared_bytes), order);
    return 0;
  }
  template <class T>
  int totals(const Partials<T>& partials, const Parameters& parameters, int64_t tasks, double scale) const {
    using Kernel = Totals<T>;
    run_grid<Kernel>({partials, parameters, scale, divided_up(tasks, block_tasks)},
                     total_groups(tasks) * column_blocks(partials.count), Kernel::shared_bytes, order);
    return 0;
  }
};

// Scratch memory full of NaN, with a canary behind it.
class Scratch {
 public:
  explicit Scratch(int64_t bytes)
      : cells_(static_cast<std::size_t>(bytes + 2 * guard), static_cast<char>(0xff)), bytes_(bytes) {}
  void* start() { return cells_.data() + (256 - reinterpret_cast<std::uintptr_t>(cells_.data()) % 256); }
  void check() {
    for (int64_t k = 0; k < guard / 2; ++k) {
      if (static_cast<char*>(start())[bytes_ + k] != static_cast<char>(0xff))
        throw std::runtime_error("a write behind the scratch memory");
    }
  }

 private:
  static constexpr int64_t guard = 512;
  std::vector<char> cells_;
  int64_t bytes_;
};

// A network's call in scratch memory of the size it says: bytes(network, parameters), then run(network, parameters,
// scratch, machine).
template <class T, class Bytes, class Run>
void run_in_scratch(const int64_t* numbers, unsigned order, Bytes bytes, Run run) {
  Numbers given(numbers);
  const auto network = given.network<T>();
  const Parameters parameters = given.parameters();
  Scratch scratch(bytes(network, parameters));
  run(network, parameters, scratch.start(), HostMachine{order});
  scratch.check();
}

}  // namespace memformer::cuda
