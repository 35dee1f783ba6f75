// The tokens of a group of tasks in token space, where all rows stay in memory for all layers: loaded, read out, and
// the gradients that come back.
//
// Rows are the context and, behind it, the queries; all N tokens for ragged contexts and where the result is the
// tokens.

#pragma once

#include "cpu/lanes/lanes.h"
#include "cpu/tasks/readout.h"

namespace memformer::cpu::MEMFORMER_ISA {

template <class T>
class TokenGroup {
  using S = Lanes<T>;

 public:
  explicit TokenGroup(const Network<T>& network)
      : network_(network),
        readout_(network),
        stack_(network.queries < 0),
        ragged_(network.lengths != nullptr),
        rows_(stack_ || ragged_ ? network.tokens : network.context + network.queries),
        context_(ragged_ && !stack_ ? network.tokens - network.queries : network.context),
        first_layer_(network.layers - network.result_layers) {}

  int rows() const { return rows_; }
  // Rows that may be labelled: all before this one, or for ragged contexts as many of them as `count` says.
  int context() const { return context_; }
  bool is_stack() const { return stack_; }
  // The first row with a result.
  int out_row() const { return stack_ ? 0 : rows_ - network_.queries; }
  int out_count() const { return rows_ - out_row(); }
  // Whether a row's place in `context` depends on the task. Rows that are only padding are loaded as zeros instead.
  bool masks() const { return stack_ && ragged_; }
  // Labelled tokens of every task.
  S count() const { return count_; }
  // Cells for the gradients of the response slots of rows with a result.
  int error_cells() const { return network_.result_layers * out_count(); }

  void load(Tasks tasks, S* z) {
    tasks_ = tasks;
    readout_.begin(tasks);
    count_ = load_lengths<T>(network_.lengths, context_, tasks);
    const int width = network_.width;
    if (rows_ == network_.tokens) {
      load_rows(network_.z, tasks, 0, rows_, width, z);
    } else {
      load_rows(network_.z, tasks, 0, context_, width, z);
      load_rows(network_.z, tasks, network_.tokens - network_.queries, network_.queries, width, z + context_ * width);
    }
    if (!ragged_ || stack_) return;
    for (int i = 0; i < context_; ++i) {
      for (int c = 0; c < width; ++c) z[i * width + c] = where_less(static_cast<T>(i), count_, z[i * width + c]);
    }
  }

  // Predictions after layer l from the response slots of rows with a result, `step` apart: written, or made into
  // errors.
  void read_out(int l, const S* responses, int step, S* errors, S* squared) {
    if (stack_ || l < first_layer_) return;
    for (int k = 0; k < network_.queries; ++k) {
      if (network_.pass == Pass::forward) {
        readout_.predict(l - first_layer_, k, -responses[k * step]);
      } else if (readout_.is_loss()) {
        const S error = readout_.error(k, responses[k * step]);
        *squared += error * error;
        errors[k] = readout_.grad_of_error(k, error);
      } else {
        errors[(l - first_layer_) * network_.queries + k] = readout_.grad(l - first_layer_, k);
      }
    }
  }

  // Adds the errors of layer l to the gradients of the response slots.
  void add_outer(int l, const S* errors, S* grads, int step) const {
    if (l < first_layer_) return;
    for (int k = 0; k < out_count(); ++k) grads[k * step] += errors[(l - first_layer_) * out_count() + k];
  }

  // Writes the gradient of z; what is neither context nor query gets zero.
  void store_grad(S* grad) const {
    const int width = network_.width;
    if (ragged_ && !stack_) {
      for (int i = 0; i < context_; ++i) {
        for (int c = 0; c < width; ++c)
          grad[i * width + c] = where_less(static_cast<T>(i), count_, grad[i * width + c]);
      }
    }
    if (rows_ == network_.tokens) {
      store_rows(grad, network_.grad_z, tasks_, 0, rows_, width);
      return;
    }
    const int first_query = network_.tokens - network_.queries;
    store_rows(grad, network_.grad_z, tasks_, 0, context_, width);
    store_zeros<T>(network_.grad_z, tasks_, context_, first_query - context_, width);
    store_rows(grad + context_ * width, network_.grad_z, tasks_, first_query, network_.queries, width);
  }

 private:
  const Network<T>& network_;
  Readout<T> readout_;
  bool stack_, ragged_;
  int rows_, context_, first_layer_;
  Tasks tasks_{};
  S count_{};
};

}  // namespace memformer::cpu::MEMFORMER_ISA
