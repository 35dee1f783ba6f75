// The execution interface of csrc/cuda/machine/execution.cuh on the host: whole blocks, run one after the other on one
// core.
//
// Every CUDA thread is a context of its own (ucontext). A barrier hands the core to the next thread; when all of them
// have arrived, they go on. The order in which threads run between two barriers is the caller's choice, forwards,
// backwards or shuffled: a result that depends on it lacks a barrier. Shared memory starts as NaN, and what lies behind
// it is checked. Asynchronous copies leave NaN where they go to until the phase that waits for them ends, and arrive no
// sooner.

#pragma once

#include <ucontext.h>

#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <map>
#include <stdexcept>
#include <utility>
#include <vector>

#include "cuda/machine/execution.cuh"
#include "host_turns.h"

namespace memformer::cuda {

// The threads of the block that is running.
class HostThreads {
 public:
  static constexpr std::size_t stack_bytes = 256 * 1024;

  HostThreads(int threads, unsigned order) : contexts_(threads), turns_(threads, order) {
    stacks_.resize(static_cast<std::size_t>(threads) * stack_bytes);
    exchange_.resize(threads);
  }

  // Runs body() once in every thread. Threads call `wait` for barriers.
  template <class Body>
  void run(Body& body) {
    arrived_.assign(contexts_.size(), 0);
    waits_for_.assign(contexts_.size(), 1);
    copies_.assign(contexts_.size(), {});
    phases_.clear();
    yields_ = 0;
    done_.assign(contexts_.size(), false);
    body_ = &body;
    enter_ = [](void* given) { (*static_cast<Body*>(given))(); };
    for (std::size_t k = 0; k < contexts_.size(); ++k) {
      getcontext(&contexts_[k]);
      contexts_[k].uc_stack.ss_sp = stacks_.data() + k * stack_bytes;
      contexts_[k].uc_stack.ss_size = stack_bytes;
      contexts_[k].uc_link = &home_;
      const auto self = reinterpret_cast<std::uintptr_t>(this);
      makecontext(&contexts_[k], reinterpret_cast<void (*)()>(&HostThreads::entry), 2,
                  static_cast<unsigned>(self >> 32), static_cast<unsigned>(self));
    }
    for (bool running = true; running;) {
      running = false;
      for (int k : turns_.next()) {
        if (done_[k] || !may_run(k)) continue;
        current_ = k;
        swapcontext(&home_, &contexts_[k]);
        running = true;
      }
      if (!running) {
        for (bool done : done_) {
          if (!done) throw std::runtime_error("a barrier that not all threads reach");
        }
      }
    }
  }

  int current() const { return current_; }

  // Waits until all threads of the group of `size` around this one have waited as often.
  void wait(int size) {
    const int self = current_;
    ++arrived_[self];
    waits_for_[self] = size;
    yields_ = 0;
    swapcontext(&contexts_[self], &home_);
  }

  // One asynchronous copy.
  struct Copy {
    char* to;
    const char* from;
    std::size_t bytes;
  };

  // A barrier that copies report to.
  struct Phase {
    int count = 0;
    int missing = 0;
    long bytes = 0;
    unsigned parity = 0;
    std::vector<Copy> copies;
  };

  Phase& phase(const void* arrivals) {
    const auto found = phases_.find(arrivals);
    if (found == phases_.end()) throw std::runtime_error("a barrier that was not made");
    return found->second;
  }
  void make_phase(const void* arrivals, int count) { phases_[arrivals] = {count, count, 0, 0, {}}; }
  void start(Phase* phase, Copy copy) {
    std::memset(copy.to, 0xff, copy.bytes);
    (phase ? phase->copies : copies_[current_]).push_back(copy);
  }
  void arrive(Phase& phase, bool with_copies) {
    if (with_copies) {
      for (const Copy& copy : copies_[current_]) phase.copies.push_back(copy);
      copies_[current_].clear();
    }
    --phase.missing;
  }
  void wait_phase(const void* arrivals, unsigned parity) {
    const int self = current_;
    while (true) {
      Phase& here = phase(arrivals);
      if (here.missing < 0) throw std::runtime_error("more arrivals than were announced");
      if (here.missing == 0) {
        for (const Copy& copy : here.copies) std::memcpy(copy.to, copy.from, copy.bytes);
        if (here.bytes != 0) throw std::runtime_error("other bytes than were announced");
        here.copies.clear();
        here.missing = here.count;
        here.parity ^= 1;
      }
      if (here.parity != parity) return;
      if (++yields_ > 100000) throw std::runtime_error("a phase that does not end");
      swapcontext(&contexts_[self], &home_);
    }
  }

  // Room for one value a thread to exchange.
  std::uint64_t& exchange(int thread) { return exchange_[thread]; }

 private:
  static void entry(unsigned high, unsigned low) {
    auto* const self = reinterpret_cast<HostThreads*>((static_cast<std::uintptr_t>(high) << 32) | low);
    const int k = self->current_;
    self->enter_(self->body_);
    self->done_[k] = true;
  }

  // A thread goes on when no other of the group it waits for is behind it.
  bool may_run(int k) {
    if (arrived_[k] == 0) return true;
    const int size = waits_for_[k];
    if (size == 1) return true;
    const int first = k / size * size;
    for (int other = first; other < first + size; ++other) {
      if (arrived_[other] < arrived_[k]) {
        if (done_[other]) throw std::runtime_error("a thread has left before a barrier");
        return false;
      }
    }
    return true;
  }

  std::vector<ucontext_t> contexts_;
  ucontext_t home_;
  std::vector<char> stacks_;
  std::vector<long> arrived_;
  std::vector<bool> done_;
  std::vector<int> waits_for_;
  Turns turns_;
  std::vector<std::uint64_t> exchange_;
  std::vector<std::vector<Copy>> copies_;
  std::map<const void*, Phase> phases_;
  long yields_ = 0;
  int current_ = 0;
  void* body_ = nullptr;
  void (*enter_)(void*) = nullptr;
};

template <int Threads, bool Bulk>
struct HostBlock {
  static constexpr bool has_bulk_copies = Bulk;
  static constexpr int threads = Threads;
  static constexpr int warps = Threads / warp_threads;

  int thread() const { return host->current(); }
  int lane() const { return thread() % warp_threads; }
  int warp() const { return thread() / warp_threads; }
  int64_t index() const { return index_; }
  int64_t count() const { return count_; }
  char* shared() const { return shared_; }
  template <class T>
  T* in_shared(T* address) const {
    return address;
  }
  void sync() const { host->wait(Threads); }
  void sync_warp() const { host->wait(warp_threads); }

  template <class T>
  T shuffle(T value, int source) const {
    const int self = thread(), first = self - self % warp_threads;
    std::memcpy(&host->exchange(self), &value, sizeof value);
    sync_warp();
    std::memcpy(&value, &host->exchange(first + source), sizeof value);
    sync_warp();
    return value;
  }
  template <class T>
  T shuffle_xor(T value, int mask) const {
    return shuffle(value, lane() ^ mask);
  }
  bool is_last(unsigned* arrivals) const {
    sync();
    if (thread() == 0) *last_ = *arrivals == static_cast<unsigned>(count_ - 1), *arrivals = *last_ ? 0 : *arrivals + 1;
    sync();
    return *last_;
  }

  void make_arrivals(Arrivals* arrivals, int count) const { host->make_phase(arrivals, count); }
  void arrive(Arrivals* arrivals) const { host->arrive(host->phase(arrivals), false); }
  void arrive_after_copies(Arrivals* arrivals) const { host->arrive(host->phase(arrivals), true); }
  void arrive_and_expect(Arrivals* arrivals, unsigned bytes) const {
    host->phase(arrivals).bytes += bytes;
    host->arrive(host->phase(arrivals), false);
  }
  void wait(Arrivals* arrivals, unsigned parity) const { host->wait_phase(arrivals, parity); }
  void copy_bulk(void* to, const void* from, unsigned bytes, Arrivals* arrivals) const {
    check_aligned(to, from, 16);
    if (bytes % 16) throw std::runtime_error("a bulk copy of a broken size");
    host->phase(arrivals).bytes -= bytes;
    host->start(&host->phase(arrivals), {static_cast<char*>(to), static_cast<const char*>(from), bytes});
  }
  template <int Bytes>
  void copy(void* to, const void* from) const {
    check_aligned(to, from, Bytes);
    host->start(nullptr, {static_cast<char*>(to), static_cast<const char*>(from), Bytes});
  }
  void fence_copies() const {}

  static void check_aligned(const void* to, const void* from, std::uintptr_t bytes) {
    if (reinterpret_cast<std::uintptr_t>(to) % bytes || reinterpret_cast<std::uintptr_t>(from) % bytes) {
      throw std::runtime_error("a copy that is not aligned");
    }
  }

  HostThreads* host;
  int64_t index_, count_;
  char* shared_;
  bool* last_;
};

// Runs a kernel's whole grid. `order`: 0 forwards, 1 backwards, else the seed of a shuffle. Bulk: with the copies of
// sm_90.
template <class Kernel, bool Bulk = true>
void run_grid(const typename Kernel::Arguments& arguments, int64_t blocks, std::size_t shared_bytes, unsigned order) {
  constexpr std::size_t guard = 256;
  constexpr char canary = 0x5a;
  HostThreads host(Kernel::threads, order);
  char* const shared = static_cast<char*>(std::aligned_alloc(128, (shared_bytes + guard + 127) / 128 * 128));
  bool last = false;
  for (int64_t step = 0; step < blocks; ++step) {
    const int64_t index = order == 1 ? blocks - 1 - step : step;
    std::memset(shared, 0xff, shared_bytes);
    std::memset(shared + shared_bytes, canary, guard);
    const HostBlock<Kernel::threads, Bulk> block{&host, index, blocks, shared, &last};
    auto body = [&] { Kernel::run(arguments, block); };
    host.run(body);
    for (std::size_t k = 0; k < guard; ++k) {
      if (shared[shared_bytes + k] != canary) throw std::runtime_error("a write behind the shared memory");
    }
  }
  std::free(shared);
}

}  // namespace memformer::cuda
