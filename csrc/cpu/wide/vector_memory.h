// The registers of a response-only network as vectors of one task: what they add to its state, and the way back.
//
// A vector is the features' weights (Gram space) or the tokens' responses (token space). Operations for each entry: a
// multiply-add for every register that counts, forward, and two backward; coefficients and their gradients are read
// with the vectors where every entry has its own.

#pragma once

#include "core/coefficients.h"
#include "cpu/wide/one_task.h"

namespace memformer::cpu::MEMFORMER_ISA {

// Coefficients with a number for every entry of a vector, in whole vectors with zeros behind them; or as they are,
// where entries share one.
template <class T>
class EntryCoefficients {
 public:
  EntryCoefficients(const T* given, int64_t places, int entries, int length)
      : given_(given), places_(given ? places : 0), given_entries_(entries), length_(entries > 1 ? length : 1) {}

  int entries() const { return length_; }
  int64_t numbers() const { return given_entries_ > 1 ? places_ * length_ : 0; }

  // The coefficients as they are read, at `memory` where they need any.
  const T* copy_to(T* memory) const {
    if (given_entries_ == 1 || !given_) return given_;
    for (int64_t place = 0; place < places_; ++place) {
      std::copy(given_ + place * given_entries_, given_ + (place + 1) * given_entries_, memory + place * length_);
      clear(memory + place * length_ + given_entries_, length_ - given_entries_);
    }
    return memory;
  }

  // Adds sums in the order of `copy_to` to totals in that of the given ones, and returns what is behind those.
  double* add(const T* sums, double* totals) const {
    for (int64_t place = 0; place < places_; ++place) {
      for (int i = 0; i < given_entries_; ++i) *totals++ += static_cast<double>(sums[place * length_ + i]);
    }
    return totals;
  }

 private:
  const T* given_;
  int64_t places_;
  int given_entries_, length_;
};

// A row of the coefficients is an entry of a vector: whole vectors of them, or one that all entries share.
template <class T>
struct VectorMemory : core::Coefficients<T, int64_t> {
  using S = Lanes<T>;
  using Base = core::Coefficients<T, int64_t>;
  using Base::beta, Base::beta_index, Base::beta_rows, Base::diagonal, Base::gamma, Base::gamma_index, Base::gamma_rows;
  using Base::kept, Base::layers, Base::newest_only;

  int64_t gamma_count() const {
    return gamma ? static_cast<int64_t>(diagonal ? 1 : layers) * layers * kept * gamma_rows : 0;
  }
  int64_t beta_count() const { return beta ? static_cast<int64_t>(layers) * kept * beta_rows : 0; }

  static MEMFORMER_INLINE S coefficient(const T* of, int entries, int i) {
    return entries > 1 ? S::load(of + i) : S(*of);
  }

  // r += beta_{l,h} * previous over entries [begin, end).
  void remember(int l, int h, int begin, int end, const T* previous, T* r) const {
    if (!beta || l == 0) return;
    const T* const own = beta + beta_index(l, h);
    for (int i = begin; i < end; i += S::width) {
      (S::load(r + i) + S::load(previous + i) * coefficient(own, beta_rows, i)).store(r + i);
    }
  }

  // next = s + what layer l adds, over entries [begin, end); registers (L, R, length).
  void update(int l, int begin, int end, const T* registers, int64_t length, const T* s, T* next) const {
    const bool newest = newest_only();
    const int first = newest ? l * kept : 0, last = (l + 1) * kept;
    const T* const own = gamma ? gamma + gamma_index(l, newest ? l : 0, 0) : nullptr;
    for (int i = begin; i < end; i += S::width) {
      S sum = S::load(s + i);
      for (int place = first; place < last; ++place) {
        const S r = S::load(registers + place * length + i);
        sum += own ? r * coefficient(own + static_cast<int64_t>(place - first) * gamma_rows, gamma_rows, i) : r;
      }
      sum.store(next + i);
    }
  }

  // The gradient dr of register (l, h) over entries [begin(l), end), and those of gamma_{.,l,h} and beta_{l,h}, added.
  // updates (L, length): the gradients of the layers' updates; later, earlier: the gradient of register (l + 1, h), and
  // register (l - 1, h). begin(l): the first entry that layer l moves.
  template <class Begin>
  void register_grad(int l, int h, Begin begin, int end, const T* updates, int64_t length, const T* r, const T* later,
                     const T* earlier, T* grad_gamma, T* grad_beta, T* dr) const {
    const int first = begin(l);
    if (!gamma) {
      std::copy(updates + l * length + first, updates + l * length + end, dr + first);
    } else {
      for (int place = l; place < (diagonal ? l + 1 : layers); ++place) {
        const int64_t at = gamma_index(place, l, h);
        add_weighted_update(gamma + at, begin(place), end, place == l, updates + place * length, r, grad_gamma + at,
                            dr);
      }
    }
    if (!beta) return;
    if (l + 1 < layers) {
      const T* const next = beta + beta_index(l + 1, h);
      for (int i = begin(l + 1); i < end; i += S::width) {
        (S::load(dr + i) + S::load(later + i) * coefficient(next, beta_rows, i)).store(dr + i);
      }
    }
    if (l > 0) add_products(dr, earlier, first, end, beta_rows, grad_beta + beta_index(l, h));
  }

 private:
  // dr (+)= u * gamma and grad += r * u.
  void add_weighted_update(const T* own, int first, int end, bool fresh, const T* u, const T* r, T* grad, T* dr) const {
    for (int i = first; i < end; i += S::width) {
      const S change = S::load(u + i) * coefficient(own, gamma_rows, i);
      (fresh ? change : S::load(dr + i) + change).store(dr + i);
    }
    add_products(r, u, first, end, gamma_rows, grad);
  }

  static void add_products(const T* left, const T* right, int first, int end, int entries, T* grad) {
    if (entries == 1) {
      *grad += dot(left + first, right + first, end - first);
      return;
    }
    for (int i = first; i < end; i += S::width)
      (S::load(grad + i) + S::load(left + i) * S::load(right + i)).store(grad + i);
  }
};

}  // namespace memformer::cpu::MEMFORMER_ISA
