// Response-only networks in token space with a gamma for every token, for the
// gradients of parameters: a few lanes to a task, its rows in their registers.
//
// Who owns what: a lane has R rows of the context and one query at most, with
// their states, registers and gradients; vectors of d numbers are the sums over
// a team, by shuffles, and are kept by all of it. The tile of a warp's tasks is
// one bulk copy (stage.cuh): its rows are read into registers at once, and the
// next tile comes in meanwhile. A lane adds up the gradients of its own rows'
// gammas and of one layer's A over all tasks of a unit; lanes of different
// tasks trade halves of what they hold when it ends.
//
// A query moves no other row. So gradients of its states are all its error's,
// and it sees of gamma the sums over layers alone: s_L = s_0 + sum_j
// (sum_{l>=j} gamma_{l,j}) r_j. The last layer moves the queries only.
//
// Workload W with a full gamma, 4 lanes of 5 + 1 rows, a task: 508 bytes read.
// Multiply-adds of a lane: 305 forward, 330 backward; 160 instructions add up
// vectors over the team, 70 read tokens and A.

#pragma once

#include "cuda/machine/stage.cuh"
#include "cuda/team/team_plan.cuh"
#include "cuda/thread/first_order.cuh"

namespace memformer::cuda {

// Layers whose registers and gradients a lane can hold.
constexpr int most_row_layers = 4;

template <class T>
struct TokenRowsCall {
  bool loss;
  int layers;
  int tokens;  // N
  int context;
  int queries;
  int gamma_rows;  // rows of gamma: those of the context, ..., those of the
                   // queries
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

// Members: lanes of a task; R: rows of the context that a lane has.
template <class T, class Extent, int Members, int R>
class TokenRows {
  static constexpr int d = Extent::limit;
  static constexpr int width = d + 1;
  static constexpr int most = most_row_layers;
  static constexpr int matrix_step = core::FirstOrder<T, 4>::matrix_step(d);
  // What a lane adds up: gamma of its rows, [l][j <= l][row] with l < most - 1;
  // gamma of its query, [j]; one layer's A; the squared error.
  static constexpr int query_sums = most * (most - 1) / 2 * R;
  static constexpr int matrix_sums = query_sums + most;
  static constexpr int squared_sum = matrix_sums + d * d;
  static constexpr int sum_numbers = squared_sum + 1;
  static constexpr int arrivals_bytes = 32;
  static constexpr int zero_bytes = 64;
  // Rows that a lane has one after another: four of them put the lanes of two
  // tasks into different banks at d = 5.
  static constexpr int together = R < 4 ? R : 4;

  static MEMFORMER_INLINE constexpr int pair(int l, int j) { return (l * (l + 1) / 2 + j) * R; }

  // What lies in shared memory behind the tile, in numbers: A, gamma, the sums
  // of a unit, and where a lane's go there.
  struct Space {
    int gamma, sums, places, count;
    explicit MEMFORMER_INLINE Space(const TokenRowsCall<T>& call)
        : gamma(call.layers * matrix_step),
          sums(gamma + call.layers * call.layers * call.gamma_rows),
          places(sums + call.layers * d * d + call.layers * call.layers * call.gamma_rows + 1),
          count(places + sum_numbers * Members) {}
  };

 public:
  using Arguments = TokenRowsCall<T>;
  static constexpr int threads = warp_threads;
  static constexpr int blocks_of_multiprocessor = 8;
  static constexpr int tasks_at_once = warp_threads / Members;
  static constexpr int most_context = Members * R;
  static constexpr int most_queries = Members;

  static int64_t shared_bytes(const Arguments& call) {
    return arrivals_bytes + zero_bytes + divided_up(call.layout.bytes(tasks_at_once), 32) * 32 +
           Space(call).count * static_cast<int64_t>(sizeof(T));
  }

  template <class Block>
  static MEMFORMER_DEVICE void run(const Arguments& call, const Block& block) {
    char* const zeros = block.shared() + arrivals_bytes;
    char* const cells = zeros + zero_bytes;
    T* const memory = reinterpret_cast<T*>(cells + (call.layout.bytes(tasks_at_once) + 31) / 32 * 32);
    Tile<Block> tile{block, call.layout, cells, reinterpret_cast<Arrivals*>(block.shared())};
    Team<Block>{call, block, tile, zeros, memory, Space(call)}.all();
  }

 private:
  template <class Block>
  struct Team {
    const Arguments& call;
    const Block& block;
    Tile<Block> tile;
    char* zeros;
    T* memory;
    Space space;

    MEMFORMER_DEVICE int member() const { return block.lane() % Members; }
    MEMFORMER_DEVICE int own_task() const { return block.lane() / Members; }
    // The k-th row of the context that this lane has.
    static MEMFORMER_DEVICE int row_of(int lane, int k) {
      return k < together ? lane * together + k : k * Members + lane;
    }
    MEMFORMER_DEVICE int row(int k) const { return row_of(member(), k); }

    MEMFORMER_DEVICE void all() {
      tile.make();
      if (block.index() == 0 && block.thread() == 0) *call.partials.arrivals = 0;
      block.sync();
      start(block.index() * call.unit_tasks);
      if (block.thread() < zero_bytes / 4) reinterpret_cast<float*>(zeros)[block.thread()] = 0.0f;
      load_parameter(block, call.parameters.q, memory, d * d, matrix_step);
      load_parameter(block, call.parameters.gamma, memory + space.gamma);
      T* const sums = memory + space.sums;
      for (int k = block.thread(); k < call.partials.count; k += Block::threads) sums[k] = T(0);
      int* const places = reinterpret_cast<int*>(memory + space.places);
      for (int k = block.thread(); k < sum_numbers * Members; k += Block::threads) {
        places[k] = place(k / Members, k % Members);
      }
      block.sync();
      T gamma[query_sums], query_gamma[most];
      read_gamma(gamma, query_gamma);
      for (int64_t unit = block.index(); unit < call.units; unit += block.count()) {
        const int64_t begin = unit * call.unit_tasks;
        const int64_t end = begin + call.unit_tasks < call.tasks ? begin + call.unit_tasks : call.tasks;
        T totals[sum_numbers];
        MEMFORMER_UNROLL
        for (int k = 0; k < sum_numbers; ++k) totals[k] = T(0);
#pragma unroll 1
        for (int64_t first = begin; first < end; first += tasks_at_once) {
          const int64_t next =
              first + tasks_at_once < end ? first + tasks_at_once : begin + block.count() * call.unit_tasks;
          tasks_from(first, next, gamma, query_gamma, totals);
        }
        write_totals(unit, totals);
      }
    }

    MEMFORMER_DEVICE void start(int64_t first) {
      if (first < call.tasks) tile.start(call.z, first, count_from(first), 0, call.tokens);
    }
    MEMFORMER_DEVICE int count_from(int64_t first) const {
      return call.tasks - first < tasks_at_once ? static_cast<int>(call.tasks - first) : tasks_at_once;
    }

    // The column of a unit's sums that number k of a lane belongs to; -1: to
    // none.
    MEMFORMER_DEVICE int place(int k, int lane) const {
      const int layers = call.layers, rows = call.gamma_rows, gammas = layers * d * d;
      if (k < query_sums) {
        int l = 0;
        while (k >= pair(l + 1, 0)) ++l;
        const int j = (k - pair(l, 0)) / R, i = row_of(lane, (k - pair(l, 0)) % R);
        return l + 1 < layers && i < call.context ? gammas + (l * layers + j) * rows + i : -1;
      }
      // Every later layer's gamma has the same gradient: write_totals copies
      // it.
      if (k < matrix_sums) {
        const int j = k - query_sums;
        return j < layers && lane < call.queries
                   ? gammas + ((layers - 1) * layers + j) * rows + rows - call.queries + lane
                   : -1;
      }
      if (k < squared_sum) return lane < layers ? lane * d * d + k - matrix_sums : -1;
      return -1;
    }

    // Gamma of this lane's rows; of its query the sums over later layers.
    MEMFORMER_DEVICE void read_gamma(T (&own)[query_sums], T (&query)[most]) const {
      const T* const gamma = memory + space.gamma;
      const int layers = call.layers, rows = call.gamma_rows;
      MEMFORMER_UNROLL
      for (int l = 0; l + 1 < most; ++l) {
        MEMFORMER_UNROLL
        for (int j = 0; j <= l; ++j) {
          MEMFORMER_UNROLL
          for (int k = 0; k < R; ++k) {
            const bool real = l + 1 < layers && row(k) < call.context;
            own[pair(l, j) + k] = real ? gamma[(l * layers + j) * rows + row(k)] : T(0);
          }
        }
      }
      MEMFORMER_UNROLL
      for (int j = 0; j < most; ++j) {
        query[j] = T(0);
        for (int l = j; l < layers && member() < call.queries; ++l) {
          query[j] += gamma[(l * layers + j) * rows + rows - call.queries + member()];
        }
      }
    }

    // Adds a vector up over the lanes of a task.
    MEMFORMER_DEVICE void sum(T (&values)[d]) const {
      MEMFORMER_UNROLL
      for (int mask = 1; mask < Members; mask *= 2) {
        MEMFORMER_UNROLL
        for (int c = 0; c < d; ++c) values[c] += block.shuffle_xor(values[c], mask);
      }
    }

    MEMFORMER_DEVICE const T* matrix(int l) const {
      return static_cast<const T*>(__builtin_assume_aligned(memory + l * matrix_step, 4 * sizeof(T)));
    }

    static MEMFORMER_DEVICE T product(const T* row, const T* v) {
      T sum = row[0] * v[0];
      MEMFORMER_UNROLL
      for (int c = 1; c < d; ++c) sum += row[c] * v[c];
      return sum;
    }

    MEMFORMER_DEVICE void tasks_from(int64_t first, int64_t next, const T (&gamma)[query_sums],
                                     const T (&query_gamma)[most], T (&totals)[sum_numbers]) {
      const int64_t task = first + own_task();
      const bool real = own_task() < count_from(first), predicts = real && member() < call.queries;
      const int context = call.lengths && real ? static_cast<int>(call.lengths[task]) : call.context;
      const T scale = T(1) / static_cast<T>(context);
      const T known = predicts ? known_of(task) : T(0);
      tile.wait();

      T x[R][width], query[width];
      const char* const rows = tile.cells + own_task() * call.layout.task_bytes;
      with_storage<T>(call.z.storage, [&](auto number) {
        MEMFORMER_UNROLL
        for (int k = 0; k < R; ++k) {
          const bool labelled = real && row(k) < context;
          read_row(number, labelled ? rows + row(k) * call.layout.row_bytes : zeros, core::Fixed<width>{}, x[k]);
        }
        const int own = call.tokens - call.queries + member();
        read_row(number, predicts ? rows + own * call.layout.row_bytes : zeros, core::Fixed<width>{}, query);
      });
      block.sync();
      start(next);

      T registers[most - 1][R], query_registers[most], own_residual[d];
      T response = query[d], states[R];
      MEMFORMER_UNROLL
      for (int k = 0; k < R; ++k) states[k] = x[k][d];
      MEMFORMER_UNROLL
      for (int l = 0; l < most; ++l) {
        if (l >= call.layers) continue;
        T g[d], v[d];
        MEMFORMER_UNROLL
        for (int c = 0; c < d; ++c) {
          g[c] = x[0][c] * states[0];
          MEMFORMER_UNROLL
          for (int k = 1; k < R; ++k) g[c] += x[k][c] * states[k];
        }
        sum(g);
        const T* const a = matrix(l);
        MEMFORMER_UNROLL
        for (int c = 0; c < d; ++c) {
          g[c] = g[c] * scale;
          if (l == 0 || member() == l) own_residual[c] = g[c];
        }
        MEMFORMER_UNROLL
        for (int i = 0; i < d; ++i) v[i] = product(a + i * d, g);
        query_registers[l] = product(query, v);
        response += query_registers[l] * query_gamma[l];
        if (l + 1 >= most || l + 1 >= call.layers) continue;
        MEMFORMER_UNROLL
        for (int k = 0; k < R; ++k) {
          registers[l][k] = product(x[k], v);
          MEMFORMER_UNROLL
          for (int j = 0; j <= l; ++j) states[k] += registers[j][k] * gamma[pair(l, j) + k];
        }
      }

      const T e = predicts ? grad_of(task, response, known, totals[squared_sum]) : T(0);
      T updates[most - 1][R], grads[R], own_grad[d];
      MEMFORMER_UNROLL
      for (int k = 0; k < R; ++k) grads[k] = T(0);
      MEMFORMER_UNROLL
      for (int c = 0; c < d; ++c) own_grad[c] = T(0);
      MEMFORMER_UNROLL
      for (int l = most - 1; l >= 0; --l) {
        if (l >= call.layers) {
          MEMFORMER_UNROLL
          for (int k = 0; l > 0 && k < R; ++k) updates[l - 1][k] = T(0);
          continue;
        }
        totals[query_sums + l] += query_registers[l] * e;
        T dv[d];
        const T query_grad = e * query_gamma[l];
        MEMFORMER_UNROLL
        for (int c = 0; c < d; ++c) dv[c] = query[c] * query_grad;
        if (l + 1 < most && l + 1 < call.layers) {
          MEMFORMER_UNROLL
          for (int k = 0; k < R; ++k) {
            updates[l][k] = grads[k];
            T dr = T(0);
            MEMFORMER_UNROLL
            for (int later = l; later + 1 < most; ++later) {
              dr += updates[later][k] * gamma[pair(later, l) + k];
              totals[pair(later, l) + k] += updates[later][k] * registers[l][k];
            }
            MEMFORMER_UNROLL
            for (int c = 0; c < d; ++c) dv[c] += x[k][c] * dr;
          }
        }
        sum(dv);
        MEMFORMER_UNROLL
        for (int c = 0; c < d; ++c)
          if (member() == l) own_grad[c] = dv[c];
        if (l == 0) continue;
        const T* const a = matrix(l);
        T dg[d];
        MEMFORMER_UNROLL
        for (int c = 0; c < d; ++c) {
          dg[c] = dv[0] * a[c];
          MEMFORMER_UNROLL
          for (int i = 1; i < d; ++i) dg[c] += dv[i] * a[i * d + c];
          dg[c] = dg[c] * scale;
        }
        MEMFORMER_UNROLL
        for (int k = 0; k < R; ++k) grads[k] += product(x[k], dg);
      }
      MEMFORMER_UNROLL
      for (int i = 0; i < d; ++i) {
        MEMFORMER_UNROLL
        for (int j = 0; j < d; ++j) totals[matrix_sums + i * d + j] += own_grad[i] * own_residual[j];
      }
    }

    MEMFORMER_DEVICE int64_t at(const Array& array, int64_t task) const {
      return task * array.stride[0] + member() * array.stride[1];
    }

    // The target of this lane's query, or the gradient of its prediction.
    MEMFORMER_DEVICE T known_of(int64_t task) const {
      if (call.loss) return read_number<T>(call.target, at(call.target, task));
      const Array& grad = call.result;
      return read_number<T>(grad, task * grad.stride[1] + member() * grad.stride[2]);
    }

    // The gradient of its response slot.
    MEMFORMER_DEVICE T grad_of(int64_t task, T response, T known, T& squared) const {
      if (!call.loss) return -known;
      const T error = -response - known, e = -error * call.error_scale;
      squared += error * error;
      if (call.grad_target.data) write_number(call.grad_target, at(call.grad_target, task), e);
      return e;
    }

    MEMFORMER_DEVICE void write_totals(int64_t unit, T (&totals)[sum_numbers]) const {
      T* const sums = memory + space.sums;
      const int* const places = reinterpret_cast<const int*>(memory + space.places);
      const int layers = call.layers, rows = call.gamma_rows, count = call.partials.count;
      T squared = totals[squared_sum];
      for (int mask = 1; mask < warp_threads; mask *= 2) squared += block.shuffle_xor(squared, mask);
      if (block.lane() == 0) sums[count - 1] = squared;
      int first = 0, held = sum_numbers;
      spread_sums<sum_numbers, warp_threads / 2, Members>(block, totals, first, held);
      MEMFORMER_UNROLL
      for (int k = 0; k < spread_count<sum_numbers, warp_threads / 2, Members>(); ++k) {
        const int to = k < held ? places[(first + k) * Members + member()] : -1;
        if (to >= 0) sums[to] = totals[k];
      }
      block.sync();
      T* const gamma = sums + layers * d * d + rows - call.queries;
#pragma unroll 1
      for (int k = block.thread(); k < (layers - 1) * layers * call.queries; k += Block::threads) {
        const int query = k % call.queries, j = k / call.queries % layers, l = k / call.queries / layers;
        if (j <= l) gamma[(l * layers + j) * rows + query] = gamma[((layers - 1) * layers + j) * rows + query];
      }
      block.sync();
      T* const to = call.partials.unit(unit);
#pragma unroll 1
      for (int k = block.thread(); k < count; k += Block::threads) to[k] = sums[k];
      block.sync();
    }
  };
};

}  // namespace memformer::cuda
