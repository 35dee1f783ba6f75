// The numbers and the tasks that training draws, written out: to look at and to test. One task per lane, one thread.
//
// Bytes: what is written. Operations: those of core/gaussian.h for numbers, of the sampler for tasks.

#include "cpu/kernels.h"
#include "cpu/scratch.h"
#include "cpu/tasks/stream.h"
#include "cpu/threads.h"

namespace memformer::cpu::MEMFORMER_ISA {
namespace {

// As numbers: the low halves of the words' lanes, in the order of tasks.
template <class T>
void words_as_numbers(const WideWords<T>& words, double* to) {
  constexpr int vectors = WideWords<T>::vectors;
  for (int lane = 0; lane < Lanes<T>::width; ++lane) {
    to[lane] = static_cast<double>(static_cast<uint32_t>(words.v[lane % vectors][lane / vectors]));
  }
}

template <class T>
void run(const RandomNumbers<T>& call) {
  using S = Lanes<T>;
  TaskSource<T> source{};
  source.seeds = &call.seed;
  source.streams = &call.stream;
  for (int64_t first = 0; first < call.tasks; first += S::width) {
    checkpoint();
    const auto stream = stream_of(Draw<T>{source, 0, call.draw}, Tasks{first, S::width});
    for (int64_t block = 0; block < call.blocks; ++block) {
      checkpoint_at_row(block);
      double numbers[4][S::width];
      if (call.kind == Numbers::words) {
        WideWords<T> words[4];
        stream.words(static_cast<uint32_t>(block), words);
        for (int k = 0; k < 4; ++k) words_as_numbers(words[k], numbers[k]);
      } else {
        S values[4];
        if (call.kind == Numbers::uniforms) {
          stream.uniforms(static_cast<uint32_t>(block), values);
        } else {
          stream.normals(static_cast<uint32_t>(block), values);
        }
        for (int k = 0; k < 4; ++k) {
          for (int lane = 0; lane < S::width; ++lane) numbers[k][lane] = static_cast<double>(values[k].v[lane]);
        }
      }
      for (int lane = 0; lane < S::width && first + lane < call.tasks; ++lane) {
        for (int k = 0; k < 4; ++k) call.numbers[(first + lane) * 4 * call.blocks + 4 * block + k] = numbers[k][lane];
      }
    }
  }
}

template <class T>
void run(const TaskSource<T>& source, int64_t draw, T* to) {
  using S = Lanes<T>;
  const int count = TaskCells<T>(source).count();
  S* const cells = static_cast<S*>(thread_scratch(static_cast<std::size_t>(count + fill_scratch(source)) * sizeof(S)));
  for (int64_t first = 0; first < source.tasks; first += S::width) {
    checkpoint();
    const int64_t left = source.tasks - first;
    const int active = static_cast<int>(left < S::width ? left : S::width);
    fill_tasks(Draw<T>{source, 0, draw}, Tasks{first, active}, cells, cells + count);
    for (int lane = 0; lane < active; ++lane) {
      for (int k = 0; k < count; ++k) to[(first + lane) * count + k] = cells[k].v[lane];
    }
  }
}

}  // namespace

void random_numbers(const RandomNumbers<float>& call) { run(call); }

void random_numbers(const RandomNumbers<double>& call) { run(call); }

void sample_tasks(const TaskSource<float>& source, int64_t draw, float* cells) { run(source, draw, cells); }

void sample_tasks(const TaskSource<double>& source, int64_t draw, double* cells) { run(source, draw, cells); }

}  // namespace memformer::cpu::MEMFORMER_ISA
