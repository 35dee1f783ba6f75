// How kernels are given threads, by the library that calls them, and how a call ends before its end: because a thread
// met an exception, or because whoever made the call is asked to give it up (a signal: Ctrl-C).
//
// What a thread throws ends the shares of all others at their next checkpoint, and is thrown by the call on the thread
// that made it: nothing is thrown into the threads' own library, which would end the process or lose what it says.

#pragma once

#include <cstdint>

namespace memformer::cpu {

// Runs body(begin, end, context) over parts of [0, count), on as many threads as the caller's library is set to.
using Body = void (*)(int64_t begin, int64_t end, void* context);
using ParallelFor = void (*)(int64_t count, Body body, void* context);

// Asked of the thread that made a call, about ten times a second while it lasts: whether to give it up.
using Poll = bool (*)();

// What a call throws that was given up.
struct Interrupted {};

// While it lives, the calls that its thread makes poll. Without one, calls run to their end.
class Polling {
 public:
  explicit Polling(Poll poll);
  ~Polling();
  Polling(const Polling&) = delete;
  Polling& operator=(const Polling&) = delete;
};

// `pool` runs the body; exceptions and polls as above.
void run_on_threads(ParallelFor pool, int64_t count, Body body, void* context);

// A moment at which a call may end: kernels pass one after every few microseconds to a tenth of a second of work,
// holding nothing that a destructor does not give back. Costs some nanoseconds; throws what ends the call.
void checkpoint();

// The same after a stretch of `operations` whose number depends on sizes: not after short ones.
inline void checkpoint_after(int64_t operations) {
  if (operations >= 1 << 14) checkpoint();
}

// The same in a loop over rows, in steps that divide 1024: of so many it passes one.
inline void checkpoint_at_row(int64_t row) {
  if (row % 1024 == 0 && row != 0) checkpoint();
}

}  // namespace memformer::cpu
