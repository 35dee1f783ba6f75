// In the place of torch's pool, loaded before it: threads that ThreadSanitizer knows. torch's are OpenMP's, whose hand-overs
// it does not see: it would take every one for a race. As many as torch.set_num_threads says, with shares as torch's.

#include <cstdint>
#include <thread>
#include <vector>

extern "C" {

int32_t torch_get_num_threads(uint32_t* threads);

int32_t torch_parallel_for(int64_t begin, int64_t end, int64_t, void (*body)(int64_t, int64_t, void*), void* context) {
  if (end <= begin) return 0;
  uint32_t threads = 1;
  if (const int32_t error = torch_get_num_threads(&threads)) return error;
  const int64_t share = (end - begin + threads - 1) / threads;
  std::vector<std::thread> others;
  for (int64_t from = begin + share; from < end; from += share) {
    others.emplace_back(body, from, from + share < end ? from + share : end, context);
  }
  body(begin, begin + share < end ? begin + share : end, context);
  for (std::thread& other : others) other.join();
  return 0;
}

// A race, for a test of whether it is seen.
void add_without_care(int64_t begin, int64_t end, void* sum) {
  for (int64_t k = begin; k < end; ++k) ++*static_cast<int64_t*>(sum);
}

}  // extern "C"
