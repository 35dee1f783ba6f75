// How a network's result meets the outside, for a group of tasks: predictions written, their gradient read, errors
// made.

#pragma once

#include "core/gram.h"
#include "cpu/lanes/lanes.h"

namespace memformer::cpu::MEMFORMER_ISA {

template <class T>
class Readout {
  using S = Lanes<T>;

 public:
  explicit Readout(const Network<T>& network)
      : result_(network.result),
        target_(network.target),
        grad_target_(network.grad_target),
        width_(network.width),
        out_count_(network.queries < 0 ? network.tokens : network.queries),
        loss_(network.pass == Pass::loss || network.pass == Pass::loss_backward) {
    const double entries = static_cast<double>(network.tasks) * network.queries;
    scale_ = static_cast<T>(loss_ && entries > 0 ? 2.0 / entries : 0.0);
  }

  void begin(Tasks tasks) { tasks_ = tasks; }

  bool is_loss() const { return loss_; }

  // Rows of the block that starts at `first`.
  int block(int first) const {
    const int left = out_count_ - first;
    return left < core::gram_block ? left : core::gram_block;
  }

  void predict(int layer, int query, S value) const { store_entry(value, of_layer(layer), tasks_, query); }

  // Gradient e of a query's response slot, which is minus its prediction.
  S grad(int layer, int query) const { return -load_entry<T>(of_layer(layer), tasks_, query); }

  // Gradients of tokens [first, first + count), for a network whose result is its tokens.
  void load_grads(int first, int count, S* rows) const { load_rows(result_, tasks_, first, count, width_, rows); }

  // Prediction minus target, from the response slot.
  S error(int query, S response) const { return -response - load_entry<T>(target_, tasks_, query); }

  // Gradient e of the response slot, from the error of a mean of squares.
  S grad_of_error(S error) const { return -error * scale_; }

  // The same; the target's gradient is e too, and is written where it is asked for.
  S grad_of_error(int query, S error) const {
    const S e = grad_of_error(error);
    if (grad_target_.data) store_entry(e, grad_target_, tasks_, query);
    return e;
  }

 private:
  // Predictions (layers, B, queries) after one layer.
  Array of_layer(int layer) const {
    Array one = result_;
    const int64_t bytes = layer * result_.stride[0] * bytes_of_number(result_.storage);
    one.data = static_cast<char*>(result_.data) + bytes;
    one.stride[0] = result_.stride[1];
    one.stride[1] = result_.stride[2];
    return one;
  }

  Array result_, target_, grad_target_;
  Tasks tasks_{};
  int width_, out_count_;
  bool loss_;
  T scale_;
};

}  // namespace memformer::cpu::MEMFORMER_ISA
