#include "cpu/clock.h"

#include <chrono>

namespace memformer::cpu {

double seconds_now() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

}  // namespace memformer::cpu
