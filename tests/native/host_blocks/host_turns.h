// The order in which the threads of a host block take turns: first to last, last to first, or drawn again each time.

#pragma once

#include <cstdint>
#include <utility>
#include <vector>

namespace memformer::cuda {

class Turns {
 public:
  Turns(std::size_t count, unsigned seed) : order_(count), seed_(seed) {}

  const std::vector<int>& next() {
    const int count = static_cast<int>(order_.size());
    for (int k = 0; k < count; ++k) order_[k] = seed_ == 1 ? count - 1 - k : k;
    for (int k = count - 1; seed_ > 1 && k > 0; --k) {
      state_ = state_ * 6364136223846793005ull + seed_;
      std::swap(order_[k], order_[(state_ >> 33) % (k + 1)]);
    }
    return order_;
  }

 private:
  std::vector<int> order_;
  unsigned seed_;
  uint64_t state_ = 1;
};

}  // namespace memformer::cuda
