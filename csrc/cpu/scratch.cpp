#include "cpu/scratch.h"

#include <cstdlib>
#include <new>

namespace memformer::cpu {
namespace {

class Arena {
 public:
  ~Arena() { std::free(data_); }

  void* at_least(std::size_t bytes) {
    if (bytes > size_) {
      std::free(data_);
      size_ = 0;
      const std::size_t rounded = (bytes + 4095) / 4096 * 4096;
      data_ = std::aligned_alloc(64, rounded);
      if (!data_) throw std::bad_alloc();
      size_ = rounded;
    }
    return data_;
  }

 private:
  void* data_ = nullptr;
  std::size_t size_ = 0;
};

}  // namespace

void* thread_scratch(std::size_t bytes) {
  thread_local Arena arena;
  return arena.at_least(bytes);
}

void* call_scratch(std::size_t bytes) {
  thread_local Arena arena;
  return arena.at_least(bytes);
}

}  // namespace memformer::cpu
