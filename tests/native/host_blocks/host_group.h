// Groups of blocks on the host that wait for each other: every thread of every block is a context of its own, and takes
// its turn on one core.
//
// As host_block.h, with barriers of three reaches (a warp, a block, a group of blocks), each counted by itself, so that
// warps may wait among themselves as often as they like between two barriers of the block. No asynchronous copies.

#pragma once

#include <ucontext.h>

#include <cstdint>
#include <cstring>
#include <memory>
#include <stdexcept>
#include <utility>
#include <vector>

#include "cuda/machine/execution.cuh"
#include "host_turns.h"

namespace memformer::cuda {

class HostGroup {
 public:
  static constexpr std::size_t stack_bytes = 64 * 1024;

  HostGroup(int blocks, int threads, unsigned order)
      : fibers_(static_cast<std::size_t>(blocks * threads)),
        turns_(fibers_.size(), order),
        reach_{warp_threads, threads, blocks * threads},
        stacks_(new char[fibers_.size() * stack_bytes]) {}

  // Runs body(thread of the group) in every thread.
  template <class Body>
  void run(Body& body) {
    body_ = &body;
    enter_ = [](void* given, int thread) { (*static_cast<Body*>(given))(thread); };
    for (std::size_t k = 0; k < fibers_.size(); ++k) {
      Fiber& fiber = fibers_[k];
      fiber = {};
      getcontext(&fiber.context);
      fiber.context.uc_stack.ss_sp = stacks_.get() + k * stack_bytes;
      fiber.context.uc_stack.ss_size = stack_bytes;
      fiber.context.uc_link = &home_;
      const auto self = reinterpret_cast<std::uintptr_t>(this);
      makecontext(&fiber.context, reinterpret_cast<void (*)()>(&HostGroup::entry), 2, static_cast<unsigned>(self >> 32),
                  static_cast<unsigned>(self));
    }
    for (bool running = true; running;) {
      running = false;
      for (int k : turns_.next()) {
        if (fibers_[k].done || !may_run(k)) continue;
        current_ = k;
        swapcontext(&home_, &fibers_[k].context);
        running = true;
      }
    }
    for (const Fiber& fiber : fibers_) {
      if (!fiber.done) throw std::runtime_error("a barrier that not all threads reach");
    }
  }

  int current() const { return current_; }
  uint64_t& exchange(int thread) { return fibers_[thread].exchange; }

  // scope 0: the warp, 1: the block, 2: the group.
  void wait(int scope) {
    Fiber& self = fibers_[current_];
    ++self.arrived[scope];
    self.waits = scope;
    swapcontext(&self.context, &home_);
  }

 private:
  struct Fiber {
    ucontext_t context;
    long arrived[3] = {0, 0, 0};
    int waits = -1;
    bool done = false;
    uint64_t exchange = 0;
  };

  static void entry(unsigned high, unsigned low) {
    auto* const self = reinterpret_cast<HostGroup*>((static_cast<std::uintptr_t>(high) << 32) | low);
    const int k = self->current_;
    self->enter_(self->body_, k);
    self->fibers_[k].done = true;
  }

  bool may_run(int k) const {
    const int scope = fibers_[k].waits;
    if (scope < 0) return true;
    const int size = reach_[scope], first = k / size * size;
    for (int other = first; other < first + size; ++other) {
      if (fibers_[other].arrived[scope] >= fibers_[k].arrived[scope]) continue;
      if (fibers_[other].done) throw std::runtime_error("a thread has left before a barrier");
      return false;
    }
    return true;
  }

  std::vector<Fiber> fibers_;
  Turns turns_;
  int reach_[3];
  std::unique_ptr<char[]> stacks_;
  ucontext_t home_;
  int current_ = 0;
  void* body_ = nullptr;
  void (*enter_)(void*, int) = nullptr;
};

template <int Threads>
struct GroupedBlock {
  static constexpr int threads = Threads;
  static constexpr int warps = Threads / warp_threads;

  int thread() const { return host->current() % Threads; }
  int lane() const { return thread() % warp_threads; }
  int warp() const { return thread() / warp_threads; }
  int64_t index() const { return index_; }
  int64_t count() const { return count_; }
  char* shared() const { return shared_; }
  void sync() const { host->wait(1); }
  void sync_warp() const { host->wait(0); }

  template <class T>
  T shuffle_xor(T value, int mask) const {
    const int self = host->current();
    std::memcpy(&host->exchange(self), &value, sizeof value);
    sync_warp();
    std::memcpy(&value, &host->exchange(self ^ mask), sizeof value);
    sync_warp();
    return value;
  }

  HostGroup* host;
  int64_t index_, count_;
  char* shared_;
};

template <int Threads>
void arrive(const GroupedBlock<Threads>&, unsigned*, int) {}

template <int Threads>
void wait(const GroupedBlock<Threads>& block, unsigned*, int, int) {
  block.host->wait(2);
}

// Runs a kernel's grid, `group` blocks at a time. `order`: 0 forwards, 1 backwards, else the seed of a shuffle. Shared
// memory starts as NaN, and what lies behind it is checked.
template <class Kernel>
void run_groups(const typename Kernel::Arguments& arguments, int64_t blocks, std::size_t shared_bytes, int group,
                unsigned order) {
  constexpr std::size_t guard = 256;
  constexpr char canary = 0x5a;
  HostGroup host(group, Kernel::threads, order);
  const std::size_t step = (shared_bytes + guard + 127) / 128 * 128;
  const std::unique_ptr<char, void (*)(void*)> shared(static_cast<char*>(std::aligned_alloc(128, step * group)),
                                                      std::free);
  for (int64_t turn = 0; turn < blocks; turn += group) {
    const int64_t first = order == 1 ? blocks - group - turn : turn;
    std::memset(shared.get(), 0xff, step * group);
    for (int k = 0; k < group; ++k) std::memset(shared.get() + k * step + shared_bytes, canary, guard);
    auto body = [&](int thread) {
      const int own = thread / Kernel::threads;
      const GroupedBlock<Kernel::threads> block{&host, first + own, blocks, shared.get() + own * step};
      Kernel::run(arguments, block);
    };
    host.run(body);
    for (int k = 0; k < group; ++k) {
      for (std::size_t at = 0; at < guard; ++at) {
        if (shared.get()[k * step + shared_bytes + at] != canary)
          throw std::runtime_error("a write behind the shared memory");
      }
    }
  }
}

}  // namespace memformer::cuda
