// Response-only networks of 9 to 16 features in Gram space, for the gradients of parameters: four lanes to a task.
//
// Who owns what: a lane has E rows of H and E entries of every vector, E = 3 or 4; where a product wants a whole
// vector, lanes trade what they own. A warp has 8 tasks, whose tokens are one bulk copy or one each (stage.cuh). H
// stays in registers: one task a thread would need 136 of them at d = 16. The gradient of A is added up over the warp's
// tasks layer by layer, by lanes trading halves of what they hold; sums over a unit's tasks lie in shared memory.
//
// Bytes per task: its tokens, read once. Operations: n d^2 multiply-adds for H, twice as many as its lower triangle,
// and those of core/response_gram.h, for d rounded up to a multiple of 4.

#pragma once

#include "cuda/machine/stage.cuh"
#include "cuda/team/team_plan.cuh"
#include "cuda/thread/first_order.cuh"

namespace memformer::cuda {

template <class T>
struct SplitGramCall {
  int d;
  bool loss, diagonal;
  int layers;
  int tokens;  // N
  int context;
  int queries;
  int sum_numbers;
  int unit_tasks;
  int64_t tasks, units;
  T error_scale;  // 2 / (B queries)
  const int64_t* lengths;
  TokenArray z;
  Array result, target, grad_target;
  Parameters parameters;
  TileLayout layout;
  Partials<T> partials;
};

template <class T, int E>
class SplitGram {
  static constexpr int members = 4;
  static constexpr int most = members * E;
  static constexpr int pitch = most + 4;  // of A's rows: a row of every lane in banks of its own, or of every other
  static constexpr int arrivals_bytes = 32;
  using Own = core::Fixed<E>;
  using Trace = InPlaceTrace<T, Own, warp_threads>;

  // What lies in shared memory behind the tile, in numbers.
  struct Space {
    int gamma, beta, sums, slots, trace, count;
    explicit MEMFORMER_INLINE Space(const SplitGramCall<T>& call)
        : gamma(call.layers * call.d * pitch),
          beta(gamma + static_cast<int>(call.parameters.gamma.count())),
          sums(beta + static_cast<int>(call.parameters.beta.count())),
          slots((sums + call.sum_numbers + 3) / 4 * 4),
          trace(slots + memformer::cuda::slots * slot_pitch),
          count(trace + 3 * call.layers * E * warp_threads) {}
  };

 public:
  using Arguments = SplitGramCall<T>;
  static constexpr int threads = warp_threads;
  static constexpr int blocks_of_multiprocessor = 8;
  static constexpr int tasks_at_once = warp_threads / members;

  static int64_t shared_bytes(const Arguments& call) {
    return arrivals_bytes + divided_up(call.layout.bytes(tasks_at_once), 32) * 32 +
           Space(call).count * static_cast<int64_t>(sizeof(T));
  }

  template <class Block>
  static MEMFORMER_DEVICE void run(const Arguments& call, const Block& block) {
    char* const cells = block.shared() + arrivals_bytes;
    T* const memory = reinterpret_cast<T*>(cells + (call.layout.bytes(tasks_at_once) + 31) / 32 * 32);
    Tile<Block> tile{block, call.layout, cells, reinterpret_cast<Arrivals*>(block.shared())};
    Team<Block>{call, block, tile, memory, Space(call)}.all();
  }

 private:
  template <class Block>
  struct Team {
    const Arguments& call;
    const Block& block;
    Tile<Block> tile;
    T* memory;
    Space space;

    MEMFORMER_DEVICE int member() const { return block.lane() % members; }
    MEMFORMER_DEVICE int own_task() const { return block.lane() / members; }
    MEMFORMER_DEVICE int first() const { return member() * E; }
    MEMFORMER_DEVICE T* sums() const { return memory + space.sums; }
    MEMFORMER_DEVICE int gamma_start() const { return call.layers * call.d * call.d; }
    MEMFORMER_DEVICE int beta_start() const { return gamma_start() + static_cast<int>(call.parameters.gamma.count()); }

    MEMFORMER_DEVICE void all() {
      tile.make();
      if (block.index() == 0 && block.thread() == 0) *call.partials.arrivals = 0;
      for (int k = block.thread(); k < space.gamma; k += Block::threads) memory[k] = T(0);
      block.sync();
      start(block.index() * call.unit_tasks);
      load_parameter(block, call.parameters.q, memory, call.d, pitch);
      if (call.parameters.gamma.present) load_parameter(block, call.parameters.gamma, memory + space.gamma);
      if (call.parameters.beta.present) load_parameter(block, call.parameters.beta, memory + space.beta);
      const int count = call.partials.count;
      for (int64_t unit = block.index(); unit < call.units; unit += block.count()) {
        for (int k = block.thread(); k < count; k += Block::threads) sums()[k] = T(0);
        block.sync();
        const int64_t begin = unit * call.unit_tasks;
        const int64_t end = begin + call.unit_tasks < call.tasks ? begin + call.unit_tasks : call.tasks;
#pragma unroll 1
        for (int64_t task = begin; task < end; task += tasks_at_once) {
          const int64_t next =
              task + tasks_at_once < end ? task + tasks_at_once : begin + block.count() * call.unit_tasks;
          tasks_from(task, end, next);
        }
        block.sync();
        T* const to = call.partials.unit(unit);
        for (int k = block.thread(); k < count; k += Block::threads) to[k] = sums()[k];
        block.sync();
      }
    }

    MEMFORMER_DEVICE void start(int64_t task) {
      if (task < call.tasks) tile.start(call.z, task, count_from(task, call.tasks), 0, call.tokens);
    }
    MEMFORMER_DEVICE static int count_from(int64_t task, int64_t end) {
      return end - task < tasks_at_once ? static_cast<int>(end - task) : tasks_at_once;
    }

    // The whole of a vector of which every lane has its entries.
    MEMFORMER_DEVICE void gather(const T (&own)[E], T (&whole)[most]) const {
      const int source = block.lane() - member();
      MEMFORMER_UNROLL
      for (int m = 0; m < members; ++m) {
        MEMFORMER_UNROLL
        for (int e = 0; e < E; ++e) whole[m * E + e] = block.shuffle(own[e], source + m);
      }
    }
    MEMFORMER_DEVICE T team_sum(T value) const {
      value += block.shuffle_xor(value, 1);
      return value + block.shuffle_xor(value, 2);
    }

    // A row of this lane's task: all of its features, those that this lane owns, and its response; zero behind d, and
    // where there is no such task, of which nothing is read.
    struct Row {
      T x[most], own[E], y;
    };
    MEMFORMER_DEVICE Row row(int index, bool real) const {
      Row made;
      const char* const from = tile.cells + own_task() * call.layout.task_bytes + index * call.layout.row_bytes;
      MEMFORMER_UNROLL
      for (int c = 0; c < most; ++c) made.x[c] = real && c < call.d ? number(from, c) : T(0);
      MEMFORMER_UNROLL
      for (int e = 0; e < E; ++e) made.own[e] = real && first() + e < call.d ? number(from, first() + e) : T(0);
      made.y = real ? number(from, call.d) : T(0);
      return made;
    }
    MEMFORMER_DEVICE T number(const char* row, int c) const { return read_number<T>(row, call.z.storage, c); }

    MEMFORMER_DEVICE void tasks_from(int64_t begin, int64_t end, int64_t next) {
      const int64_t task = begin + own_task();
      const bool real = own_task() < count_from(begin, end);
      const int context = call.lengths && real ? static_cast<int>(call.lengths[task]) : call.context;
      tile.wait();

      T h[E][most], b[E];
      MEMFORMER_UNROLL
      for (int e = 0; e < E; ++e) {
        b[e] = T(0);
        MEMFORMER_UNROLL
        for (int c = 0; c < most; ++c) h[e][c] = T(0);
      }
#pragma unroll 1
      for (int i = 0; real && i < context; ++i) {
        const Row read = row(i, true);
        MEMFORMER_UNROLL
        for (int e = 0; e < E; ++e) {
          b[e] += read.own[e] * read.y;
          MEMFORMER_UNROLL
          for (int c = 0; c < most; ++c) h[e][c] += read.own[e] * read.x[c];
        }
      }
      const T scale = T(1) / static_cast<T>(context);
      MEMFORMER_UNROLL
      for (int e = 0; e < E; ++e) {
        b[e] *= scale;
        MEMFORMER_UNROLL
        for (int c = 0; c < most; ++c) h[e][c] *= scale;
      }

      const Trace trace{{memory + space.trace + block.lane()}, call.layers, 1, Own{}, false};
      T s[E], outer[E], squared = T(0);
      forward(h, b, s, trace);
      read_errors(task, real, s, outer, squared);
      block.sync();
      start(next);

      Slots<T, Block> totals{block, sums(), memory + space.slots};
      totals.put(call.partials.count - 1, squared);
      backward(h, outer, trace, totals);
      totals.empty();
    }

    MEMFORMER_DEVICE void forward(const T (&h)[E][most], const T (&b)[E], T (&s)[E], const Trace& trace) const {
      const T* const gamma = call.parameters.gamma.present ? memory + space.gamma : nullptr;
      const T* const beta = call.parameters.beta.present ? memory + space.beta : nullptr;
      MEMFORMER_UNROLL
      for (int e = 0; e < E; ++e) s[e] = T(0);
#pragma unroll 1
      for (int l = 0; l < call.layers; ++l) {
        T whole[most], g[E];
        gather(s, whole);
        MEMFORMER_UNROLL
        for (int e = 0; e < E; ++e) {
          g[e] = b[e];
          MEMFORMER_UNROLL
          for (int c = 0; c < most; ++c) g[e] += h[e][c] * whole[c];
          trace.residual(l)[e] = g[e];
        }
        gather(g, whole);
        MEMFORMER_UNROLL
        for (int e = 0; e < E; ++e) {
          const bool owned = first() + e < call.d;
          const T* const a = memory + (l * call.d + (owned ? first() + e : 0)) * pitch;
          T r = T(0);
          MEMFORMER_UNROLL
          for (int c = 0; c < most; ++c) r += a[c] * whole[c];
          r = owned ? r : T(0);
          if (beta && l > 0) r += trace.memory(l - 1, 0)[e] * beta[l];
          trace.memory(l, 0)[e] = r;
          if (!gamma) s[e] += r;
          if (gamma && call.diagonal) s[e] += r * gamma[l];
        }
        if (!gamma || call.diagonal) continue;
#pragma unroll 1
        for (int j = 0; j <= l; ++j) {
          MEMFORMER_UNROLL
          for (int e = 0; e < E; ++e) s[e] += trace.memory(j, 0)[e] * gamma[l * call.layers + j];
        }
      }
    }

    // outer = the sum over queries of the gradient of their response slots times their features.
    MEMFORMER_DEVICE void read_errors(int64_t task, bool real, const T (&s)[E], T (&outer)[E], T& squared) const {
      MEMFORMER_UNROLL
      for (int e = 0; e < E; ++e) outer[e] = T(0);
      const Array &target = call.target, &result = call.result, &to = call.grad_target;
#pragma unroll 1
      for (int k = 0; k < call.queries; ++k) {
        // A lane without a task takes part in the team's sum.
        const Row read = row(call.tokens - call.queries + k, real);
        T part = T(0);
        MEMFORMER_UNROLL
        for (int e = 0; e < E; ++e) part += read.own[e] * s[e];
        const T response = read.y + team_sum(part);
        T e = T(0);
        if (real && call.loss) {
          const T error = -response - read_number<T>(target, task * target.stride[0] + k * target.stride[1]);
          if (member() == 0) squared += error * error;
          e = -error * call.error_scale;
          if (to.data && member() == 0) write_number(to, task * to.stride[0] + k * to.stride[1], e);
        } else if (real) {
          e = -read_number<T>(result, task * result.stride[1] + k * result.stride[2]);
        }
        MEMFORMER_UNROLL
        for (int c = 0; c < E; ++c) outer[c] += e * read.own[c];
      }
    }

    MEMFORMER_DEVICE void backward(const T (&h)[E][most], const T (&outer)[E], const Trace& trace,
                                   Slots<T, Block>& totals) const {
      const T* const gamma = call.parameters.gamma.present ? memory + space.gamma : nullptr;
      const T* const beta = call.parameters.beta.present ? memory + space.beta : nullptr;
      T ds[E];
      MEMFORMER_UNROLL
      for (int e = 0; e < E; ++e) ds[e] = outer[e];
#pragma unroll 1
      for (int l = call.layers - 1; l >= 0; --l) {
        T r[E], dr[E];
        MEMFORMER_UNROLL
        for (int e = 0; e < E; ++e) {
          trace.update(l)[e] = ds[e];
          r[e] = trace.memory(l, 0)[e];
          dr[e] = gamma ? T(0) : ds[e];
        }
        if (gamma) {
          const int last = call.diagonal ? l : call.layers - 1;
#pragma unroll 1
          for (int later = l; later <= last; ++later) {
            const int place = call.diagonal ? l : later * call.layers + l;
            T sum = T(0);
            MEMFORMER_UNROLL
            for (int e = 0; e < E; ++e) {
              const T update = trace.update(later)[e];
              dr[e] += update * gamma[place];
              sum += update * r[e];
            }
            totals.put(gamma_start() + place, sum);
          }
        }
        if (beta) {
          T sum = T(0);
          MEMFORMER_UNROLL
          for (int e = 0; e < E; ++e) {
            if (l + 1 < call.layers) dr[e] += trace.memory_grad(l + 1, 0)[e] * beta[l + 1];
            if (l > 0) sum += dr[e] * trace.memory(l - 1, 0)[e];
            trace.memory_grad(l, 0)[e] = dr[e];
          }
          if (l > 0) totals.put(beta_start() + l, sum);
        }
        T whole[most], own[E];
        MEMFORMER_UNROLL
        for (int e = 0; e < E; ++e) own[e] = trace.residual(l)[e];
        gather(own, whole);
        add_matrix_grad(l, dr, whole);
        if (l == 0) continue;
        gather(dr, whole);
        MEMFORMER_UNROLL
        for (int e = 0; e < E; ++e) own[e] = T(0);
        const T* const a = memory + l * call.d * pitch + first();
        MEMFORMER_UNROLL
        for (int i = 0; i < most; ++i) {
          if (i >= call.d) continue;
          MEMFORMER_UNROLL
          for (int e = 0; e < E; ++e) own[e] += a[i * pitch + e] * whole[i];
        }
        gather(own, whole);
        MEMFORMER_UNROLL
        for (int e = 0; e < E; ++e) {
          MEMFORMER_UNROLL
          for (int c = 0; c < most; ++c) ds[e] += h[e][c] * whole[c];
        }
      }
    }

    // Adds the sum over the warp's tasks of dr g^T: lanes that own the same rows trade halves of what they hold.
    MEMFORMER_DEVICE void add_matrix_grad(int l, const T (&dr)[E], const T (&g)[most]) const {
      MEMFORMER_UNROLL
      for (int e = 0; e < E; ++e) {
        T values[most];
        MEMFORMER_UNROLL
        for (int c = 0; c < most; ++c) values[c] = dr[e] * g[c];
        int start = 0, held = most;
        spread_sums<most, warp_threads / 2, members>(block, values, start, held);
        T* const to = sums() + (l * call.d + first() + e) * call.d;
        MEMFORMER_UNROLL
        for (int k = 0; k < spread_count<most, warp_threads / 2, members>(); ++k) {
          if (k < held && first() + e < call.d && start + k < call.d) to[start + k] += values[k];
        }
      }
      block.sync();
    }
  };
};

}  // namespace memformer::cuda
