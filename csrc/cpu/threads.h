// How kernels are given threads: by the library that calls them.

#pragma once

#include <cstdint>

namespace memformer::cpu {

// Runs body(begin, end, context) over parts of [0, count), on as many threads as the caller's library is set to.
using Body = void (*)(int64_t begin, int64_t end, void* context);
using ParallelFor = void (*)(int64_t count, Body body, void* context);

}  // namespace memformer::cpu
