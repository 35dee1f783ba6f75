// Parameters in the one dense form the kernels take, and their gradients back in the form the caller gave.
//
// Everything here is small: L, H, D and what they make. What a coefficient's axis shares is spelled out on the way in
// and added up, in double, on the way back.

#pragma once

#include <vector>

#include "binding/arguments.h"
#include "cpu/threads.h"

namespace memformer::binding {

// Adds up gradients that reach the same entry, then writes them; entries that nothing reaches are zero.
class Totals {
 public:
  explicit Totals(const Tensor& grad) : entries_(grad), sums_(static_cast<std::size_t>(entries_.count()), 0.0) {}

  template <int Axes>
  void add(const int64_t (&index)[Axes], double value) {
    sums_[static_cast<std::size_t>(entries_.offset(index))] += value;
  }

  void write() const { entries_.write(0, entries_.count(), sums_.data()); }

 private:
  Entries entries_;
  std::vector<double> sums_;
};

// Projections (L, H, m, m): Q or P. `width` is m in the kernel: d for blocks, D where a border of zeros and the corner
// (P's is 1) are spelled out. `kept` = 1 with several heads and no P: their sum.
struct Projections {
  int layers, heads, width;
  bool collapse;
  double corner;

  int kept() const { return collapse ? 1 : heads; }
  std::size_t count() const { return static_cast<std::size_t>(layers) * kept() * width * width; }

  // `given` may be null (P of a response-only network): zeros and the corner.
  template <class T>
  void read(const MaybeTensor& given, T* dense) const {
    std::vector<double> sums(count(), 0.0);
    const int block = given ? narrow(given->size(given->dim() - 1), "q and p") : 0;
    if (given) {
      const Entries entries(*given);
      for (int l = 0; l < layers; ++l) {
        for (int h = 0; h < heads; ++h) {
          cpu::checkpoint_after(static_cast<int64_t>(block) * block);
          for (int i = 0; i < block; ++i) {
            entries.read(entries.offset({l, h, i, 0}), block, &sums[place(l, h, i, 0)]);
          }
        }
      }
    }
    if (block < width) {
      for (int l = 0; l < layers; ++l) {
        for (int h = 0; h < heads; ++h) sums[place(l, h, width - 1, width - 1)] = corner;
      }
    }
    for (std::size_t k = 0; k < sums.size(); ++k) dense[k] = static_cast<T>(sums[k]);
  }

  // Every entry of `grad` has its own total, or that of all heads.
  void write(const double* totals, const Tensor& grad) const {
    const Entries entries(grad);
    const int block = narrow(grad.size(grad.dim() - 1), "q and p");
    for (int l = 0; l < layers; ++l) {
      for (int h = 0; h < heads; ++h) {
        cpu::checkpoint_after(static_cast<int64_t>(block) * block);
        for (int i = 0; i < block; ++i) entries.write(entries.offset({l, h, i, 0}), block, totals + place(l, h, i, 0));
      }
    }
  }

 private:
  std::size_t place(int l, int h, int i, int j) const {
    return ((static_cast<std::size_t>(l) * kept() + (collapse ? 0 : h)) * width + i) * width + j;
  }
};

// gamma or beta: `pairs` leading places (L, or L * L with [l, j]), `kept` registers, rows, and features from
// `first_feature` on: all D of them, or the response slot alone.
struct Coefficients {
  int layers;
  bool paired;  // one place for every [l, j], of which j <= l are read
  int kept;
  int row_count;
  int first_feature, width;
  Rows rows;

  int features() const { return width - first_feature; }
  std::size_t count() const {
    return static_cast<std::size_t>(layers) * (paired ? layers : 1) * kept * row_count * features();
  }

  template <class T>
  void read(const Tensor& given, T* dense) const {
    const Entries entries(given);
    each([&](std::size_t place, const int64_t (&index)[5]) {
      dense[place] = static_cast<T>(entries.read(at(entries, index)));
    });
  }

  void write(const double* totals, const Tensor& grad) const {
    Totals sums(grad);
    each([&](std::size_t place, const int64_t (&index)[5]) {
      if (paired) {
        sums.add(index, totals[place]);
      } else {
        const int64_t own[4] = {index[1], index[2], index[3], index[4]};
        sums.add(own, totals[place]);
      }
    });
    sums.write();
  }

 private:
  int64_t at(const Entries& entries, const int64_t (&index)[5]) const {
    if (paired) return entries.offset(index);
    const int64_t own[4] = {index[1], index[2], index[3], index[4]};
    return entries.offset(own);
  }

  // visit(place in the dense form, index [l, j, h, token, feature]); without pairs the layer is j.
  template <class Visit>
  void each(Visit visit) const {
    const int outer = paired ? layers : 1;
    for (int l = 0; l < outer; ++l) {
      for (int j = 0; j < layers; ++j) {
        if (paired && j > l) continue;
        cpu::checkpoint_after(static_cast<int64_t>(kept) * row_count * features());
        for (int h = 0; h < kept; ++h) {
          for (int i = 0; i < row_count; ++i) {
            for (int c = 0; c < features(); ++c) {
              const std::size_t place =
                  (((static_cast<std::size_t>(l) * layers + j) * kept + h) * row_count + i) * features() + c;
              visit(place, {l, j, h, row_count > 1 ? rows.token(i) : 0, first_feature + c});
            }
          }
        }
      }
    }
  }
};

}  // namespace memformer::binding
