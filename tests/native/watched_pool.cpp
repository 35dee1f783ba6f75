// In the place of torch's pool, loaded before it: threads that ThreadSanitizer knows. torch's are OpenMP's, whose
// hand-overs it does not see: it would take every one for a race. As many as torch.set_num_threads says, with shares as
// torch's.

#include <dlfcn.h>

#include <atomic>
#include <cstdint>
#include <cstdlib>
#include <thread>
#include <vector>

namespace {

// Of a library that Python loads for itself alone.
uint32_t torch_threads() {
  using Ask = int32_t (*)(uint32_t*);
  void* const torch = dlopen("libtorch_cpu.so", RTLD_LAZY | RTLD_NOLOAD);
  const auto ask = torch ? reinterpret_cast<Ask>(dlsym(torch, "torch_get_num_threads")) : nullptr;
  uint32_t threads = 0;
  if (!ask || ask(&threads) != 0) std::abort();
  dlclose(torch);
  return threads;
}

std::atomic<int64_t> started{0};

}  // namespace

extern "C" {

int32_t torch_parallel_for(int64_t begin, int64_t end, int64_t, void (*body)(int64_t, int64_t, void*), void* context) {
  if (end <= begin) return 0;
  const int64_t threads = torch_threads();
  const int64_t share = (end - begin + threads - 1) / threads;
  std::vector<std::thread> others;
  for (int64_t from = begin + share; from < end; from += share) {
    ++started;
    others.emplace_back(body, from, from + share < end ? from + share : end, context);
  }
  body(begin, begin + share < end ? begin + share : end, context);
  for (std::thread& other : others) other.join();
  return 0;
}

int64_t threads_started() { return started; }

// A race, for a test of whether it is seen.
void add_without_care(int64_t begin, int64_t end, void* sum) {
  for (int64_t k = begin; k < end; ++k) ++*static_cast<int64_t*>(sum);
}

}  // extern "C"
