// Context Gram matrices of short contexts on a GPU: one task a thread, 32 tasks a block.
//
// A block is a warp. The tile of its tasks is one bulk copy (stage.cuh); a thread adds up its matrix in registers, and
// lets the next tile come in. Matrices go out through shared memory, so that a warp writes neighbouring bytes. Bytes
// per task: its tokens read, D^2 numbers written. Operations: n D (D + 1) / 2 multiply-adds; of sm_90's code at D = 6,
// n = 20 about 620 instructions for a warp's 32 tasks, where reading and writing at memory's speed leaves a
// multiprocessor 4500.

#pragma once

#include "cuda/team/team_gram.cuh"
#include "cuda/thread/tile_tasks.cuh"

namespace memformer::cuda {

template <class T, class Extent>
struct ThreadContextCall {
  Extent width;
  static constexpr bool resident = true;
  static constexpr int unit_tasks = tile_tasks;
  int tokens;  // N
  int context;
  int64_t tasks;
  const int64_t* lengths;
  TokenArray z;
  Array matrix;
  bool together;  // matrices lie one after another, as they are worked in
  TileLayout layout;
};

template <class T, class Extent>
class ThreadContext {
  static constexpr int width = Extent::limit;
  static constexpr int square = width * width;
  static constexpr int packed = core::packed_size(width);
  static constexpr int arrivals_bytes = 32;
  static constexpr int unit = vector_bytes(square * static_cast<int>(sizeof(T)));
  static constexpr int numbers = unit / static_cast<int>(sizeof(T));
  struct alignas(unit) Vector {
    T of[numbers];
  };
  struct alignas(16) Word {
    uint32_t of[4];
  };

 public:
  using Arguments = ThreadContextCall<T, Extent>;
  static constexpr int threads = tile_tasks;
  static constexpr int blocks_of_multiprocessor = 12;

  static int64_t shared_bytes(const Arguments& call) {
    const int64_t waiting = waiting_levels(call.context) * packed * warp_threads;
    return arrivals_bytes + divided_up(call.layout.bytes(tile_tasks), 32) * 32 +
           (square * tile_tasks + waiting) * static_cast<int64_t>(sizeof(T));
  }

  template <class Block>
  static MEMFORMER_DEVICE void run(const Arguments& call, const Block& block) {
    char* const cells = block.shared() + arrivals_bytes;
    T* const matrices = reinterpret_cast<T*>(cells + (call.layout.bytes(tile_tasks) + 31) / 32 * 32);
    TileTasks<T, Arguments, Block> tasks{
        call, block, {block, call.layout, cells, reinterpret_cast<Arrivals*>(block.shared())}};
    tasks.tile.make();
    block.sync();
    tasks.start(block.index() * tile_tasks);
    for (int64_t first = block.index() * tile_tasks; first < call.tasks; first += block.count() * tile_tasks) {
      tasks.begin(first);
      tasks.tile.wait();
      T sums[packed];
      tasks.template sum_context<true>(call.width, sums,
                                       core::Cells<T, warp_threads>{matrices + square * tile_tasks + block.lane()});
      tasks.leave(first + block.count() * tile_tasks);
      if (call.together) {
        put_matrix(sums, matrices + block.thread() * square);
        block.sync();
        write_matrices(block, matrices, static_cast<T*>(call.matrix.data) + first * square, tasks.tasks * square);
        block.sync();
      } else if (tasks.real) {
        write_matrix(call.matrix, tasks.task, sums);
      }
    }
  }

 private:
  static MEMFORMER_DEVICE void put_matrix(const T (&sums)[packed], T* to) {
    MEMFORMER_UNROLL
    for (int k = 0; k < square / numbers; ++k) {
      Vector vector;
      MEMFORMER_UNROLL
      for (int c = 0; c < numbers; ++c) {
        const int entry = k * numbers + c;
        vector.of[c] = sums[core::packed(entry / width, entry % width)];
      }
      reinterpret_cast<Vector*>(to)[k] = vector;
    }
  }

  // Numbers for which both places are multiples of 16 bytes, and the few behind them.
  template <class Block>
  static MEMFORMER_DEVICE void write_matrices(const Block& block, const T* from, T* to, int count) {
    constexpr int numbers_of_word = sizeof(Word) / sizeof(T);
    const int words = count / numbers_of_word;
#pragma unroll 4
    for (int k = block.thread(); k < words; k += Block::threads) {
      reinterpret_cast<Word*>(to)[k] = reinterpret_cast<const Word*>(from)[k];
    }
    const int rest = words * numbers_of_word + block.thread();
    if (rest < count) to[rest] = from[rest];
  }

  static MEMFORMER_DEVICE void write_matrix(const Array& to, int64_t task, const T (&sums)[packed]) {
    MEMFORMER_UNROLL
    for (int r = 0; r < width; ++r) {
      MEMFORMER_UNROLL
      for (int c = 0; c < width; ++c) {
        write_number(to, task * to.stride[0] + r * to.stride[1] + c * to.stride[2], sums[core::packed(r, c)]);
      }
    }
  }
};

// Widths that are compiled for.
constexpr int narrowest_context = 2;
constexpr int widest_context = 9;

template <class T, class Extent>
ThreadContextCall<T, Extent> thread_context_call(const Gram<T>& gram, Extent width) {
  ThreadContextCall<T, Extent> call{};
  call.width = width;
  call.tokens = gram.tokens;
  call.context = gram.context;
  call.tasks = gram.tasks;
  call.lengths = gram.lengths;
  call.z = token_array(gram.z, gram.width);
  call.matrix = gram.matrix;
  const int64_t square = static_cast<int64_t>(gram.width) * gram.width;
  call.together = gram.matrix.storage == storage_of<T> && gram.matrix.stride[2] == 1 &&
                  gram.matrix.stride[1] == gram.width && gram.matrix.stride[0] == square &&
                  reinterpret_cast<uintptr_t>(gram.matrix.data) % 16 == 0;
  call.layout = tile_layout(gram.tokens, gram.width, call.z.number_bytes);
  return call;
}

// Tasks from which on a warp for 32 of them leaves no multiprocessor of an H200 without one.
constexpr int64_t least_thread_tasks = machine_blocks * tile_tasks;

// Whether threads have a task each: matrices themselves, of many tasks that lie in shared memory whole.
template <class T>
bool fits_thread(const Gram<T>& gram) {
  if (sizeof(T) == 8 || gram.backward || gram.tasks < least_thread_tasks) return false;
  if (gram.width < narrowest_context || gram.width > widest_context) return false;
  const int number = static_cast<int>(bytes_of_number(gram.z.storage));
  return static_cast<int64_t>(gram.tokens) * gram.width * number * tile_tasks <= 48 * 1024;
}

// A whole call, on a machine that runs kernels.
template <class T, class Extent, class Machine>
int run_thread_context(const Gram<T>& gram, const Machine& machine, Extent width) {
  using Kernel = ThreadContext<T, Extent>;
  const auto call = thread_context_call(gram, width);
  return machine.template run<Kernel>(call, divided_up(gram.tasks, tile_tasks), Kernel::shared_bytes(call));
}

}  // namespace memformer::cuda
