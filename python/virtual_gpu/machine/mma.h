// Tensor cores: products of matrices that a warp holds in its registers.
//
// A register is its 32 lanes, 4 or 8 bytes each. The fragments' layouts are those of the PTX ISA ("Warp-level matrix
// instructions"), which for every shape and type are one rule, with q = lane % 4, g = lane / 4 and V values in a lane
// of a register (two halves, or one wider number):
//
//   A, M x K: register i holds row g + 8 (i mod M/8), columns V q + 4 V (i div M/8) and the V - 1 after
//   B, K x 8: register i holds rows V q + 4 V i and the V - 1 after, column g
//   C and D, M x 8: 8 rows after another, in them row g and columns 2 q and 2 q + 1, one register for each or one for
//   both
//
// Accumulation: the ISA promises products that are exact and sums of at least single precision, in no order. Here,
// after what has been measured on tensor cores (Fasi, Higham, Mikaitis, Pranesh, 2021): a few products and the
// accumulator are added at once, aligned to the greatest and cut off one bit below float's last, and the sum is cut off
// to a float. Sums in double are chains of fused multiply-adds in the order of K, each rounded.

#pragma once

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <type_traits>

#include "floats.h"
#include "halves.h"

namespace virtual_gpu {

constexpr int warp_lanes = 32;

struct TFloat32 {};

// How numbers of a type lie in registers.
template <class Number>
struct Packing {
  using Word = uint32_t;
  static constexpr int count = 2;
  static double read(Word word, int part) { return widen<Number>(static_cast<uint16_t>(word >> (16 * part))); }
  static constexpr int products_at_once = 8;
};
template <>
struct Packing<TFloat32> {
  using Word = uint32_t;
  static constexpr int count = 1;
  static double read(Word word, int) { return read_tf32(word); }
  static constexpr int products_at_once = 4;
};
template <>
struct Packing<float> {
  using Word = uint32_t;
  static constexpr int count = 1;
  static double read(Word word, int) { return std::bit_cast<float>(word); }
};
template <>
struct Packing<double> {
  using Word = uint64_t;
  static constexpr int count = 1;
  static double read(Word word, int) { return std::bit_cast<double>(word); }
  static constexpr int products_at_once = 1;
};

template <class Number>
using Word = typename Packing<Number>::Word;

// Adds Count products to each of `columns` accumulators at once: a row's part of A times that many rows of B.
template <int Count, int Width>
void add_products(int columns, const double* a, const double (*b)[Width], float* accumulators) {
  constexpr int at_once = 8;  // columns, for which every loop below is a few vectors
  const auto kept = [](double value, uint64_t mask) {
    return std::bit_cast<double>(std::bit_cast<uint64_t>(value) & mask);
  };
  for (int first = 0; first < columns; first += at_once) {
    float* sums = accumulators + first;
    double terms[Count + 1][at_once], unit[at_once], plain[at_once], sum[at_once] = {};
    for (int j = 0; j < at_once; ++j) {
      terms[0][j] = plain[j] = sums[j];
      unit[j] = std::fabs(terms[0][j]);
    }
    for (int k = 0; k < Count; ++k) {
      for (int j = 0; j < at_once; ++j) {
        const double term = a[k] * b[k][first + j], size = std::fabs(term);
        terms[k + 1][j] = term;
        plain[j] += term;
        unit[j] = size > unit[j] ? size : unit[j];
      }
    }
    for (int j = 0; j < at_once; ++j) {
      // Not below what aligns to the last bit of a subnormal float.
      const double greatest = unit[j] > 0x1p-125 ? unit[j] : 0x1p-125;
      unit[j] = kept(greatest, 0x7ff0000000000000) * 0x1p-24;
    }
    for (const auto& addend : terms) {
      for (int j = 0; j < at_once; ++j) {
        const double size = std::fabs(addend[j]), rounder = unit[j] * 0x1p52, rounded = (size + rounder) - rounder;
        sum[j] += std::copysign(rounded - (rounded > size ? unit[j] : 0.0), addend[j]);
      }
    }
    for (int j = 0; j < at_once; ++j) {
      const float value = static_cast<float>(kept(sum[j], ~uint64_t{0x1fffffff}));
      sums[j] = std::fabs(plain[j]) < 0x1p200 ? value : static_cast<float>(plain[j]);
    }
  }
}

template <int, int Width>
void add_products(int columns, const double* a, const double (*b)[Width], double* accumulators) {
  for (int j = 0; j < columns; ++j) accumulators[j] = std::fma(*a, (*b)[j], accumulators[j]);
}

// Rows x K numbers out of the registers of A.
template <int Rows, int K, class Input>
void read_left(const Word<Input>* const* registers, double (&a)[Rows][K]) {
  constexpr int count = Packing<Input>::count, groups = Rows / 8;
  for (int i = 0; i < Rows * K / (warp_lanes * count); ++i) {
    for (int lane = 0; lane < warp_lanes; ++lane) {
      double* place = &a[lane / 4 + 8 * (i % groups)][count * (lane % 4) + 4 * count * (i / groups)];
      for (int part = 0; part < count; ++part) place[part] = Packing<Input>::read(registers[i][lane], part);
    }
  }
}

// K x 8 numbers out of the registers of B.
template <int K, class Input>
void read_right(const Word<Input>* const* registers, double (&b)[K][8]) {
  constexpr int count = Packing<Input>::count;
  for (int i = 0; i < K * 8 / (warp_lanes * count); ++i) {
    for (int lane = 0; lane < warp_lanes; ++lane) {
      const int row = count * (lane % 4) + 4 * count * i;
      for (int part = 0; part < count; ++part) b[row + part][lane / 4] = Packing<Input>::read(registers[i][lane], part);
    }
  }
}

// Rows x columns accumulators, 8 columns after another, out of the registers of C, or into those of D. Halves are
// accumulated as floats.
template <int Rows, class Accumulator, class Matrix>
void read_accumulators(int columns, const Word<Accumulator>* const* registers, Matrix& c) {
  constexpr int count = Packing<Accumulator>::count, of_row = 2 / count, of_tile = Rows / 8 * of_row;
  for (int i = 0; i < columns / 8 * of_tile; ++i) {
    const int tile = i / of_tile, row = 8 * (i % of_tile / of_row), column = 8 * tile + i % of_row;
    for (int lane = 0; lane < warp_lanes; ++lane) {
      auto* place = &c[row + lane / 4][column + 2 * (lane % 4)];
      using Number = std::remove_reference_t<decltype(*place)>;
      for (int part = 0; part < count; ++part) {
        place[part] = static_cast<Number>(Packing<Accumulator>::read(registers[i][lane], part));
      }
    }
  }
}

template <int Rows, class Accumulator, class Matrix>
void write_accumulators(int columns, const Matrix& c, Word<Accumulator>* const* registers) {
  constexpr int count = Packing<Accumulator>::count, of_row = 2 / count, of_tile = Rows / 8 * of_row;
  for (int i = 0; i < columns / 8 * of_tile; ++i) {
    const int tile = i / of_tile, row = 8 * (i % of_tile / of_row), column = 8 * tile + i % of_row;
    for (int lane = 0; lane < warp_lanes; ++lane) {
      const auto* place = &c[row + lane / 4][column + 2 * (lane % 4)];
      if constexpr (count == 2) {
        registers[i][lane] = to_half<Accumulator>(place[0]) | static_cast<uint32_t>(to_half<Accumulator>(place[1]))
                                                                  << 16;
      } else {
        registers[i][lane] = std::bit_cast<Word<Accumulator>>(*place);
      }
    }
  }
}

// mma.sync.mMn8kK.row.col: D = A B + C. D's registers may be C's.
template <int M, int K, class Input, class Accumulator>
struct WarpProduct {
  static constexpr int a_registers = M * K / (warp_lanes * Packing<Input>::count);
  static constexpr int b_registers = K * 8 / (warp_lanes * Packing<Input>::count);
  static constexpr int c_registers = M * 8 / (warp_lanes * Packing<Accumulator>::count);

  static void run(Word<Accumulator>* const* d, const Word<Input>* const* a, const Word<Input>* const* b,
                  const Word<Accumulator>* const* c) {
    constexpr int at_once = std::min(K, Packing<Input>::products_at_once);
    double left[M][K], right[K][8];
    std::conditional_t<std::is_same_v<Accumulator, double>, double, float> sums[M][8];
    read_left<M, K, Input>(a, left);
    read_right<K, Input>(b, right);
    read_accumulators<M, Accumulator>(8, c, sums);
    for (int i = 0; i < M; ++i) {
      for (int k = 0; k < K; k += at_once) add_products<at_once, 8>(8, left[i] + k, right + k, sums[i]);
    }
    write_accumulators<M, Accumulator>(8, sums, d);
  }

  // Which lanes of D are defined, a bit each: those whose row of A, columns of B and elements of C are.
  static void defined(uint32_t* d, const uint32_t* a, const uint32_t* b, const uint32_t* c) {
    const auto of_four = [](uint32_t lanes) {  // all lanes 4 g to 4 g + 3, as bit 4 g
      return lanes & lanes >> 1 & lanes >> 2 & lanes >> 3 & 0x11111111u;
    };
    uint32_t columns = ~0u;
    for (int i = 0; i < b_registers; ++i) columns &= b[i];
    columns = of_four(columns);
    for (int i = 0; i < c_registers; ++i) {
      constexpr int of_row = 2 / Packing<Accumulator>::count;
      uint32_t rows = ~0u, both = 0;
      for (int j = i / of_row; j < a_registers; j += M / 8) rows &= a[j];
      for (int q = 0; q < 4; ++q) {
        const uint32_t first = columns >> (8 * q) & 1, second = columns >> (8 * q + 4) & 1;
        const uint32_t has = of_row == 2 ? (i % 2 ? second : first) : first & second;
        both |= has * (0x11111111u << q);
      }
      d[i] = c[i] & both & of_four(rows) * 0xf;
    }
  }
};

}  // namespace virtual_gpu
