// The random stream of a group of tasks: the normals of core/gaussian.h by their place in it.

#pragma once

#include "cpu/lanes/random_bits.h"
#include "cpu/tasks/train.h"
#include "cpu/threads.h"

namespace memformer::cpu::MEMFORMER_ISA {

template <class T>
inline core::Stream<Lanes<T>> stream_of(const Draw<T>& draw, Tasks tasks) {
  WideWords<T> task;
  count_words(static_cast<uint32_t>(tasks.first), task);
  return {core::philox_keys(static_cast<uint64_t>(draw.source.seeds[draw.model]), draw.number), task,
          static_cast<uint32_t>(draw.number), static_cast<uint32_t>(draw.source.streams[draw.model])};
}

// Cells that `normals` needs for `count` of them: whole blocks, and the one that the first may lie inside.
constexpr int normal_cells(int count) { return count + 7; }

// Normals [first, first + count) of the stream, in `cells`.
template <class S>
inline const S* normals(const core::Stream<S>& stream, int64_t first, int count, S* cells) {
  const int64_t begin = first / 4, end = (first + count + 3) / 4;
  for (int64_t block = begin; block < end; ++block) {
    checkpoint_at_row(block - begin);
    stream.normals(static_cast<uint32_t>(block), cells + 4 * (block - begin));
  }
  return cells + first % 4;
}

// Each task's noise.
template <class T>
inline Lanes<T> noise_of(const TaskSource<T>& source, const core::Stream<Lanes<T>>& stream) {
  Lanes<T> noise(source.noise);
  if (source.noise_spread != T(0)) {
    Lanes<T> uniforms[4];
    stream.uniforms(core::noise_block, uniforms);
    noise += uniforms[0] * source.noise_spread;
  }
  return noise;
}

// Zeros in the lanes past the last task, whatever they hold.
template <class T>
inline void clear_unused(Tasks tasks, int count, Lanes<T>* cells) {
  if (tasks.active == Lanes<T>::width) return;
  T numbers[Lanes<T>::width];
  for (int lane = 0; lane < Lanes<T>::width; ++lane) numbers[lane] = lane < tasks.active ? T(1) : T(0);
  const Lanes<T> used = Lanes<T>::load(numbers);
  for (int k = 0; k < count; ++k) cells[k] = where_less(T(0), used, cells[k]);
}

}  // namespace memformer::cpu::MEMFORMER_ISA
