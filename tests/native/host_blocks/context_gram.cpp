// Context Gram matrices, on the host.

#include "cuda/team/context_gram.cuh"
#include "cuda/thread/sizes.cuh"
#include "cuda/thread/thread_context.cuh"
#include "team_machine.h"

using namespace memformer::cuda;

namespace {

template <class T>
memformer::Gram<T> gram_of(const int64_t* numbers) {
  Numbers given(numbers);
  memformer::Gram<T> gram{};
  gram.backward = given.number();
  gram.tasks = given.number();
  for (int* field : {&gram.tokens, &gram.width, &gram.context}) *field = given.size();
  gram.lengths = static_cast<const int64_t*>(given.pointer());
  gram.z = given.array();
  gram.matrix = given.array();
  gram.grad_z = given.array();
  return gram;
}

template <class T>
void run(const int64_t* numbers, unsigned order) {
  const auto gram = gram_of<T>(numbers);
  Scratch scratch(gram_bytes(gram));
  run_context_gram(gram, scratch.start(), HostMachine{order});
  scratch.check();
}

}  // namespace

extern "C" void context_gram(const int64_t* numbers, int wide, unsigned order) {
  wide ? run<double>(numbers, order) : run<float>(numbers, order);
}

extern "C" void thread_context(const int64_t* numbers, int, unsigned order) {
  const auto gram = gram_of<float>(numbers);
  with_context_width(gram.width, [&](auto width) { return run_thread_context(gram, HostMachine{order}, width); });
}

extern "C" int thread_context_fits(const int64_t* numbers) { return fits_thread(gram_of<float>(numbers)); }
