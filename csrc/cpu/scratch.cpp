#include "cpu/scratch.h"

#include <cstdio>
#include <cstdlib>
#include <new>
#include <utility>

#include "cpu/scratch_aside.h"

namespace memformer::cpu {
namespace {

// A MemoryError in Python, of whatever thread it was.
class OutOfMemory : public std::bad_alloc {
 public:
  explicit OutOfMemory(std::size_t bytes) {
    std::snprintf(message_, sizeof message_, "out of memory: a native kernel could not get %zu bytes to work in",
                  bytes);
  }
  const char* what() const noexcept override { return message_; }

 private:
  char message_[96];
};

void* allocate(std::size_t bytes) {
  void* const data = std::aligned_alloc(64, bytes);
  if (!data) throw OutOfMemory(bytes);
  return data;
}

std::size_t whole_pages(std::size_t bytes) { return (bytes / 4096 + 1) * 4096; }

class Arena {
 public:
  ~Arena() { std::free(data_); }

  void* at_least(std::size_t bytes) {
    if (bytes > size_) {
      std::free(data_);
      size_ = 0;
      data_ = nullptr;
      data_ = allocate(whole_pages(bytes));
      size_ = whole_pages(bytes);
    }
    return data_;
  }

  void swap(Arena& other) {
    std::swap(data_, other.data_);
    std::swap(size_, other.size_);
  }

 private:
  void* data_ = nullptr;
  std::size_t size_ = 0;
};

thread_local Arena of_thread, of_call;

}  // namespace

struct ScratchAside::Kept {
  Arena of_thread, of_call;
};

ScratchAside::ScratchAside() : kept_(new Kept) { exchange(); }

ScratchAside::~ScratchAside() {
  exchange();
  delete kept_;
}

void ScratchAside::exchange() {
  of_thread.swap(kept_->of_thread);
  of_call.swap(kept_->of_call);
}

Memory::Memory(std::size_t bytes) : data_(allocate(whole_pages(bytes))) {}

Memory::~Memory() { std::free(data_); }

void* thread_scratch(std::size_t bytes) { return of_thread.at_least(bytes); }

void* call_scratch(std::size_t bytes) { return of_call.at_least(bytes); }

}  // namespace memformer::cpu
