// The rows of one task between a tensor and rows of whole vectors: features apart from responses, where there are any,
// and zeros behind them.

#pragma once

#include "cpu/lanes/halves.h"
#include "cpu/wide/one_task.h"

namespace memformer::cpu::MEMFORMER_ISA {

// Calls body(read) with a function that reads the number at a pointer's offset, by how the array stores them.
template <class T, class Body>
MEMFORMER_INLINE void with_reader(const Array& array, int64_t start, Body body) {
  const int64_t step = array.stride[2];
  switch (array.storage) {
    case Storage::float64: {
      const double* const from = static_cast<const double*>(array.data) + start;
      return body([=](int64_t k) { return static_cast<T>(from[k * step]); });
    }
    case Storage::bfloat16: {
      const uint16_t* const from = static_cast<const uint16_t*>(array.data) + start;
      return body([=](int64_t k) { return static_cast<T>(core::from_bfloat16(from[k * step])); });
    }
    case Storage::float16: {
      const uint16_t* const from = static_cast<const uint16_t*>(array.data) + start;
      return body([=](int64_t k) { return static_cast<T>(core::from_float16(from[k * step])); });
    }
    default: {
      const float* const from = static_cast<const float*>(array.data) + start;
      return body([=](int64_t k) { return static_cast<T>(from[k * step]); });
    }
  }
}

// Tokens (B, N, D) of one task as they are read and written: their first numbers are features, and the last is the
// response, if there is one.
template <class T>
class TaskRows {
  using S = Lanes<T>;

 public:
  TaskRows(const Array& array, int tokens, int width, int64_t task, int responses = 1)
      : array_(array),
        tokens_(tokens),
        d_(width - responses),
        responses_(responses),
        start_(task * array.stride[0]),
        plain_(array.storage == storage_of<T> && array.stride[2] == 1) {}

  // x (count, step): the features of tokens [first, first + count) and zeros up to `step`; y (count,): their responses.
  // Without responses y is not written.
  void load(int first, int count, int step, T* x, T* y) const {
    int i = 0;
    if (plain_) {
      // Whole vectors may reach into the rows behind, not past the last one.
      const int d = d_, vectors = d / S::width;
      const int64_t row = array_.stride[1], over = step - d;
      const int64_t needed = over <= 0 ? 0 : row == 0 ? tokens_ : (over + row - 1) / row;
      const int whole = static_cast<int>(std::clamp<int64_t>(tokens_ - needed - first, 0, count));
      const T* from = static_cast<const T*>(array_.data) + start_ + first * row;
      T* to = x;
      for (; i < whole; ++i, from += row, to += step) {
        for (int v = 0; v < vectors; ++v) S::load(from + v * S::width).store(to + v * S::width);
        for (int c = vectors * S::width; c < step; c += S::width) {
          first_lanes<T>(c < d ? d - c : 0, S::load(from + c)).store(to + c);
        }
        if (responses_) y[i] = from[d];
      }
    }
    for (; i < count; ++i) load_row(first + i, step, x + i * step, responses_ ? y + i : y);
  }

  // The features of a token as they lie in memory, `row_step` apart from the next token's and each followed by its
  // response, if it has one; null unless rows [0, end) may be read as `step` numbers each, of which those past the
  // features are anything.
  const T* in_place(int token, int end, int step) const {
    if (!plain_ || (tokens_ - end) * array_.stride[1] < step - d_ - responses_) return nullptr;
    return static_cast<const T*>(array_.data) + start_ + token * array_.stride[1];
  }
  int64_t row_step() const { return array_.stride[1]; }

  // The way back: features x (count, step) and responses y (count,).
  void store(int first, int count, const T* x, int step, const T* y) const {
    for (int i = 0; i < count; ++i) {
      const int64_t at = start_ + (first + i) * array_.stride[1];
      if (plain_) {
        T* const to = static_cast<T*>(array_.data) + at;
        std::memcpy(to, x + i * step, d_ * sizeof(T));
        if (responses_) to[d_] = y[i];
        continue;
      }
      store_row(at, x + i * step);
      if (responses_) write_number<T>(array_, at + d_ * array_.stride[2], y[i]);
    }
  }

 private:
  MEMFORMER_INLINE void load_row(int token, int step, T* x, T* y) const {
    const int64_t at = start_ + token * array_.stride[1];
    if (!load_halves(at, x)) {
      with_reader<T>(array_, at, [&](auto read) {
        for (int c = 0; c < d_; ++c) x[c] = read(c);
      });
    }
    if (responses_) *y = read_number<T>(array_, at + d_ * array_.stride[2]);
    clear(x + d_, step - d_);
  }

  MEMFORMER_INLINE void store_row(int64_t at, const T* x) const {
    if constexpr (sizeof(T) == 4) {
      if (array_.stride[2] == 1 && is_half(array_.storage))
        return narrow(array_.storage, x, d_, static_cast<uint16_t*>(array_.data) + at);
    }
    for (int c = 0; c < d_; ++c) write_number<T>(array_, at + c * array_.stride[2], x[c]);
  }

  // Whether the features at a place are in half precision and beside each other: then they are read, by vectors.
  MEMFORMER_INLINE bool load_halves(int64_t at, T* x) const {
    if constexpr (sizeof(T) == 4) {
      if (array_.stride[2] == 1 && is_half(array_.storage)) {
        widen(array_.storage, static_cast<const uint16_t*>(array_.data) + at, d_, x);
        return true;
      }
    }
    return false;
  }

  Array array_;
  int tokens_, d_, responses_;
  int64_t start_;
  bool plain_;
};

// Predictions, targets and their gradients of one task, where a network's result meets the outside.
template <class T>
class TaskReadout {
 public:
  TaskReadout(const Network<T>& network, int64_t task) : network_(network), task_(task) {
    const double entries = static_cast<double>(network.tasks) * network.queries;
    scale_ = static_cast<T>(is_loss() && entries > 0 ? 2.0 / entries : 0.0);
  }

  bool is_loss() const { return network_.pass == Pass::loss || network_.pass == Pass::loss_backward; }

  // After the response slot of a query has moved: its prediction is written, or the gradient e of the slot returned,
  // which is minus that of the prediction. For a loss the square of the error is added to `squared`.
  T read_out(int layer, int query, T response, T& squared) const {
    const Array& result = network_.result;
    const int64_t at = layer * result.stride[0] + task_ * result.stride[1] + query * result.stride[2];
    if (network_.pass == Pass::forward) {
      write_number<T>(result, at, -response);
      return T(0);
    }
    if (!is_loss()) return -read_number<T>(result, at);
    const Array& target = network_.target;
    const T error = -response - read_number<T>(target, task_ * target.stride[0] + query * target.stride[1]);
    squared += error * error;
    const T e = -error * scale_;
    const Array& grad = network_.grad_target;
    if (grad.data) write_number<T>(grad, task_ * grad.stride[0] + query * grad.stride[1], e);
    return e;
  }

 private:
  const Network<T>& network_;
  int64_t task_;
  T scale_;
};

}  // namespace memformer::cpu::MEMFORMER_ISA
