// The kernels that share work among threads, on threads that ThreadSanitizer watches: a pool of std::thread in the place of
// torch's. Results on three threads are those on one, bit by bit; a thread that throws and a poll that gives up end the call.

#include <atomic>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <new>
#include <thread>
#include <vector>

#include "cpu/kernels.h"
#include "cpu/threads.h"

namespace {

using namespace memformer;
namespace kernels = cpu::MEMFORMER_ISA;

using NetworkKernel = void (*)(const Network<float>&, cpu::ParallelFor);
using QuadraticsKernel = void (*)(const Quadratics<float>&, cpu::ParallelFor);

int threads = 1;

void pool(int64_t count, cpu::Body body, void* context) {
  std::vector<std::thread> others;
  for (int k = 1; k < threads; ++k) {
    others.emplace_back([=] {
      if (count * k / threads < count * (k + 1) / threads) body(count * k / threads, count * (k + 1) / threads, context);
    });
  }
  if (count / threads > 0) body(0, count / threads, context);
  for (std::thread& other : others) other.join();
}

void parallel(int64_t count, cpu::Body body, void* context) { cpu::run_on_threads(&pool, count, body, context); }

void require(bool holds, const char* what) {
  if (holds) return;
  std::fprintf(stderr, "wrong: %s\n", what);
  std::exit(1);
}

std::vector<float> numbers(int64_t count) {
  std::vector<float> made(static_cast<std::size_t>(count));
  uint32_t state = 1;
  for (float& number : made) {
    state = state * 1664525u + 1013904223u;
    number = static_cast<float>(state >> 8) / (1 << 24) - 0.5f;
  }
  return made;
}

Array array(float* data, int64_t a, int64_t b, int64_t c = 1) { return {data, Storage::float32, {a, b, c}}; }

// The loss of a response-only network and all its gradients, by one kernel.
std::vector<double> network(NetworkKernel kernel, int tasks, int tokens, int width,
                            bool gram_space, bool block) {
  const int layers = 2, d = width - 1;
  std::vector<float> z = numbers(int64_t{tasks} * tokens * width), q = numbers(layers * d * d), p = numbers(layers * d * d);
  std::vector<float> gamma = numbers(layers * layers * (block ? width : 1)), target = numbers(tasks), grad(z.size());
  std::vector<double> totals(static_cast<std::size_t>(2 * layers * d * d + layers * layers * width + 1));
  Network<float> call{};
  call.pass = Pass::loss_backward;
  call.gram_space = gram_space;
  call.block = block;
  call.tasks = tasks;
  call.tokens = tokens;
  call.width = width;
  call.layers = layers;
  call.heads = call.kept = 1;
  call.context = tokens - 1;
  call.queries = 1;
  call.gamma_rows = call.beta_rows = 1;
  call.q = q.data();
  call.p = block ? p.data() : nullptr;
  call.gamma = gamma.data();
  call.z = array(z.data(), int64_t{tokens} * width, width);
  call.result_layers = 1;
  call.target = array(target.data(), 1, 1);
  call.grad_z = array(grad.data(), int64_t{tokens} * width, width);
  call.totals = totals.data();
  kernel(call, &parallel);
  totals.insert(totals.end(), grad.begin(), grad.end());
  return totals;
}

std::vector<double> context_gram(int tasks, int tokens, int width) {
  std::vector<float> z = numbers(int64_t{tasks} * tokens * width), matrix(static_cast<std::size_t>(tasks * width * width));
  Gram<float> call{};
  call.tasks = tasks;
  call.tokens = call.context = tokens;
  call.width = width;
  call.z = array(z.data(), int64_t{tokens} * width, width);
  call.matrix = array(matrix.data(), width * width, width);
  kernels::context_gram(call, &parallel);
  return {matrix.begin(), matrix.end()};
}

std::vector<double> quadratics(QuadraticsKernel kernel, int tasks, int d) {
  const int layers = 2;
  std::vector<float> h = numbers(int64_t{tasks} * d * d), b = numbers(int64_t{tasks} * d), a = numbers(layers * d * d);
  std::vector<float> grad = numbers(int64_t{tasks} * d), grad_h(h.size());
  std::vector<double> totals(a.size());
  Quadratics<float> call{};
  call.backward = true;
  call.diagonal = true;
  call.tasks = tasks;
  call.weights = d;
  call.layers = layers;
  call.a = a.data();
  call.h = array(h.data(), int64_t{d} * d, d);
  call.b = array(b.data(), d, 1);
  call.result = array(grad.data(), int64_t{tasks} * d, d, 1);
  call.result_layers = 1;
  call.grad_h = array(grad_h.data(), int64_t{d} * d, d);
  call.totals = totals.data();
  kernel(call, &parallel);
  totals.insert(totals.end(), grad_h.begin(), grad_h.end());
  return totals;
}

std::vector<double> register_update(int64_t tokens, int64_t features) {
  std::vector<float> grad = numbers(tokens * features), one = numbers(tokens * features), out(one.size());
  std::vector<float> gamma = numbers(2 * features), grad_gamma(gamma.size());
  const float* const values[] = {one.data(), one.data()};
  float* const grads[] = {out.data(), nullptr};
  RegisterUpdate<float> call{true, tokens, features, 1, 2, grad.data(), values, gamma.data(), nullptr, grads, grad_gamma.data()};
  kernels::register_update(call, &parallel);
  std::vector<double> made(out.begin(), out.end());
  made.insert(made.end(), grad_gamma.begin(), grad_gamma.end());
  return made;
}

template <class Call>
void same_on_all(const char* name, Call call) {
  threads = 1;
  const auto one = call();
  threads = 3;
  const auto three = call();
  require(one.size() == three.size() && std::memcmp(one.data(), three.data(), one.size() * sizeof(double)) == 0, name);
}

std::atomic<int> asked{0};
bool go_on() {
  ++asked;
  return false;
}
bool give_up() { return true; }

// Shares of `rounds` checkpoints of a tenth of a millisecond each.
struct Slow {
  int64_t rounds;
  std::atomic<int64_t> passed{0};
  static void run(int64_t begin, int64_t end, void* given) {
    auto& slow = *static_cast<Slow*>(given);
    // The first share is the shortest: its thread waits for the others.
    const int64_t rounds = begin == 0 ? 1 : slow.rounds;
    for (int64_t k = 0; k < (end - begin) * rounds; ++k) {
      std::this_thread::sleep_for(std::chrono::microseconds(100));
      ++slow.passed;
      cpu::checkpoint();
    }
  }
};

void ends_early() {
  threads = 3;
  for (const bool on_first : {false, true}) {
    std::atomic<int> shares{0};
    struct Failing {
      bool on_first;
      std::atomic<int>& shares;
      static void run(int64_t begin, int64_t, void* given) {
        auto& failing = *static_cast<Failing*>(given);
        ++failing.shares;
        if ((begin == 0) == failing.on_first) throw std::bad_alloc();
        for (;;) cpu::checkpoint();  // until another has failed
      }
    } failing{on_first, shares};
    bool caught = false;
    try {
      parallel(3, &Failing::run, &failing);
    } catch (const std::bad_alloc&) {
      caught = true;
    }
    require(caught && shares == 3, "what a thread throws is thrown by the call");
  }
  {
    const cpu::Polling polling(&go_on);
    Slow slow{8000};
    parallel(3, &Slow::run, &slow);
    require(slow.passed == 2 * 8000 + 1 && asked >= 4, "a poll that says nothing lets the call go on");
  }
  {
    const cpu::Polling polling(&give_up);
    Slow slow{1 << 30};
    bool caught = false;
    try {
      parallel(3, &Slow::run, &slow);
    } catch (const cpu::Interrupted&) {
      caught = true;
    }
    require(caught, "a poll ends the call");
  }
  const int before = asked;
  Slow slow{3000};
  parallel(3, &Slow::run, &slow);
  require(asked == before, "without a poll nothing is asked");
}

}  // namespace

int main() {
  ends_early();
  same_on_all("response_gram", [&] { return network(kernels::response_gram, 2100, 8, 4, true, false); });
  same_on_all("general_gram", [&] { return network(kernels::general_gram, 1100, 8, 4, true, true); });
  same_on_all("response_tokens", [&] { return network(kernels::response_tokens, 1100, 8, 4, false, false); });
  same_on_all("general_tokens", [&] { return network(kernels::general_tokens, 1100, 8, 4, false, true); });
  same_on_all("wide_gram", [&] { return network(kernels::wide_gram, 70, 40, 20, true, false); });
  same_on_all("wide_tokens", [&] { return network(kernels::wide_tokens, 70, 40, 20, false, false); });
  same_on_all("long contexts", [&] { return network(kernels::response_gram, 2, 9000, 4, true, false); });
  same_on_all("context_gram", [&] { return context_gram(3, 9000, 5); });
  same_on_all("quadratics", [&] { return quadratics(kernels::quadratics, 1100, 4); });
  same_on_all("wide_quadratics", [&] { return quadratics(kernels::wide_quadratics, 70, 20); });
  same_on_all("register_update", [&] { return register_update(20000, 9); });
  std::puts("done");
  return 0;
}
