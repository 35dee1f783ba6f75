// The pool of threads and the ends of calls, watched by ThreadSanitizer: std::thread in the place of torch's pool. A
// thread that throws and a poll that gives up end the call.

#include <atomic>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <new>
#include <thread>
#include <vector>

#include "cpu/threads.h"

namespace {

using namespace memformer;

constexpr int threads = 3;

void pool(int64_t count, cpu::Body body, void* context) {
  std::vector<std::thread> others;
  for (int k = 1; k < threads; ++k) {
    if (count * k / threads < count * (k + 1) / threads) {
      others.emplace_back(body, count * k / threads, count * (k + 1) / threads, context);
    }
  }
  if (count / threads > 0) body(0, count / threads, context);
  for (std::thread& other : others) other.join();
}

void parallel(int64_t count, cpu::Body body, void* context) { cpu::run_on_threads(&pool, count, body, context); }

void require(bool holds, const char* what) {
  if (holds) return;
  std::fprintf(stderr, "wrong: %s\n", what);
  std::exit(1);
}

std::atomic<int> asked{0};
bool go_on() {
  ++asked;
  return false;
}
bool give_up() { return true; }

// Shares of `rounds` checkpoints of a tenth of a millisecond each.
struct Slow {
  int64_t rounds;
  std::atomic<int64_t> passed{0};
  static void run(int64_t begin, int64_t end, void* given) {
    auto& slow = *static_cast<Slow*>(given);
    // The first share is the shortest: its thread waits for the others.
    const int64_t rounds = begin == 0 ? 1 : slow.rounds;
    for (int64_t k = 0; k < (end - begin) * rounds; ++k) {
      std::this_thread::sleep_for(std::chrono::microseconds(100));
      ++slow.passed;
      cpu::checkpoint();
    }
  }
};

void ends_early() {
  for (const bool on_first : {false, true}) {
    std::atomic<int> shares{0};
    struct Failing {
      bool on_first;
      std::atomic<int>& shares;
      static void run(int64_t begin, int64_t, void* given) {
        auto& failing = *static_cast<Failing*>(given);
        ++failing.shares;
        if ((begin == 0) == failing.on_first) throw std::bad_alloc();
        for (;;) cpu::checkpoint();  // until another has failed
      }
    } failing{on_first, shares};
    bool caught = false;
    try {
      parallel(3, &Failing::run, &failing);
    } catch (const std::bad_alloc&) {
      caught = true;
    }
    require(caught && shares == 3, "what a thread throws is thrown by the call");
  }
  {
    const cpu::Polling polling(&go_on);
    Slow slow{8000};
    parallel(3, &Slow::run, &slow);
    require(slow.passed == 2 * 8000 + 1 && asked >= 4, "a poll that says nothing lets the call go on");
  }
  {
    const cpu::Polling polling(&give_up);
    Slow slow{1 << 30};
    bool caught = false;
    try {
      parallel(3, &Slow::run, &slow);
    } catch (const cpu::Interrupted&) {
      caught = true;
    }
    require(caught, "a poll ends the call");
  }
  const int before = asked;
  Slow slow{3000};
  parallel(3, &Slow::run, &slow);
  require(asked == before, "without a poll nothing is asked");
}

}  // namespace

int main() {
  ends_early();
  std::puts("done");
  return 0;
}
