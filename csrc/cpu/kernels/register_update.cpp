// z + sum_j gamma_j * R_j on the CPU, and the gradients of the registers and of gamma, in one pass each.
//
// Bytes per entry: J + 1 numbers read and one written; backward: J + 1 read and J written. Operations: J multiply-adds,
// backward J more. Entries form runs along which gamma either changes with every entry (C = 1, a run of M) or stays (a
// run of C). Forward a thread owns pieces of the result. Backward it owns parts: ranges of M, where that is long enough
// for each sum to have one owner, else of A or of C, whose sums are added in order. Parts, and the order of sums in
// them, depend on the sizes alone: in T over 64 runs, or over one block of a run, and in double beyond.

#include <algorithm>

#include "cpu/kernels.h"
#include "cpu/lanes/simd.h"
#include "cpu/lanes/streaming_stores.h"
#include "cpu/scratch.h"

namespace memformer::cpu::MEMFORMER_ISA {
namespace {

constexpr int64_t piece = 16384;  // entries of the result that a thread takes at a time
constexpr int64_t pieces_between_checkpoints = 4;
constexpr int64_t cached = 4 << 20;   // a tensor of more bytes than this is written past the caches
constexpr int64_t block = 2048;       // entries of the gradient that stay in the first-level cache for all registers
constexpr int64_t burst = 4096;       // entries of short runs that one register's turn takes, to keep to its pages
constexpr int64_t shared_parts = 64;  // most parts whose sums are kept side by side
constexpr int64_t part_entries = 65536;
constexpr int64_t owned_columns = 2048;
constexpr int64_t runs_between_flushes = 64;

struct Range {
  int64_t begin, end;

  int64_t size() const { return end - begin; }
};

Range part_of(int64_t size, int64_t parts, int64_t part) { return {size * part / parts, size * (part + 1) / parts}; }

template <class T>
bool exceeds_caches(const RegisterUpdate<T>& call) {
  return call.before * call.middle * call.after * static_cast<int64_t>(sizeof(T)) > cached;
}

// Entries before `pointer` is aligned for whole vectors, at most `count`.
template <class T>
int64_t unaligned(const T* pointer, int64_t count) {
  const int64_t over = static_cast<int64_t>(reinterpret_cast<uintptr_t>(pointer) % MEMFORMER_VECTOR_BYTES / sizeof(T));
  return over == 0 ? 0 : std::min<int64_t>(Lanes<T>::width - over, count);
}

// Asks memory for what follows four vectors some way on: the hardware's prefetcher stops at every page, and starts
// again where a register's turn comes again.
template <class T>
MEMFORMER_INLINE void prefetch_after(const T* values) {
  const char* const line = reinterpret_cast<const char*>(values) + 2048;
  for (int k = 0; k < 4 * MEMFORMER_VECTOR_BYTES; k += 64) __builtin_prefetch(line + k, 0, 2);
}

template <class T, bool Streaming>
MEMFORMER_INLINE void put(T* to, Lanes<T> value) {
  if constexpr (Streaming) {
    store_streaming(to, value);
  } else {
    value.store(to);
  }
}

template <class T, bool Follows, bool Streaming>
class Forward {
  using S = Lanes<T>;

 public:
  explicit Forward(const RegisterUpdate<T>& call) : call_(call) {}

  void operator()(int64_t begin, int64_t end) const {
    const int64_t length = Follows ? call_.middle : call_.after;
    while (begin < end) {
      const int64_t row = begin / length, stop = std::min(end, (row + 1) * length);
      run(begin, stop, Follows ? begin - row * length : row % call_.middle);
      begin = stop;
    }
  }

 private:
  // Entries [begin, end) of one run; `weight` is the place in gamma of the first one's coefficient.
  void run(int64_t begin, int64_t end, int64_t weight) const {
    int64_t at = begin + unaligned(call_.result + begin, end - begin);
    one_by_one(begin, at, weight);
    const auto place = [&](int64_t entry) { return Follows ? weight + (entry - begin) : weight; };
    for (; at + 4 * S::width <= end; at += 4 * S::width) vectors<4>(at, place(at));
    for (; at + S::width <= end; at += S::width) vectors<1>(at, place(at));
    one_by_one(at, end, place(at));
  }

  template <int Count>
  MEMFORMER_INLINE void vectors(int64_t at, int64_t weight) const {
    S total[Count];
    for (int k = 0; k < Count; ++k) total[k] = S::load(call_.tokens + at + k * S::width);
    for (int64_t j = 0; j < call_.registers; ++j) {
      const T* const values = call_.values[j] + at;
      const T* const gamma = call_.gamma + j * call_.middle + weight;
      if constexpr (Count == 4) prefetch_after(values);
      for (int k = 0; k < Count; ++k) {
        total[k] += (Follows ? S::load(gamma + k * S::width) : S(*gamma)) * S::load(values + k * S::width);
      }
    }
    for (int k = 0; k < Count; ++k) put<T, Streaming>(call_.result + at + k * S::width, total[k]);
  }

  void one_by_one(int64_t begin, int64_t end, int64_t weight) const {
    for (int64_t at = begin; at < end; ++at) {
      T total = call_.tokens[at];
      for (int64_t j = 0; j < call_.registers; ++j) {
        total += call_.gamma[j * call_.middle + (Follows ? weight + (at - begin) : weight)] * call_.values[j][at];
      }
      call_.result[at] = total;
    }
  }

  const RegisterUpdate<T>& call_;
};

// One part of the backward: ranges of the three axes, and sums of its range of M for every register.
template <class T, bool Follows, bool Streaming>
class Backward {
  using S = Lanes<T>;

 public:
  // sums (J, m.size()) start at zero; `recent` holds as many numbers of T.
  Backward(const RegisterUpdate<T>& call, Range m, double* sums, T* recent)
      : call_(call), m_(m), sums_(sums), recent_(recent) {}

  void operator()(Range a, Range c) const {
    std::fill_n(recent_, call_.registers * m_.size(), T(0));
    if constexpr (Follows) {
      int64_t together = 1;
      while (together < runs_between_flushes && 2 * together * m_.size() <= burst) together *= 2;
      for (int64_t row = a.begin; row < a.end; row += together) {
        const int64_t stop = std::min(a.end, row + together);
        if (together == 1) {
          run(row * call_.middle + m_.begin, m_.size(), m_.begin);
        } else {
          for (int64_t j = 0; j < call_.registers; ++j) {
            for (int64_t r = row; r < stop; ++r) one(j, r * call_.middle + m_.begin, m_.size(), m_.begin);
          }
        }
        if ((stop - a.begin) % runs_between_flushes == 0) flush();
        checkpoint_at_row(stop - a.begin);
      }
      flush();
      return;
    }
    for (int64_t row = a.begin; row < a.end; ++row) {
      checkpoint_at_row(row - a.begin);
      for (int64_t m = m_.begin; m < m_.end; ++m) run((row * call_.middle + m) * call_.after + c.begin, c.size(), m);
    }
  }

 private:
  void run(int64_t begin, int64_t count, int64_t weight) const {
    for (int64_t done = 0; done < count; done += block) {
      if (done % (8 * block) == 0) checkpoint_after(count * call_.registers);
      const int64_t here = std::min(block, count - done);
      for (int64_t j = 0; j < call_.registers; ++j) one(j, begin + done, here, Follows ? weight + done : weight);
    }
  }

  // `count` entries of register j.
  void one(int64_t j, int64_t begin, int64_t count, int64_t weight) const {
    const T* const grad = call_.tokens + begin;
    const T* const values = call_.values[j] + begin;
    const T* const gamma = call_.gamma + j * call_.middle + weight;
    T* const out = call_.grad_registers[j] ? call_.grad_registers[j] + begin : nullptr;
    T* const recent = recent_ + j * m_.size() + (weight - m_.begin);
    S total[4] = {S(T(0)), S(T(0)), S(T(0)), S(T(0))};
    T rest = T(0);
    const auto single = [&](int64_t k) {
      if (out) out[k] = grad[k] * gamma[Follows ? k : 0];
      if constexpr (Follows) {
        recent[k] += grad[k] * values[k];
      } else {
        rest += grad[k] * values[k];
      }
    };
    const auto vector = [&](int64_t k, S& sum) {
      const S g = S::load(grad + k);
      if (out) put<T, Streaming>(out + k, g * (Follows ? S::load(gamma + k) : S(*gamma)));
      if (!call_.grad_gamma) return;
      const S product = g * S::load(values + k);
      if constexpr (Follows) {
        (S::load(recent + k) + product).store(recent + k);
      } else {
        sum += product;
      }
    };
    int64_t k = 0;
    for (const int64_t first = out ? unaligned(out, count) : 0; k < first; ++k) single(k);
    for (; k + 4 * S::width <= count; k += 4 * S::width) {
      prefetch_after(values + k);
      for (int part = 0; part < 4; ++part) vector(k + part * S::width, total[part]);
    }
    for (; k + S::width <= count; k += S::width) vector(k, total[0]);
    for (; k < count; ++k) single(k);
    if constexpr (!Follows) {
      T lanes[S::width];
      ((total[0] + total[1]) + (total[2] + total[3])).store(lanes);
      for (int lane = 0; lane < S::width; ++lane) rest += lanes[lane];
      sums_[j * m_.size() + (weight - m_.begin)] += static_cast<double>(rest);
    }
  }

  void flush() const {
    for (int64_t k = 0; k < call_.registers * m_.size(); ++k) {
      sums_[k] += static_cast<double>(recent_[k]);
      recent_[k] = T(0);
    }
  }

  const RegisterUpdate<T>& call_;
  Range m_;
  double* sums_;
  T* recent_;
};

// How the backward is divided: along which axis, and into how many parts.
struct Division {
  enum class Axis { before, middle, after } axis;
  int64_t parts;
};

template <class T>
Division divide(const RegisterUpdate<T>& call) {
  const bool follows = call.after == 1;
  if (call.middle >= (follows ? owned_columns : shared_parts)) {
    return {Division::Axis::middle, follows ? call.middle / owned_columns : shared_parts};
  }
  const int64_t entries = call.before * call.middle * call.after;
  const int64_t parts = std::clamp<int64_t>(entries / part_entries, 1, shared_parts);
  if (call.before >= parts) return {Division::Axis::before, parts};
  return {Division::Axis::after, std::min(parts, std::max<int64_t>(call.after, 1))};
}

template <class T, bool Follows, bool Streaming>
void run_backward(const RegisterUpdate<T>& call, ParallelFor parallel) {
  const Division division = divide(call);
  const bool owned = division.axis == Division::Axis::middle;
  const int64_t numbers = call.registers * call.middle;
  auto* const sums =
      owned ? nullptr
            : static_cast<double*>(call_scratch(static_cast<std::size_t>(division.parts * numbers) * sizeof(double)));
  const auto part = [&](int64_t index) {
    Range a{0, call.before}, m{0, call.middle}, c{0, call.after};
    Range& divided = owned ? m : division.axis == Division::Axis::before ? a : c;
    divided = part_of(divided.end, division.parts, index);
    const int64_t count = call.registers * m.size();
    auto* const own =
        static_cast<double*>(thread_scratch(static_cast<std::size_t>(count) * (sizeof(double) + sizeof(T))));
    double* const totals = owned ? own : sums + index * numbers;
    std::fill_n(totals, count, 0.0);
    Backward<T, Follows, Streaming>(call, m, totals, reinterpret_cast<T*>(own + count))(a, c);
    for (int64_t k = 0; owned && call.grad_gamma && k < count; ++k) {
      call.grad_gamma[k / m.size() * call.middle + m.begin + k % m.size()] = static_cast<T>(totals[k]);
    }
  };
  auto context = &part;
  parallel(
      division.parts,
      [](int64_t begin, int64_t end, void* given) {
        for (int64_t index = begin; index < end; ++index) (**static_cast<decltype(context)*>(given))(index);
        finish_stores();
      },
      &context);
  for (int64_t k = 0; !owned && call.grad_gamma && k < numbers; ++k) {
    double total = 0.0;
    for (int64_t index = 0; index < division.parts; ++index) total += sums[index * numbers + k];
    call.grad_gamma[k] = static_cast<T>(total);
  }
}

template <class T, bool Follows, bool Streaming>
void run(const RegisterUpdate<T>& call, ParallelFor parallel) {
  if (call.backward) return run_backward<T, Follows, Streaming>(call, parallel);
  const Forward<T, Follows, Streaming> forward(call);
  const int64_t entries = call.before * call.middle * call.after;
  const auto pieces = [&](int64_t begin, int64_t end) {
    for (int64_t first = begin; first < end; first += pieces_between_checkpoints) {
      if (first > begin) checkpoint();
      forward(first * piece, std::min(std::min(first + pieces_between_checkpoints, end) * piece, entries));
    }
  };
  auto context = &pieces;
  parallel((entries + piece - 1) / piece,
           [](int64_t begin, int64_t end, void* given) {
             (**static_cast<decltype(context)*>(given))(begin, end);
             finish_stores();
           },
           &context);
}

template <class T>
void choose(const RegisterUpdate<T>& call, ParallelFor parallel) {
  if (call.after == 1) {
    exceeds_caches(call) ? run<T, true, true>(call, parallel) : run<T, true, false>(call, parallel);
  } else {
    exceeds_caches(call) ? run<T, false, true>(call, parallel) : run<T, false, false>(call, parallel);
  }
}

}  // namespace

void register_update(const RegisterUpdate<float>& call, ParallelFor parallel) { choose(call, parallel); }

void register_update(const RegisterUpdate<double>& call, ParallelFor parallel) { choose(call, parallel); }

}  // namespace memformer::cpu::MEMFORMER_ISA
