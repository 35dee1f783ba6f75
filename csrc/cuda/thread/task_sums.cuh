// Sums over the 32 tasks of a warp of what response-only methods hand out for their parameters.
//
// One task a lane. Matrices: the gradient of A is the sum over tasks of dr g^T. Lanes leave dr (and g) in shared
// memory, [cell][task]; then lane (m, k) works on matrix m of every four and tasks 4 k, ..., 4 k + 3: 2 d vector reads
// for 4 d^2 multiply-adds, all words of a group of lanes in different banks. The 8 lanes of a matrix add up pairwise
// and keep d^2 / 8 entries each. Other sums: a lane puts its number in a slot; when eight slots are full, four lanes
// add up each, pairwise.
//
// Sums of a tile are pairwise over its tasks; tiles add up by pairs in two rows, so that a unit of one, two or four
// tiles is a subtree of its block of 1024 tasks, and results do not depend on where a unit ends.

#pragma once

#include "core/matrix.h"
#include "cuda/machine/execution.cuh"

namespace memformer::cuda {

// Slots and the numbers from one to the next: 4 words more than lanes, so that two slots read at once share no bank.
constexpr int slots = 8;
constexpr int slot_pitch = warp_threads + 4;

// Adds `values` over the lanes whose index differs in the bits of Mask, Mask / 2, ..., Least: every lane keeps the sums
// of a run of them, `count` from `first` on, in values[0], values[1], ...
template <int Count, int Mask, int Least = 1, class T, class Block>
MEMFORMER_DEVICE void spread_sums(const Block& block, T* values, int& first, int& count) {
  if constexpr (Mask >= Least) {
    constexpr int half = (Count + 1) / 2;
    const bool upper = block.lane() & Mask;
    MEMFORMER_UNROLL
    for (int k = 0; k < half; ++k) {
      const T low = values[k], high = k + half < Count ? values[k + half] : T(0);
      values[k] = (upper ? high : low) + block.shuffle_xor(upper ? low : high, Mask);
    }
    first += upper ? half : 0;
    count = upper ? count - half : (count < half ? count : half);
    spread_sums<half, Mask / 2, Least>(block, values, first, count);
  }
}

template <int Count, int Mask, int Least = 1>
MEMFORMER_INLINE constexpr int spread_count() {
  if constexpr (Mask < Least) {
    return Count;
  } else {
    return spread_count<(Count + 1) / 2, Mask / 2, Least>();
  }
}

// Slots of numbers to be added up over a warp's lanes, and what the slot is for that this lane will add up.
template <class T, class Block>
struct Slots {
  struct alignas(16) Four {
    T of[4];
  };

  const Block& block;
  T* totals;
  T* cells;
  int used = 0;
  int mine = 0;

  MEMFORMER_DEVICE void put(int k, T value) {
    cells[used * slot_pitch + block.lane()] = value;
    if (block.lane() / 4 == used) mine = k;
    if (++used == slots) empty();
  }

  MEMFORMER_DEVICE void empty() {
    block.sync_warp();
    if (used == 0) return;
    const int slot = block.lane() / 4;
    const T* const from = cells + (slot < used ? slot : 0) * slot_pitch + block.lane() % 4 * 8;
    const Four low = *reinterpret_cast<const Four*>(from), high = *reinterpret_cast<const Four*>(from + 4);
    T sum =
        ((low.of[0] + low.of[1]) + (low.of[2] + low.of[3])) + ((high.of[0] + high.of[1]) + (high.of[2] + high.of[3]));
    sum += block.shuffle_xor(sum, 1);
    sum += block.shuffle_xor(sum, 2);
    if (block.lane() % 4 == 0 && slot < used) totals[mine] += sum;
    block.sync_warp();
    used = 0;
  }
};

// A sink of the core's backward passes, for one tile. `left` has room for dr of every matrix, `right` holds g of every
// layer. Whole: the tile's sums are all there is, and are put where others are added.
template <class T, class Extent, class Block, bool Whole = false>
struct TaskSums {
  static constexpr bool takes_outer_products = true;
  using Rows = core::Cells<T, warp_threads>;
  struct alignas(16) Four {
    T of[4];
  };

  const Block& block;
  Extent d;
  int heads;  // matrices of a layer
  int matrices;
  int gamma_start;  // where the sums of gamma, of beta, and of the squared error stand
  int beta_start;
  int last;
  T* totals;  // of this tile's row
  T* slot_cells;
  Rows left;  // of this lane's task
  Rows right;
  int used = 0;
  int mine = 0;  // what the slot is for that this lane will add up

  MEMFORMER_DEVICE void gamma(int k, T value) { put(gamma_start + k, value); }
  MEMFORMER_DEVICE void beta(int k, T value) { put(beta_start + k, value); }
  MEMFORMER_DEVICE void squared_error(T value) { put(last, value); }

  MEMFORMER_DEVICE void outer(int place, const T* dr) const {
    const int count = d;
    MEMFORMER_UNROLL
    for (int c = 0; c < count; ++c) left[place * count + c] = dr[c];
  }

  MEMFORMER_DEVICE void put(int k, T value) {
    Slots<T, Block> slots_now{block, totals, slot_cells, used, mine};
    slots_now.put(k, value);
    used = slots_now.used;
    mine = slots_now.mine;
  }

  MEMFORMER_DEVICE void empty_slots() {
    Slots<T, Block>{block, totals, slot_cells, used, mine}.empty();
    used = 0;
  }

  // After the backward: empties the slots and adds up the matrices.
  MEMFORMER_DEVICE void finish() {
    empty_slots();
    finish_matrices();
  }

  MEMFORMER_DEVICE void finish_matrices() const {
    const int size = d, chunk = block.lane() % 8;
    const int shift = 4 * chunk - block.lane();
    for (int start = 0; start < matrices; start += 4) {
      const int matrix = start + block.lane() / 8;
      const bool real = matrix < matrices;
      const Rows rows{left.data + shift + (real ? matrix : 0) * size * warp_threads};
      const Rows columns{right.data + shift + (real ? matrix / heads : 0) * size * warp_threads};
      add_products(rows, columns, totals + matrix * size * size, real);
    }
    block.sync_warp();
  }

 private:
  static MEMFORMER_DEVICE void add(T& to, T sum) {
    if constexpr (Whole) {
      to = sum;
    } else {
      to += sum;
    }
  }
  static MEMFORMER_DEVICE Four four(Rows rows, int index) { return *reinterpret_cast<const Four*>(&rows[index]); }
  static MEMFORMER_DEVICE T product(const Four& a, const Four& b) {
    return ((a.of[0] * b.of[0] + a.of[1] * b.of[1]) + a.of[2] * b.of[2]) + a.of[3] * b.of[3];
  }

  MEMFORMER_DEVICE void add_products(Rows rows, Rows columns, T* to, bool real) const {
    if constexpr (core::is_fixed<Extent>) {
      constexpr int size = Extent::limit;
      T sums[size * size];
      Four right_values[size];
      MEMFORMER_UNROLL
      for (int j = 0; j < size; ++j) right_values[j] = four(columns, j);
      MEMFORMER_UNROLL
      for (int i = 0; i < size; ++i) {
        const Four left_values = four(rows, i);
        MEMFORMER_UNROLL
        for (int j = 0; j < size; ++j) sums[i * size + j] = product(left_values, right_values[j]);
      }
      int first = 0, count = size * size;
      spread_sums<size * size, 4>(block, sums, first, count);
      MEMFORMER_UNROLL
      for (int k = 0; k < spread_count<size * size, 4>(); ++k) {
        if (real && k < count) add(to[first + k], sums[k]);
      }
    } else {
      const int size = d;
      for (int i = 0; i < size; ++i) {
        const Four left_values = four(rows, i);
        for (int j = 0; j < size; ++j) {
          T sum[1] = {product(left_values, four(columns, j))};
          for (int mask = 4; mask > 0; mask /= 2) sum[0] += block.shuffle_xor(sum[0], mask);
          if (real && block.lane() % 8 == 0) add(to[i * size + j], sum[0]);
        }
      }
    }
  }
};

// The same for so many layers with one register each and gamma in full: every number has a slot of its own, which is
// known when compiling, and they are emptied once.
template <int Layers>
constexpr int layer_slots = Layers * (Layers + 1) / 2 + 1;

template <class T, class Extent, class Block, int Layers>
struct LayerSums : TaskSums<T, Extent, Block, true> {
  using Base = TaskSums<T, Extent, Block, true>;
  using Four = typename Base::Four;
  static constexpr int used_slots = layer_slots<Layers>;

  MEMFORMER_DEVICE void gamma(int k, T value) const { put(first_slot(k / Layers) + k % Layers, value); }
  MEMFORMER_DEVICE void squared_error(T value) const { put(used_slots - 1, value); }

  MEMFORMER_DEVICE void finish() const {
    const auto& block = this->block;
    block.sync_warp();
    MEMFORMER_UNROLL
    for (int first = 0; first < used_slots; first += warp_threads / 4) {
      const int slot = first + block.lane() / 4;
      const bool real = slot < used_slots;
      const T* const from = this->slot_cells + (real ? slot : 0) * slot_pitch + block.lane() % 4 * 8;
      const Four low = *reinterpret_cast<const Four*>(from), high = *reinterpret_cast<const Four*>(from + 4);
      T sum =
          ((low.of[0] + low.of[1]) + (low.of[2] + low.of[3])) + ((high.of[0] + high.of[1]) + (high.of[2] + high.of[3]));
      sum += block.shuffle_xor(sum, 1);
      sum += block.shuffle_xor(sum, 2);
      if (real && block.lane() % 4 == 0) this->totals[place(slot)] = sum;
    }
    this->finish_matrices();
  }

 private:
  static MEMFORMER_INLINE constexpr int first_slot(int later) { return later * (later + 1) / 2; }
  MEMFORMER_DEVICE void put(int slot, T value) const {
    this->slot_cells[slot * slot_pitch + this->block.lane()] = value;
  }
  // Where the sum of a slot goes.
  MEMFORMER_DEVICE int place(int slot) const {
    int row = 0;
    MEMFORMER_UNROLL
    for (int later = 1; later < Layers; ++later) row += slot >= first_slot(later) ? Layers - later : 0;
    return slot == used_slots - 1 ? this->last : this->gamma_start + slot + row;
  }
};

}  // namespace memformer::cuda
