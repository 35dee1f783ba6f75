// Tiles of tasks from global to shared memory: the rows of one task a thread, for the whole block.
//
// Copies run beside the threads. A tile whose tasks lie one after the other in memory is one bulk copy (sm_90), or one
// sequence of 16-byte copies; otherwise every task's rows are a copy of their own: bulk, or words of 16, 8 or 4 bytes
// as alignment allows. Strided rows and odd halves go number by number. A tile has one buffer: a block is a single warp
// and eight of them share a multiprocessor, so that some compute while the others' copies are under way. (4.3 TB/s for
// 800 ns are 26 KB for each of 132 multiprocessors; eight buffers of workload W hold 126 KB.)
//
// Bank rule. A thread reads its own rows, in vectors of `unit` = the largest power of two up to 16 bytes that divides a
// row. Lane t starts at t * task_bytes, so a warp reads without conflicts if task_bytes / unit is odd, and with two-way
// conflicts if it is twice an odd number. Then tasks lie in shared memory as they do in global memory; otherwise `unit`
// bytes of padding after every task make that quotient odd, or where units are of 8 bytes and tasks multiples of 16
// from one another, 16 bytes make it twice an odd number, and every task is a bulk copy still. Workload W: rows of 24
// bytes, read in vectors of 8; 504 / 8 = 63: no conflicts, one copy. 63 reads a task take as many cycles as 126 single
// words, the least for its bytes.

#pragma once

#include "core/extent.h"
#include "core/half.h"
#include "cuda/machine/execution.cuh"
#include "cuda/machine/parameters.cuh"

namespace memformer::cuda {

// How a tile's rows lie in shared memory.
struct TileLayout {
  int rows;  // of a task that the buffer holds
  int row_bytes;
  int task_bytes;  // from one task to the next

  MEMFORMER_INLINE int bytes(int tasks) const { return tasks * task_bytes; }
};

// The largest power of two, 16 at most, that divides `bytes`.
MEMFORMER_INLINE constexpr int vector_bytes(int64_t bytes) {
  const int low = static_cast<int>(bytes & -bytes & 31);
  return low == 0 || low > 16 ? 16 : low;
}

inline TileLayout tile_layout(int rows, int width, int number_bytes) {
  const int row_bytes = width * number_bytes;
  const int unit = vector_bytes(row_bytes) < 4 ? 4 : vector_bytes(row_bytes);
  const int natural = rows * row_bytes;
  const bool padded = natural % (4 * unit) == 0;
  return {rows, row_bytes, !padded ? natural : natural + (unit == 8 ? 16 : unit)};
}

// Bank conflicts of such reads: how many turns a group of lanes takes that could be served in one.
inline int bank_conflicts(int task_bytes, int unit) {
  const int lanes = unit < 4 ? warp_threads : warp_threads * 4 / unit;
  int worst = 0;
  for (int start = 0; start < warp_threads; start += lanes) {
    int words[32] = {}, last[32];
    for (int& word : last) word = -1;
    for (int lane = start; lane < start + lanes; ++lane) {
      for (int byte = 0; byte < unit; byte += 4) {
        const int word = (lane * task_bytes + byte) / 4;
        if (last[word % 32] != word) ++words[word % 32];
        last[word % 32] = word;
      }
    }
    for (int count : words) worst = count > worst ? count : worst;
  }
  return worst;
}

// Tokens (B, N, D) in global memory, read or written.
struct TokenArray {
  char* data;
  Storage storage;
  int number_bytes;
  int width;           // D
  bool rows_together;  // the rows of a task lie one after the other
  int64_t stride[3];   // in bytes

  MEMFORMER_DEVICE char* row(int64_t task, int64_t index) const { return data + task * stride[0] + index * stride[1]; }
};

inline TokenArray token_array(const Array& array, int width) {
  const int bytes = static_cast<int>(bytes_of_number(array.storage));
  TokenArray tokens{static_cast<char*>(array.data), array.storage, bytes, width, false, {}};
  for (int axis = 0; axis < 3; ++axis) tokens.stride[axis] = array.stride[axis] * bytes;
  tokens.rows_together = (width == 1 || array.stride[2] == 1) && array.stride[1] == width;
  return tokens;
}

template <class Block>
struct Tile {
  Block block;
  TileLayout layout;
  char* cells;
  Arrivals* arrivals;
  unsigned phase = 0;
  bool by_words = false;  // how the last copy was started

  // Once, before a barrier of the block.
  MEMFORMER_DEVICE void make() const {
    if (block.thread() == 0) block.make_arrivals(arrivals, Block::threads);
  }

  // The rows of this thread's task, or of another's.
  MEMFORMER_DEVICE char* task() const { return cells + block.thread() * layout.task_bytes; }

  // Starts copying rows [first_row, first_row + rows) of `tasks` tasks from `first` on. No thread may still be reading
  // the tile.
  MEMFORMER_DEVICE void start(const TokenArray& tokens, int64_t first, int tasks, int first_row, int rows) {
    const char* const from = tokens.data + first * tokens.stride[0] + first_row * tokens.stride[1];
    const int64_t step = tokens.stride[0];
    const int bytes = rows * layout.row_bytes;
    const bool together = tokens.rows_together && step == bytes && bytes == layout.task_bytes;
    const int64_t place = static_cast<int64_t>(reinterpret_cast<uintptr_t>(from));
    by_words = false;
    if (together && place % 16 == 0) return start_together(from, tasks * bytes, tokens.number_bytes);
    const int word = tokens.rows_together ? vector_bytes(place | step | bytes | layout.task_bytes) : 1;
    by_words = word >= 4 && !(Block::has_bulk_copies && word == 16);
    start_apart(*this, tokens, from, tasks, rows, word);
  }

  // Waits for what was started last: then all threads see it, the numbers that other threads have copied themselves
  // too, and bulk copies that are started later come after it.
  MEMFORMER_DEVICE void wait() {
    block.wait(arrivals, phase & 1);
    if (by_words) block.fence_copies();
    block.sync();
    ++phase;
  }

  // Writes rows [0, rows) of the tile to rows from `first_row` on of `tasks` tasks. After a barrier.
  MEMFORMER_DEVICE void write(const TokenArray& tokens, int64_t first, int tasks, int first_row, int rows) const {
    write_apart(*this, tokens, first, tasks, first_row, rows);
  }

 private:
  static MEMFORMER_CALL void write_apart(Tile tile, const TokenArray& tokens, int64_t first, int tasks, int first_row,
                                         int rows) {
    tile.write_now(tokens, first, tasks, first_row, rows);
  }

  MEMFORMER_DEVICE void write_now(const TokenArray& tokens, int64_t first, int tasks, int first_row, int rows) const {
    char* const to = tokens.data + first * tokens.stride[0] + first_row * tokens.stride[1];
    const int64_t step = tokens.stride[0];
    const int bytes = rows * layout.row_bytes;
    const int word =
        vector_bytes(static_cast<int64_t>(reinterpret_cast<uintptr_t>(to)) | step | bytes | layout.task_bytes);
    if (!tokens.rows_together || word < 4) {
      each_number(tokens, tasks, rows,
                  [&](int64_t outside, int inside) { copy_number(to + outside, cells + inside, tokens.number_bytes); });
    } else if (word == 16) {
      write_words<16>(to, step, tasks, bytes);
    } else if (word == 8) {
      write_words<8>(to, step, tasks, bytes);
    } else {
      write_words<4>(to, step, tasks, bytes);
    }
  }

  template <int Bytes>
  struct alignas(Bytes) Word {
    uint32_t parts[Bytes / 4];
  };

  // Tasks one by one, in words of so many bytes. A call, so that kernels hold this code once.
  static MEMFORMER_CALL void start_apart(Tile tile, const TokenArray& tokens, const char* from, int tasks, int rows,
                                         int word) {
    const int64_t step = tokens.stride[0];
    const int bytes = rows * tile.layout.row_bytes;
    if (word < 4) return tile.start_numbers(tokens, from, tasks, rows);
    if constexpr (Block::has_bulk_copies) {
      if (word == 16) return tile.start_tasks(from, step, tasks, bytes);
    }
    switch (word) {
      case 16: return tile.template start_words<16>(from, step, tasks, bytes);
      case 8: return tile.template start_words<8>(from, step, tasks, bytes);
      default: return tile.template start_words<4>(from, step, tasks, bytes);
    }
  }

  static MEMFORMER_DEVICE void copy_number(char* to, const char* from, int bytes) {
    if (bytes == 8) {
      *reinterpret_cast<double*>(to) = *reinterpret_cast<const double*>(from);
    } else if (bytes == 4) {
      *reinterpret_cast<float*>(to) = *reinterpret_cast<const float*>(from);
    } else {
      *reinterpret_cast<uint16_t*>(to) = *reinterpret_cast<const uint16_t*>(from);
    }
  }

  MEMFORMER_DEVICE void start_together(const char* from, int bytes, int number_bytes) const {
    const int whole = bytes & ~15;
    const int rest = whole + block.thread() * number_bytes;
    if (rest < bytes) {
      copy_number(cells + rest, from + rest, number_bytes);
      block.fence_copies();
    }
    if constexpr (Block::has_bulk_copies) {
      if (block.thread() == 0) {
        block.arrive_and_expect(arrivals, static_cast<unsigned>(whole));
        if (whole) block.copy_bulk(cells, from, static_cast<unsigned>(whole), arrivals);
      } else {
        block.arrive(arrivals);
      }
    } else {
      for (int k = block.thread() * 16; k < whole; k += Block::threads * 16)
        block.template copy<16>(cells + k, from + k);
      block.arrive_after_copies(arrivals);
    }
  }

  MEMFORMER_DEVICE void start_tasks(const char* from, int64_t step, int tasks, int bytes) const {
    const int thread = block.thread();
    if (thread < tasks) {
      block.arrive_and_expect(arrivals, static_cast<unsigned>(bytes));
      block.copy_bulk(cells + thread * layout.task_bytes, from + thread * step, static_cast<unsigned>(bytes), arrivals);
    } else {
      block.arrive(arrivals);
    }
  }

  template <int Bytes>
  MEMFORMER_DEVICE void start_words(const char* from, int64_t step, int tasks, int bytes) const {
    for (int task = 0; task < tasks; ++task) {
#pragma unroll 1
      for (int k = block.thread() * Bytes; k < bytes; k += Block::threads * Bytes) {
        block.template copy<Bytes>(cells + task * layout.task_bytes + k, from + task * step + k);
      }
    }
    block.arrive_after_copies(arrivals);
  }

  MEMFORMER_DEVICE void start_numbers(const TokenArray& tokens, const char* from, int tasks, int rows) const {
    each_number(tokens, tasks, rows,
                [&](int64_t outside, int inside) { copy_number(cells + inside, from + outside, tokens.number_bytes); });
    block.fence_copies();
    block.arrive(arrivals);
  }

  template <int Bytes>
  MEMFORMER_DEVICE void write_words(char* to, int64_t step, int tasks, int bytes) const {
    for (int task = 0; task < tasks; ++task) {
#pragma unroll 1
      for (int k = block.thread() * Bytes; k < bytes; k += Block::threads * Bytes) {
        *reinterpret_cast<Word<Bytes>*>(to + task * step + k) =
            *reinterpret_cast<const Word<Bytes>*>(cells + task * layout.task_bytes + k);
      }
    }
  }

  // body(offset in global memory, offset in the tile) of every number, in bytes.
  template <class Body>
  MEMFORMER_DEVICE void each_number(const TokenArray& tokens, int tasks, int rows, Body body) const {
    for (int task = 0; task < tasks; ++task) {
#pragma unroll 1
      for (int k = block.thread(); k < rows * tokens.width; k += Block::threads) {
        const int row = k / tokens.width, column = k % tokens.width;
        body(task * tokens.stride[0] + row * tokens.stride[1] + column * tokens.stride[2],
             task * layout.task_bytes + row * layout.row_bytes + column * tokens.number_bytes);
      }
    }
  }
};

// How a number is stored: by bits of type Bits.
struct Single {
  using Bits = float;
  static MEMFORMER_INLINE float read(Bits bits) { return bits; }
};
struct Double {
  using Bits = double;
  static MEMFORMER_INLINE double read(Bits bits) { return bits; }
};
struct Brain {
  using Bits = uint16_t;
  static MEMFORMER_INLINE float read(Bits bits) { return core::from_bfloat16(bits); }
};
struct Half {
  using Bits = uint16_t;
  static MEMFORMER_INLINE float read(Bits bits) { return core::from_float16(bits); }
};

// Calls body with the way that tokens of a kernel in T are stored.
template <class T, class Body>
MEMFORMER_DEVICE void with_storage(Storage storage, Body body) {
  if constexpr (sizeof(T) == 8) {
    body(Double{});
  } else if (storage == Storage::float32) {
    body(Single{});
  } else if (storage == Storage::bfloat16) {
    body(Brain{});
  } else {
    body(Half{});
  }
}

// A row of a tile, in vectors where its length is known when compiling.
template <class Number, class T, int Width>
MEMFORMER_DEVICE void read_row(Number, const char* row, core::Fixed<Width>, T* to) {
  using Bits = typename Number::Bits;
  constexpr int unit = vector_bytes(Width * static_cast<int>(sizeof(Bits)));
  constexpr int numbers = unit / static_cast<int>(sizeof(Bits));
  struct alignas(unit) Vector {
    Bits numbers_[numbers];
  };
  MEMFORMER_UNROLL
  for (int k = 0; k < Width / numbers; ++k) {
    const Vector vector = reinterpret_cast<const Vector*>(row)[k];
    MEMFORMER_UNROLL
    for (int c = 0; c < numbers; ++c) to[k * numbers + c] = static_cast<T>(Number::read(vector.numbers_[c]));
  }
}

template <class Number, class T, int Limit>
MEMFORMER_DEVICE void read_row(Number, const char* row, core::UpTo<Limit> width, T* to) {
  for (int c = 0; c < width; ++c)
    to[c] = static_cast<T>(Number::read(reinterpret_cast<const typename Number::Bits*>(row)[c]));
}

// A row of whatever storage: for the few rows of a task that are read alone.
template <class T, class Extent>
MEMFORMER_DEVICE void read_any_row(Storage storage, const char* row, Extent width, T* to) {
  if constexpr (sizeof(T) == 8) {
    read_row(Double{}, row, width, to);
  } else if (storage == Storage::float32) {
    read_row(Single{}, row, width, to);
  } else {
    const int count = width;
    MEMFORMER_UNROLL
    for (int c = 0; c < count; ++c) {
      const uint16_t bits = reinterpret_cast<const uint16_t*>(row)[c];
      to[c] = storage == Storage::bfloat16 ? core::from_bfloat16(bits) : core::from_float16(bits);
    }
  }
}

// One number of a row.
template <class T>
MEMFORMER_DEVICE void write_number_of_row(Storage storage, char* row, int index, T value) {
  if constexpr (sizeof(T) == 8) {
    reinterpret_cast<double*>(row)[index] = value;
  } else if (storage == Storage::float32) {
    reinterpret_cast<float*>(row)[index] = value;
  } else {
    reinterpret_cast<uint16_t*>(row)[index] =
        storage == Storage::bfloat16 ? core::to_bfloat16(value) : core::to_float16(value);
  }
}

}  // namespace memformer::cuda
