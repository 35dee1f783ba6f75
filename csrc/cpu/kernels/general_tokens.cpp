// Networks with any P and Q in token space on the CPU: one task per lane, its tokens in cache for all layers.
//
// A group is one vector of tasks and belongs to one thread. Bytes per task: its tokens, and whatever result or token
// gradient is asked for. Operations per task: those of core/general_tokens.h.

#include "core/general_tokens.h"
#include "core/parameter_sums.h"

#include "cpu/kernels.h"
#include "cpu/tasks/run_network.h"
#include "cpu/tasks/token_group.h"

namespace memformer::cpu::MEMFORMER_ISA {
namespace {

template <class T, class Shape>
class GeneralTokens {
  using S = Lanes<T>;
  using Cells = core::Cells<S>;

 public:
  GeneralTokens(const Network<T>& network, Shape shape)
      : network_(network),
        shape_(shape),
        parameters_{network.coefficients(), network.heads, network.q, network.p},
        counts_(core::counts_of(parameters_, shape.head(), shape.width())),
        tokens_(network),
        backward_(network.pass == Pass::backward || network.pass == Pass::loss_backward) {}

  // Gradients of the parameters, and the squared error.
  int sums() const { return counts_.all() + 1; }

  std::size_t scratch_cells() const {
    return static_cast<std::size_t>(trace_cells()) + work_cells() + tokens_.error_cells();
  }

  void operator()(Tasks tasks, S* sums, S* scratch) {
    const int rows = tokens_.rows(), width = shape_.width(), layers = network_.layers;
    S* const work = scratch + trace_cells();
    S* const errors = work + work_cells();
    const int slot = tokens_.out_row() * width + width - 1;

    const core::Trace<S, 1> trace(Cells{scratch}, parameters_, rows * width, backward_);
    tokens_.load(tasks, trace.state(0).data);
    const core::Labelled<S> labelled{tokens_.context(), tokens_.masks(), tokens_.count(), S(T(1)) / tokens_.count()};
    core::general_tokens_forward(shape_, parameters_, labelled, rows, trace, Cells{work}, [&](int l, Cells state) {
      tokens_.read_out(l, state.data + slot, width, errors, &sums[counts_.all()]);
    });
    if (network_.pass == Pass::forward) {
      if (tokens_.is_stack()) store_rows(trace.state(layers).data, network_.result, tasks, 0, rows, width);
      return;
    }
    if (network_.pass == Pass::loss) return;

    core::ParameterSums<S> sink = counts_.from(sums);
    const auto add_outer = [&](int l, Cells grad) {
      if (!tokens_.is_stack()) {
        tokens_.add_outer(l, errors, grad.data + slot, width);
      } else if (l + 1 == layers) {
        load_rows(network_.result, tasks, 0, rows, width, grad.data);
      }
    };
    const Cells grad =
        core::general_tokens_backward(shape_, parameters_, labelled, rows, trace, Cells{work}, add_outer, sink);
    if (network_.grad_z.data) tokens_.store_grad(grad.data);
  }

 private:
  int trace_cells() const { return core::Trace<S, 1>::count(parameters_, tokens_.rows() * shape_.width(), backward_); }
  int work_cells() const { return core::general_tokens_scratch(shape_, tokens_.rows(), tokens_.masks(), backward_); }

  const Network<T>& network_;
  Shape shape_;
  core::Parameters<T> parameters_;
  core::ParameterCounts counts_;
  TokenGroup<T> tokens_;
  bool backward_;
};

template <class T>
void run(const Network<T>& network, ParallelFor parallel) {
  with_shape(network,
             [&](auto shape) { run_network(network, GeneralTokens<T, decltype(shape)>(network, shape), parallel); });
}

}  // namespace

void general_tokens(const Network<float>& network, ParallelFor parallel) { run(network, parallel); }

void general_tokens(const Network<double>& network, ParallelFor parallel) { run(network, parallel); }

}  // namespace memformer::cpu::MEMFORMER_ISA
