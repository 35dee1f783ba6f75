// The coefficients of memory registers, and where those of one register lie.
//
//   R_{l,r} = att_{l,r} + beta_{l,r} * R_{l-1,r};   Z_{l+1} = Z_l + sum_r sum_{j<=l} gamma_{l,j,r} * R_{j,r}
//
// (Dutta & Sra, arXiv 2410.07263.) A register's coefficients are `rows` rows of `width` numbers: tokens x features, one
// row that all tokens share, or one number.

#pragma once

#include "core/scalar.h"

namespace memformer::core {

// gamma (L, L, R, gamma_rows, width), (L, R, gamma_rows, width) if `diagonal`, or null for ones on the diagonal; beta
// (L, R, beta_rows, width) or null. R = `kept` registers a layer: H, or 1 for the sum over heads. Index: of numbers.
template <class T, class Index = int>
struct Coefficients {
  int layers;  // L
  int kept;    // R
  bool diagonal;
  int gamma_rows;
  int beta_rows;
  const T* gamma;
  const T* beta;

  // The newest register alone is weighted.
  MEMFORMER_INLINE bool newest_only() const { return diagonal || !gamma; }
  // Where the coefficients of register r of layer j in layer l's update start (j = l if `diagonal`).
  MEMFORMER_INLINE Index gamma_index(int l, int j, int r, int width = 1) const {
    return (static_cast<Index>(diagonal ? l : l * layers + j) * kept + r) * gamma_rows * width;
  }
  MEMFORMER_INLINE Index beta_index(int l, int r, int width = 1) const {
    return (static_cast<Index>(l) * kept + r) * beta_rows * width;
  }
};

// What to add to an index of a coefficient for the next row: rows that share coefficients have one.
MEMFORMER_INLINE int row_step(int rows, int width) { return rows == 1 ? 0 : width; }

}  // namespace memformer::core
