// Large results in large pages.

#pragma once

#include "binding/tensors.h"

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace memformer::binding {

// Asks for 2 MiB pages, where the system gives them on request, for a tensor that is about to be written: fresh memory
// is got page by page as it is first touched, and with 4 KiB pages that takes longer than a pass over it.
inline void expect_large_pages(const Tensor& tensor) {
#if defined(__linux__) && defined(MADV_HUGEPAGE)
  constexpr uintptr_t page = 4096, worth_it = 8 << 20;
  const auto begin = reinterpret_cast<uintptr_t>(tensor.data_ptr());
  const auto bytes = static_cast<uintptr_t>(tensor.numel() * bytes_of_number(storage_of(tensor)));
  if (bytes < worth_it) return;
  const uintptr_t first = (begin + page - 1) / page * page, last = (begin + bytes) / page * page;
  // Advice: where it is not taken, all is as before.
  static_cast<void>(madvise(reinterpret_cast<void*>(first), last - first, MADV_HUGEPAGE));
#else
  static_cast<void>(tensor);
#endif
}

inline void expect_large_pages(const MaybeTensor& tensor) {
  if (tensor) expect_large_pages(*tensor);
}

// The array of a result or a gradient, fresh from the allocator.
template <class Made>
Array made_array(const Made& tensor) {
  expect_large_pages(tensor);
  return array_of(tensor);
}

}  // namespace memformer::binding
