#include "cpu/threads.h"

#include <time.h>

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <exception>
#include <mutex>
#include <utility>

#include "cpu/scratch_aside.h"

namespace memformer::cpu {
namespace {

constexpr int64_t poll_milliseconds = 100;
// Looks at the other threads before the calling one sleeps between them: about a millisecond, as threads' libraries do.
constexpr int looks = 10000;

// What ends a share because another has failed.
struct Stopped {};

class Loop {
 public:
  Loop(int64_t count, Body body, void* context) : body_(body), context_(context), left_(count) {}

  bool stopped() const { return stopped_.load(std::memory_order_relaxed); }

  void run(int64_t begin, int64_t end) {
    try {
      body_(begin, end, context_);
    } catch (const Stopped&) {
    } catch (...) {
      fail(std::current_exception());
    }
    if (left_.fetch_sub(end - begin, std::memory_order_acq_rel) > end - begin) return;
    const std::lock_guard<std::mutex> lock(mutex_);
    done_.notify_all();
  }

  // The first failure is the call's.
  void fail(std::exception_ptr failure) {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (!failure_) failure_ = std::move(failure);
    stopped_.store(true, std::memory_order_relaxed);
  }

  // Returns when all shares are done, or after some milliseconds: whether they are.
  bool wait() {
    for (int look = 0; look < looks; ++look) {
      if (left_.load(std::memory_order_acquire) <= 0) return true;
#if defined(__x86_64__)
      __builtin_ia32_pause();
#endif
    }
    std::unique_lock<std::mutex> lock(mutex_);
    return done_.wait_for(lock, std::chrono::milliseconds(poll_milliseconds / 2),
                          [this] { return left_.load(std::memory_order_acquire) <= 0; });
  }

  void rethrow() const {
    if (failure_) std::rethrow_exception(failure_);
  }

 private:
  const Body body_;
  void* const context_;
  std::atomic<int64_t> left_;
  std::atomic<bool> stopped_{false};
  std::mutex mutex_;
  std::condition_variable done_;
  std::exception_ptr failure_;
};

// What a thread is at.
struct Turn {
  Loop* loop;
  Poll poll;
  int64_t asked;  // milliseconds, or 0: not since the call began
};
thread_local Turn turn{nullptr, nullptr, 0};

// By the kernel's tick, of a few milliseconds: the cheapest clock there is.
int64_t milliseconds() {
  timespec now;
#if defined(CLOCK_MONOTONIC_COARSE)
  clock_gettime(CLOCK_MONOTONIC_COARSE, &now);
#else
  clock_gettime(CLOCK_MONOTONIC, &now);
#endif
  return now.tv_sec * int64_t{1000} + now.tv_nsec / 1000000;
}

// Whoever is asked may make calls of the library himself, as a signal's handler does: they find this thread as if it
// were at none.
bool ask() {
  const ScratchAside aside;
  const Turn kept = std::exchange(turn, Turn{nullptr, nullptr, 0});
  const bool ended = kept.poll();
  turn = kept;
  return ended;
}

void poll_if_due() {
  if (!turn.poll) return;
  const int64_t now = milliseconds();
  if (turn.asked == 0) turn.asked = now;
  if (now - turn.asked < poll_milliseconds) return;
  turn.asked = now;
  if (ask()) throw Interrupted{};
}

void run_share(int64_t begin, int64_t end, void* given) {
  Loop& loop = *static_cast<Loop*>(given);
  Loop* const before = std::exchange(turn.loop, &loop);
  loop.run(begin, end);
  turn.loop = before;
  // The thread that made the call waits here rather than in the pool, where nobody would ask.
  while (turn.poll && !loop.wait()) {
    try {
      poll_if_due();
    } catch (const Interrupted&) {
      loop.fail(std::current_exception());
    }
  }
}

}  // namespace

Polling::Polling(Poll poll) {
  turn.poll = poll;
  turn.asked = 0;
}

Polling::~Polling() { turn.poll = nullptr; }

void run_on_threads(ParallelFor pool, int64_t count, Body body, void* context) {
  Loop loop(count, body, context);
  pool(count, &run_share, &loop);
  loop.rethrow();
}

void checkpoint() {
  if (turn.loop && turn.loop->stopped()) throw Stopped{};
  poll_if_due();
}

}  // namespace memformer::cpu
