// Response-only networks in Gram space on the CPU: one task per lane, tokens read once (twice for their own gradient).
//
// A group is one vector of tasks and belongs to one thread. Bytes per task: its tokens, and whatever result or token
// gradient is asked for. Operations per task (d features, n examples, L layers): n d (d + 3) / 2 for H and b, then
// those of core/response_gram.h.

#include "core/response_gram.h"
#include "cpu/kernels.h"
#include "cpu/lanes/prefetch.h"
#include "cpu/tasks/context_gram.h"
#include "cpu/tasks/long_contexts.h"
#include "cpu/tasks/readout.h"
#include "cpu/tasks/response_sums.h"
#include "cpu/tasks/run_network.h"
#include "cpu/tasks/streamed_gram.h"
#include "cpu/tasks/token_rows.h"

namespace memformer::cpu::MEMFORMER_ISA {
namespace {

// Lfom: one register a layer, gamma in full and no beta, known when compiling.
template <class T, class Extent, bool Lfom>
class ResponseGram {
  using S = Lanes<T>;
  using Width = decltype(core::successor(Extent{}));
  using Task = core::SymmetricQuadratic<S, Extent>;

 public:
  ResponseGram(const Network<T>& network, Extent d)
      : network_(network),
        d_(d),
        width_(core::successor(d)),
        rows_(network),
        readout_(network),
        first_layer_(network.layers - network.result_layers),
        streams_(streams_gram<T, Width> && rows_.is_plain() && !rows_.is_stack() && !network.gram.data &&
                 !network.grad_z.data) {}

  int sums() const {
    const int pairs = network_.diagonal ? network_.layers : network_.layers * network_.layers;
    return a_count() + (network_.gamma ? pairs * network_.kept : 0) +
           (network_.beta ? network_.layers * network_.kept : 0) + 1;
  }

  std::size_t scratch_cells() const {
    return static_cast<std::size_t>(rows_.cells()) + waiting_cells(rows_.context_count(), width_) + trace_cells() +
           network_.layers * d_ + 2 * core::gram_block * width_;
  }

  void operator()(Tasks tasks, S* sums, S* scratch) {
    const int prefetch_steps =
        4 + (network_.pass == Pass::backward || network_.pass == Pass::loss_backward ? network_.layers : 0);
    S* const tile = scratch;
    S* const waiting = tile + rows_.cells();
    S* const trace_cells_begin = waiting + waiting_cells(rows_.context_count(), width_);
    S* const outer = trace_cells_begin + trace_cells();
    S* const buffer = outer + network_.layers * d_;

    prefetch_.begin(network_.gram.data ? network_.gram : network_.z, tasks);
    prefetch_.advance(1, prefetch_steps);
    S matrix[core::packed_size(Width::limit)];
    sum_context_of(tasks, tile, waiting, buffer, matrix);
    prefetch_.advance(3, prefetch_steps);
    const S scale = S(T(1)) / rows_.count();
    const core::FirstOrder<T> method = this->method();
    Task task;
    task.extent = d_;
    const int d = d_;
    MEMFORMER_UNROLL
    for (int k = 0; k < core::packed_size(d); ++k) task.h[k] = matrix[k] * scale;
    MEMFORMER_UNROLL
    for (int c = 0; c < d; ++c) task.b[c] = matrix[core::packed_size(d_) + c] * scale;

    const core::ResponseTrace<S, Extent, 1> trace{{trace_cells_begin}, network_.layers, network_.kept, d_};
    S s[Extent::limit];
    MEMFORMER_UNROLL
    for (int c = 0; c < d; ++c) s[c] = S(T(0));
    core::response_forward<false>(task, method, s, trace);

    prefetch_.advance(4, prefetch_steps);
    readout_.begin(tasks);
    if (network_.pass == Pass::forward) {
      write_result(tasks, trace, buffer);
      return;
    }
    read_errors(trace, outer, &sums[this->sums() - 1], buffer);
    if (network_.pass == Pass::loss) return;

    ResponseSums<S> sink{sums, sums + a_count(),
                         sums + this->sums() - 1 - (network_.beta ? network_.layers * network_.kept : 0)};
    Task grad;
    grad.extent = d_;
    const bool wants_z = network_.grad_z.data || network_.grad_gram.data;
    if (wants_z) {
      for (int k = 0; k < core::packed_size(d); ++k) grad.h[k] = S(T(0));
      for (int c = 0; c < d; ++c) grad.b[c] = S(T(0));
    }
    core::response_backward<false>(
        task, method, trace,
        [&, d](int l, S* ds) {
          prefetch_.advance(prefetch_steps - l, prefetch_steps);
          if (l < first_layer_) return;
          MEMFORMER_UNROLL
          for (int c = 0; c < d; ++c) ds[c] += outer[(l - first_layer_) * d_ + c];
        },
        sink, s, wants_z ? &grad : nullptr);
    if (wants_z) write_token_grads(tasks, trace, grad, scale, buffer);
  }

 private:
  int a_count() const { return network_.layers * network_.kept * d_ * d_; }
  int trace_cells() const { return core::ResponseTrace<S, Extent, 1>::size(network_.layers, network_.kept, d_); }

  // Constants where they are known, so that the compiler leaves out what they rule out.
  MEMFORMER_INLINE core::FirstOrder<T> method() const {
    if constexpr (Lfom) {
      if (!network_.gamma) __builtin_unreachable();
      return {{network_.layers, 1, false, 1, 1, network_.gamma, nullptr}, network_.q};
    } else {
      return {network_.coefficients(), network_.q};
    }
  }

  // The Gram matrix of the context; tokens that will be read again end in the tile.
  MEMFORMER_INLINE void sum_context_of(Tasks tasks, S* tile, S* waiting, S* buffer, S* matrix) {
    if constexpr (streams_gram<T, Width>) {
      if (streams_ && tasks.active == S::width) {
        rows_.begin_results(tasks, tile);
        const auto block = [&](int first, int count, S* to) {
          stream_block<T>(network_.z, tasks, first, count, width_, to);
        };
        sum_blocks(rows_.context_count(), width_, block, waiting, matrix);
        return;
      }
    }
    if (network_.gram.data) {
      rows_.begin_results(tasks, tile);
      load_packed(network_.gram, tasks, width_, buffer, matrix);
      return;
    }
    rows_.begin(tasks, tile);
    sum_context(
        rows_.context_count(), width_, [&](int first, int count) { return rows_.context(first, count); }, waiting,
        matrix);
  }

  // The response slot of a row after layer l: y + x . s_{l+1}.
  template <class Trace>
  MEMFORMER_INLINE S response(const S* row, const Trace& trace, int l) const {
    const int d = d_;
    const auto state = trace.state(l + 1);
    S sum = row[d_];
    MEMFORMER_UNROLL
    for (int c = 0; c < d; ++c) sum += row[c] * state[c];
    return sum;
  }

  template <class Trace>
  void write_result(Tasks tasks, const Trace& trace, S* buffer) {
    const int d = d_;
    for (int first = 0; first < rows_.out_count(); first += core::gram_block) {
      checkpoint_at_row(first);
      const int count = readout_.block(first);
      const S* const rows = rows_.out(first, count);
      if (rows_.is_stack()) {
        for (int i = 0; i < count; ++i) {
          for (int c = 0; c < d; ++c) buffer[i * width_ + c] = rows[i * width_ + c];
          buffer[i * width_ + d_] = response(rows + i * width_, trace, network_.layers - 1);
        }
        store_rows(buffer, network_.result, tasks, first, count, width_);
        continue;
      }
      for (int l = first_layer_; l < network_.layers; ++l) {
        for (int i = 0; i < count; ++i)
          readout_.predict(l - first_layer_, first + i, -response(rows + i * width_, trace, l));
      }
    }
  }

  // outer[l] = sum over rows of the gradient e of their response slot times their features; squared errors, for a loss.
  template <class Trace>
  void read_errors(const Trace& trace, S* outer, S* squared, S* buffer) {
    const int d = d_;
    for (int k = 0; k < network_.result_layers * d_; ++k) outer[k] = S(T(0));
    for (int first = 0; first < rows_.out_count(); first += core::gram_block) {
      checkpoint_at_row(first);
      const int count = readout_.block(first);
      const S* const rows = rows_.out(first, count);
      if (rows_.is_stack()) readout_.load_grads(first, count, buffer);
      for (int l = first_layer_; l < network_.layers; ++l) {
        S sum[Extent::limit];
        MEMFORMER_UNROLL
        for (int c = 0; c < d; ++c) sum[c] = outer[(l - first_layer_) * d_ + c];
        for (int i = 0; i < count; ++i) {
          const S* const row = rows + i * width_;
          S e;
          if (rows_.is_stack()) {
            e = buffer[i * width_ + d_];
          } else if (readout_.is_loss()) {
            const S error = readout_.error(first + i, response(row, trace, l));
            *squared += error * error;
            e = readout_.grad_of_error(first + i, error);
          } else {
            e = readout_.grad(l - first_layer_, first + i);
          }
          MEMFORMER_UNROLL
          for (int c = 0; c < d; ++c) sum[c] += e * row[c];
        }
        MEMFORMER_UNROLL
        for (int c = 0; c < d; ++c) outer[(l - first_layer_) * d_ + c] = sum[c];
      }
    }
  }

  // Rows of the context get (dG + dG^T) z / n, rows with a result e s in their features and e in their response slot.
  template <class Trace>
  void write_token_grads(Tasks tasks, const Trace& trace, const Task& grad, S scale, S* buffer) {
    const int d = d_, width = width_;
    S symmetric[core::packed_size(Width::limit)];
    for (int k = 0; k < core::packed_size(d); ++k) symmetric[k] = grad.h[k] * scale;
    for (int c = 0; c < d; ++c) symmetric[core::packed_size(d_) + c] = grad.b[c] * scale;
    symmetric[core::packed_size(width_) - 1] = S(T(0));
    S* const incoming = buffer + core::gram_block * width_;
    if (network_.grad_gram.data) store_half(symmetric, tasks, width, buffer, network_.grad_gram);
    if (!network_.grad_z.data) return;
    for (int first = 0; !network_.grad_gram.data && first < rows_.context_count(); first += core::gram_block) {
      checkpoint_at_row(first);
      const int left = rows_.context_count() - first;
      const int count = left < core::gram_block ? left : core::gram_block;
      const S* const rows = rows_.context(first, count);
      for (int i = 0; i < count; ++i) {
        for (int c = 0; c < width; ++c) buffer[i * width_ + c] = S(T(0));
        core::add_gram_grad(symmetric, core::Cells<const S>{rows + i * width_}, width_,
                            core::Cells<S>{buffer + i * width_});
        for (int c = 0; c < width; ++c) buffer[i * width_ + c] = rows_.labelled(first + i, buffer[i * width_ + c]);
      }
      if (rows_.is_stack()) {
        readout_.load_grads(first, count, incoming);
        const S* const own = rows_.out(first, count);
        for (int i = 0; i < count; ++i)
          add_out_grad(trace, first + i, own + i * width_, incoming + i * width_, buffer + i * width_);
      }
      store_rows(buffer, network_.grad_z, tasks, first, count, width_);
    }
    const int padding = rows_.out_first() - rows_.context_count();
    if (padding > 0) store_zeros<T>(network_.grad_z, tasks, rows_.context_count(), padding, width_);
    for (int first = rows_.is_stack() ? rows_.context_count() : 0; first < rows_.out_count();
         first += core::gram_block) {
      checkpoint_at_row(first);
      const int count = readout_.block(first);
      const S* const rows = rows_.out(first, count);
      if (rows_.is_stack()) readout_.load_grads(first, count, incoming);
      for (int i = 0; i < count; ++i) {
        for (int c = 0; c < width; ++c) buffer[i * width_ + c] = S(T(0));
        add_out_grad(trace, first + i, rows + i * width_, incoming + i * width_, buffer + i * width_);
      }
      store_rows(buffer, network_.grad_z, tasks, rows_.out_first() + first, count, width_);
    }
  }

  template <class Trace>
  MEMFORMER_INLINE void add_out_grad(const Trace& trace, int index, const S* row, const S* incoming, S* grad) const {
    const int d = d_;
    for (int l = first_layer_; l < network_.layers; ++l) {
      S e;
      if (rows_.is_stack()) {
        for (int c = 0; c < d; ++c) grad[c] += incoming[c];
        e = incoming[d_];
      } else if (readout_.is_loss()) {
        e = readout_.grad_of_error(readout_.error(index, response(row, trace, l)));
      } else {
        e = readout_.grad(l - first_layer_, index);
      }
      for (int c = 0; c < d; ++c) grad[c] += e * trace.state(l + 1)[c];
      grad[d_] += e;
    }
  }

  const Network<T>& network_;
  Extent d_;
  Width width_;
  TokenRows<T> rows_;
  Readout<T> readout_;
  Prefetch<T> prefetch_;
  int first_layer_;
  bool streams_;
};

template <class T>
void run(const Network<T>& network, ParallelFor parallel) {
  with_long_contexts(network, parallel, [&](const Network<T>& call) {
    with_features(call, [&](auto d) {
      with_lfom<decltype(d)>(call, true, [&](auto lfom) {
        run_network(call, ResponseGram<T, decltype(d), lfom.value>(call, d), parallel);
      });
    });
  });
}

}  // namespace

void response_gram(const Network<float>& network, ParallelFor parallel) { run(network, parallel); }

void response_gram(const Network<double>& network, ParallelFor parallel) { run(network, parallel); }

}  // namespace memformer::cpu::MEMFORMER_ISA
