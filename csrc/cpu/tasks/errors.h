// The squared errors of a group's tasks under a network's last column (s, or all of D numbers for dense matrices), and
// what they send back to it. One task per lane. Operations: 2 D multiply-adds a query, or 2 d^2 where the query is
// integrated out.

#pragma once

#include "core/squared_error.h"
#include "cpu/tasks/train.h"

namespace memformer::cpu::MEMFORMER_ISA {

// The response slot of a query is x.s + slot for block matrices, and z.s for dense ones; its error is minus that, minus
// the target. For x ~ N(0, C C^T) the expected square is |C^T (s + w)|^2 (response-only and block: the last column of T
// is (s, 1)). `grad` gets the gradient of the sum of squares with respect to `state`, and that sum is returned.
template <class T>
class Errors {
  using S = Lanes<T>;

 public:
  Errors(const TrainedNetwork<T>& network, const Draw<T>& draw)
      : at_(draw.source),
        rows_(network.response || network.block ? network.width - 1 : network.width),
        factor_(draw.factor(draw.source.covariate_factor)) {}

  int rows() const { return rows_; }

  // Of the queries of one context.
  S operator()(int context, const S* cells, const S* state, S* grad) const {
    for (int k = 0; k < rows_; ++k) grad[k] = S(T(0));
    return at_.queries ? sampled(context, cells, state, grad)
                       : core::integrated_error(rows_, factor_, cells + at_.solution(), state, grad);
  }

 private:
  S sampled(int context, const S* cells, const S* state, S* grad) const {
    S squares = S(T(0));
    for (int query = at_.first_query(context); query < at_.last_query(context); ++query) {
      const S* const row = cells + at_.query(query);
      const S rest = rows_ < at_.width ? row[rows_] + row[at_.width] : row[at_.width];
      squares += core::query_error(rows_, row, rest, state, grad);
    }
    return squares;
  }

  TaskCells<T> at_;
  int rows_;
  const T* factor_;
};

}  // namespace memformer::cpu::MEMFORMER_ISA
