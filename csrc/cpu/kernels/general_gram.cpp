// Networks with any P and Q in Gram space on the CPU: one task per lane, tokens read once (twice for their own
// gradient).
//
// A group is one vector of tasks and belongs to one thread. Bytes per task: its tokens, and whatever result or token
// gradient is asked for. Operations per task: n D (D + 1) / 2 multiply-adds for the Gram matrix, then those of
// core/general_gram.h.

#include "core/general_gram.h"
#include "core/parameter_sums.h"

#include "cpu/kernels.h"
#include "cpu/tasks/context_gram.h"
#include "cpu/tasks/long_contexts.h"
#include "cpu/tasks/readout.h"
#include "cpu/tasks/run_network.h"
#include "cpu/tasks/token_rows.h"

namespace memformer::cpu::MEMFORMER_ISA {
namespace {

template <class T, class Shape>
class GeneralGram {
  using S = Lanes<T>;
  using Cells = core::Cells<S>;
  static constexpr int width_limit = decltype(Shape{}.width())::limit;

 public:
  GeneralGram(const Network<T>& network, Shape shape)
      : network_(network),
        shape_(shape),
        parameters_{network.coefficients(), network.heads, network.q, network.p},
        counts_(core::counts_of(parameters_, shape.head(), shape.width())),
        rows_(network),
        readout_(network),
        backward_(network.pass == Pass::backward || network.pass == Pass::loss_backward),
        first_layer_(network.layers - network.result_layers) {}

  // Gradients of the parameters, and the squared error.
  int sums() const { return counts_.all() + 1; }

  std::size_t scratch_cells() const {
    return static_cast<std::size_t>(rows_.cells()) + waiting_cells(rows_.context_count(), shape_.width()) +
           trace_cells() + core::general_gram_scratch(shape_, backward_) + 2 * read_cells() +
           2 * core::gram_block * shape_.width();
  }

  void operator()(Tasks tasks, S* sums, S* scratch) {
    const int width = shape_.width();
    S* const tile = scratch;
    S* const waiting = tile + rows_.cells();
    S* const trace_begin = waiting + waiting_cells(rows_.context_count(), shape_.width());
    S* const work = trace_begin + trace_cells();
    S* const read = work + core::general_gram_scratch(shape_, backward_);
    S* const outer = read + read_cells();
    S* const buffer = outer + read_cells();

    readout_.begin(tasks);
    S gram[core::packed_size(width_limit)];
    if (network_.gram.data) {
      rows_.begin_results(tasks, tile);
      load_packed(network_.gram, tasks, width, buffer, gram);
    } else {
      rows_.begin(tasks, tile);
      sum_context(
          rows_.context_count(), shape_.width(), [&](int first, int count) { return rows_.context(first, count); },
          waiting, gram);
    }
    const S scale = S(T(1)) / rows_.count();
    for (int k = 0; k < core::packed_size(width); ++k) gram[k] = gram[k] * scale;
    const core::Trace<S, 1> trace(Cells{trace_begin}, parameters_, shape_.size(), backward_);
    core::general_gram_forward(shape_, parameters_, Cells{gram}, trace, Cells{work},
                               [&](int l, Cells state) { keep_read(l, state, read); });
    if (network_.pass == Pass::forward) {
      write_result(tasks, read, buffer);
      return;
    }
    read_errors(read, outer, &sums[counts_.all()], buffer);
    if (network_.pass == Pass::loss) return;

    core::ParameterSums<S> sink = counts_.from(sums);
    S grad[core::packed_size(width_limit)];
    const bool wants_z = network_.grad_z.data || network_.grad_gram.data;
    for (int k = 0; wants_z && k < core::packed_size(width); ++k) grad[k] = S(T(0));
    core::general_gram_backward(
        shape_, parameters_, Cells{gram}, trace, Cells{work}, [&](int l, Cells to) { add_outer(l, outer, to); }, sink,
        Cells{wants_z ? grad : nullptr});
    if (!wants_z) return;
    for (int k = 0; k < core::packed_size(width); ++k) grad[k] = grad[k] * scale;
    write_token_grads(tasks, read, grad, buffer);
  }

 private:
  int trace_cells() const { return core::Trace<S, 1>::count(parameters_, shape_.size(), backward_); }

  // What the result needs of the states: all of the last for tokens, the last columns of `result_layers` for
  // predictions.
  int read_cells() const { return rows_.is_stack() ? shape_.size() : network_.result_layers * shape_.rows; }

  void keep_read(int l, Cells state, S* read) const {
    const int width = shape_.width();
    if (rows_.is_stack()) {
      if (l + 1 < network_.layers) return;
      for (int k = 0; k < shape_.size(); ++k) read[k] = state[k];
    } else if (l >= first_layer_) {
      S* const column = read + (l - first_layer_) * shape_.rows;
      for (int k = 0; k < shape_.rows; ++k) column[k] = state[k * width + width - 1];
    }
  }

  void add_outer(int l, const S* outer, Cells grad) const {
    const int width = shape_.width();
    if (rows_.is_stack()) {
      if (l + 1 < network_.layers) return;
      for (int k = 0; k < shape_.size(); ++k) grad[k] += outer[k];
    } else if (l >= first_layer_) {
      const S* const column = outer + (l - first_layer_) * shape_.rows;
      for (int k = 0; k < shape_.rows; ++k) grad[k * width + width - 1] += column[k];
    }
  }

  // The response slot of a row after the layer whose last column is given.
  MEMFORMER_INLINE S response(const S* row, const S* column) const {
    S sum = row[0] * column[0];
    for (int k = 1; k < shape_.rows; ++k) sum += row[k] * column[k];
    if constexpr (Shape::block) sum += row[shape_.rows];
    return sum;
  }

  void write_result(Tasks tasks, const S* read, S* buffer) {
    const int width = shape_.width();
    for (int first = 0; first < rows_.out_count(); first += core::gram_block) {
      checkpoint_at_row(first);
      const int count = readout_.block(first);
      const S* const rows = rows_.out(first, count);
      if (rows_.is_stack()) {
        const core::Matrix<const S, 1> tokens{{rows}, width};
        const core::Matrix<const S, 1> state{{read}, width};
        core::product<S>(count, shape_.rows, shape_.width(), core::Matrix<S, 1>{{buffer}, width}, tokens, state);
        if constexpr (Shape::block) {
          for (int i = 0; i < count; ++i) buffer[i * width + width - 1] += rows[i * width + width - 1];
        }
        store_rows(buffer, network_.result, tasks, first, count, width);
        continue;
      }
      for (int l = 0; l < network_.result_layers; ++l) {
        for (int i = 0; i < count; ++i)
          readout_.predict(l, first + i, -response(rows + i * width, read + l * shape_.rows));
      }
    }
  }

  // The gradient of a prediction's response slot; for a loss it is made of the error.
  MEMFORMER_INLINE S slot_grad(int l, int query, const S* row, const S* read) const {
    if (!readout_.is_loss()) return readout_.grad(l, query);
    return readout_.grad_of_error(readout_.error(query, response(row, read + l * shape_.rows)));
  }

  // outer = the gradient of what `read` holds; squared errors, for a loss.
  void read_errors(const S* read, S* outer, S* squared, S* buffer) {
    const int width = shape_.width();
    for (int k = 0; k < read_cells(); ++k) outer[k] = S(T(0));
    for (int first = 0; first < rows_.out_count(); first += core::gram_block) {
      checkpoint_at_row(first);
      const int count = readout_.block(first);
      const S* const rows = rows_.out(first, count);
      if (rows_.is_stack()) {
        readout_.load_grads(first, count, buffer);
        const core::Transposed tokens{core::Matrix<const S, 1>{{rows}, width}};
        const core::Matrix<S, 1> incoming{{buffer}, width};
        core::product<S>(shape_.rows, count, shape_.width(), core::Adding{core::Matrix<S, 1>{{outer}, width}}, tokens,
                         incoming);
        continue;
      }
      for (int l = 0; l < network_.result_layers; ++l) {
        S* const column = outer + l * shape_.rows;
        for (int i = 0; i < count; ++i) {
          const S* const row = rows + i * width;
          S e;
          if (readout_.is_loss()) {
            const S error = readout_.error(first + i, response(row, read + l * shape_.rows));
            *squared += error * error;
            e = readout_.grad_of_error(first + i, error);
          } else {
            e = readout_.grad(l, first + i);
          }
          for (int k = 0; k < shape_.rows; ++k) column[k] += e * row[k];
        }
      }
    }
  }

  // Rows of the context get C z / n, rows with a result what reaches them through Z_0 T.
  void write_token_grads(Tasks tasks, const S* read, const S* symmetric, S* buffer) {
    const int width = shape_.width();
    S* const incoming = buffer + core::gram_block * width;
    if (network_.grad_gram.data) store_half(symmetric, tasks, width, buffer, network_.grad_gram);
    if (!network_.grad_z.data) return;
    for (int first = 0; !network_.grad_gram.data && first < rows_.context_count(); first += core::gram_block) {
      checkpoint_at_row(first);
      const int left = rows_.context_count() - first;
      const int count = left < core::gram_block ? left : core::gram_block;
      const S* const rows = rows_.context(first, count);
      for (int i = 0; i < count; ++i) {
        for (int c = 0; c < width; ++c) buffer[i * width + c] = S(T(0));
        core::add_gram_grad(symmetric, core::Cells<const S>{rows + i * width}, shape_.width(),
                            Cells{buffer + i * width});
        for (int c = 0; c < width; ++c) buffer[i * width + c] = rows_.labelled(first + i, buffer[i * width + c]);
      }
      if (rows_.is_stack()) add_result_grads(read, first, count, incoming, buffer);
      store_rows(buffer, network_.grad_z, tasks, first, count, width);
    }
    const int padding = rows_.out_first() - rows_.context_count();
    if (padding > 0) store_zeros<T>(network_.grad_z, tasks, rows_.context_count(), padding, width);
    for (int first = rows_.is_stack() ? rows_.context_count() : 0; first < rows_.out_count();
         first += core::gram_block) {
      checkpoint_at_row(first);
      const int count = readout_.block(first);
      for (int k = 0; k < count * width; ++k) buffer[k] = S(T(0));
      add_result_grads(read, first, count, incoming, buffer);
      store_rows(buffer, network_.grad_z, tasks, rows_.out_first() + first, count, width);
    }
  }

  // Adds the gradients that reach rows [first, first + count) from their own results.
  void add_result_grads(const S* read, int first, int count, S* incoming, S* grads) {
    const int width = shape_.width();
    if (rows_.is_stack()) {
      readout_.load_grads(first, count, incoming);
      const core::Matrix<S, 1> given{{incoming}, width};
      const core::Transposed state{core::Matrix<const S, 1>{{read}, width}};
      core::product<S>(count, shape_.width(), shape_.rows, core::Adding{core::Matrix<S, 1>{{grads}, width}}, given,
                       state);
      if constexpr (Shape::block) {
        for (int i = 0; i < count; ++i) grads[i * width + width - 1] += incoming[i * width + width - 1];
      }
      return;
    }
    const S* const rows = rows_.out(first, count);
    for (int l = 0; l < network_.result_layers; ++l) {
      const S* const column = read + l * shape_.rows;
      for (int i = 0; i < count; ++i) {
        const S e = slot_grad(l, first + i, rows + i * width, read);
        for (int k = 0; k < shape_.rows; ++k) grads[i * width + k] += e * column[k];
        if constexpr (Shape::block) grads[i * width + width - 1] += e;
      }
    }
  }

  const Network<T>& network_;
  Shape shape_;
  core::Parameters<T> parameters_;
  core::ParameterCounts counts_;
  TokenRows<T> rows_;
  Readout<T> readout_;
  bool backward_;
  int first_layer_;
};

template <class T>
void run(const Network<T>& network, ParallelFor parallel) {
  with_long_contexts(network, parallel, [&](const Network<T>& call) {
    with_shape(call, [&](auto shape) { run_network(call, GeneralGram<T, decltype(shape)>(call, shape), parallel); });
  });
}

}  // namespace

void general_gram(const Network<float>& network, ParallelFor parallel) { run(network, parallel); }

void general_gram(const Network<double>& network, ParallelFor parallel) { run(network, parallel); }

}  // namespace memformer::cpu::MEMFORMER_ISA
