// Memory of a thread that outlives a call, so that no task and hardly a call allocates.

#pragma once

#include <cstddef>

namespace memformer::cpu {

// At least `bytes` bytes of the calling thread, aligned to 64; what an earlier call of the same thread got is gone.
// Throws std::bad_alloc.
void* thread_scratch(std::size_t bytes);

// Partial sums of a call, of the thread that makes it: memory apart from `thread_scratch`.
void* call_scratch(std::size_t bytes);

// Memory that is the owner's alone, aligned to 64, for calls whose work is far more than getting it. Throws
// std::bad_alloc.
class Memory {
 public:
  explicit Memory(std::size_t bytes);
  ~Memory();
  Memory(const Memory&) = delete;
  Memory& operator=(const Memory&) = delete;
  void* data() const { return data_; }

 private:
  void* data_;
};

}  // namespace memformer::cpu
