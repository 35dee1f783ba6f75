// Global memory: the allocations that kernels may touch.
#pragma once

#include <cstdlib>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "shadow.h"

namespace virtual_gpu {

// Zeroed pages that the system supplies when they are first touched.
template <class T>
struct ZeroedArray {
  explicit ZeroedArray(size_t count) : items(static_cast<T*>(std::calloc(count + 1, sizeof(T))), std::free) {}
  std::unique_ptr<T, void (*)(void*)> items;
  T* get() const { return items.get(); }
};

struct Allocation {
  u64 first, end;  // addresses
  std::string name;
  bool writable;
  std::unique_ptr<ZeroedArray<u8>> defined;        // a byte for each, where bytes may be undefined; or null
  std::unique_ptr<ZeroedArray<GlobalWord>> words;  // made when races are first looked for

  u64 size() const { return end - first; }

  GlobalWord* word(u64 address) {
    if (!words) words = std::make_unique<ZeroedArray<GlobalWord>>((end + 3) / 4 - first / 4);
    return words->get() + (address / 4 - first / 4);
  }
};

class Memory {
 public:
  void add(u64 address, u64 size, const char* name, bool initialised, bool writable) {
    forget(address);
    Allocation made{address, address + size, name, writable, nullptr, nullptr};
    if (!initialised) made.defined = std::make_unique<ZeroedArray<u8>>(size);
    if (size != 0) allocations_.emplace(address, std::move(made));
  }

  void forget(u64 address) {
    allocations_.erase(address);
    last_ = nullptr;
  }

  // The allocation that holds the address, or null.
  Allocation* find(u64 address) {
    if (last_ != nullptr && address >= last_->first && address < last_->end) return last_;
    Allocation* before = at_or_before(address);
    if (before == nullptr || address >= before->end) return nullptr;
    return last_ = before;
  }

  // The last allocation that starts at the address or before it, or null.
  Allocation* at_or_before(u64 address) {
    const auto after = allocations_.upper_bound(address);
    return after == allocations_.begin() ? nullptr : &std::prev(after)->second;
  }

  void forget_accesses() {
    for (auto& [address, allocation] : allocations_) allocation.words.reset();
  }

 private:
  std::map<u64, Allocation> allocations_;
  Allocation* last_ = nullptr;
};

}  // namespace virtual_gpu
