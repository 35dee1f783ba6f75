// Response-only networks in token space on the CPU: one task per lane, its tokens in cache for all layers.
//
// A group is one vector of tasks and belongs to one thread. Bytes per task: its tokens, and whatever result or token
// gradient is asked for. Operations per task: those of core/response_tokens.h.

#include "core/response_tokens.h"
#include "cpu/kernels.h"
#include "cpu/lanes/prefetch.h"
#include "cpu/tasks/response_sums.h"
#include "cpu/tasks/run_network.h"
#include "cpu/tasks/token_group.h"

namespace memformer::cpu::MEMFORMER_ISA {
namespace {

// Lfom: one register a layer, gamma in full and along the rows, no beta and contexts of one length, known when
// compiling.
template <class T, class Extent, bool Lfom>
class ResponseTokens {
  using S = Lanes<T>;
  using Trace = core::TokenTrace<S, Extent, 1>;

 public:
  ResponseTokens(const Network<T>& network, Extent d) : network_(network), d_(d), tokens_(network) {}

  int sums() const {
    const int places = network_.layers * network_.kept;
    const int gamma = network_.gamma ? places * (network_.diagonal ? 1 : network_.layers) * network_.gamma_rows : 0;
    const int beta = network_.beta ? places * network_.beta_rows : 0;
    return places * d_ * d_ + gamma + beta + 1;
  }

  std::size_t scratch_cells() const {
    const int rows = tokens_.rows(), width = network_.width;
    return static_cast<std::size_t>(rows) * width + Trace::size(network_.layers, network_.kept, rows, d_) + rows +
           tokens_.error_cells() + (network_.grad_z.data || tokens_.is_stack() ? rows * width : 0);
  }

  void operator()(Tasks tasks, S* sums, S* scratch) {
    const int rows = tokens_.rows(), width = network_.width, layers = network_.layers;
    S* const z = scratch;
    S* const cells = z + rows * width;
    S* const ds = cells + Trace::size(layers, network_.kept, rows, d_);
    S* const errors = ds + rows;
    S* const grad = errors + tokens_.error_cells();

    const core::TokenMethod<T> method = this->method();
    prefetch_.begin(network_.z, tasks);
    tokens_.load(tasks, z);
    const core::TokenTask<S, Extent, 1> task{{z},
                                             d_,
                                             rows,
                                             tokens_.context(),
                                             tokens_.is_stack() ? 0 : tokens_.out_row(),
                                             !Lfom && tokens_.masks(),
                                             tokens_.count(),
                                             S(T(1)) / tokens_.count()};
    const Trace trace{{cells}, layers, network_.kept, rows, d_};
    S* const squared = sums + this->sums() - 1;
    core::token_forward(task, method, trace, [&](int l) {
      prefetch_.advance(l + 1, 2 * layers);
      tokens_.read_out(l, trace.state(l + 1).data + tokens_.out_row(), 1, errors, squared);
    });
    if (network_.pass == Pass::forward) {
      if (tokens_.is_stack()) {
        for (int i = 0; i < rows; ++i) {
          for (int c = 0; c < d_; ++c) grad[i * width + c] = z[i * width + c];
          grad[i * width + d_] = trace.state(layers)[i];
        }
        store_rows(grad, network_.result, tasks, 0, rows, width);
      }
      return;
    }
    if (network_.pass == Pass::loss) return;

    ResponseSums<S> sink{sums, sums + layers * network_.kept * d_ * d_,
                         squared - (network_.beta ? layers * network_.kept * network_.beta_rows : 0)};
    const bool wants_z = network_.grad_z.data != nullptr;
    if (tokens_.is_stack()) {
      load_rows(network_.result, tasks, 0, rows, width, grad);
      for (int i = 0; i < rows; ++i) {
        errors[i] = grad[i * width + d_];
        grad[i * width + d_] = S(T(0));
      }
    } else if (wants_z) {
      for (int k = 0; k < rows * width; ++k) grad[k] = S(T(0));
    }
    core::token_backward(
        task, method, trace,
        [&](int l, core::Cells<S> to) {
          prefetch_.advance(2 * layers - l, 2 * layers);
          tokens_.add_outer(l, errors, to.data + tokens_.out_row(), 1);
        },
        sink, core::Cells<S>{ds}, core::Cells<S>{wants_z ? grad : nullptr});
    if (wants_z) tokens_.store_grad(grad);
  }

 private:
  // Constants where they are known, so that the compiler leaves out what they rule out.
  MEMFORMER_INLINE core::TokenMethod<T> method() const {
    if constexpr (Lfom) {
      if (!network_.gamma || network_.gamma_rows < 2) __builtin_unreachable();
      return {{network_.layers, 1, false, network_.gamma_rows, 1, network_.gamma, nullptr}, network_.q};
    } else {
      return {network_.coefficients(), network_.q};
    }
  }

  const Network<T>& network_;
  Extent d_;
  TokenGroup<T> tokens_;
  Prefetch<T> prefetch_;
};

template <class T>
void run(const Network<T>& network, ParallelFor parallel) {
  with_features(network, [&](auto d) {
    with_lfom<decltype(d)>(network, network.gamma_rows > 1 && !network.lengths, [&](auto lfom) {
      run_network(network, ResponseTokens<T, decltype(d), lfom.value>(network, d), parallel);
    });
  });
}

}  // namespace

void response_tokens(const Network<float>& network, ParallelFor parallel) { run(network, parallel); }

void response_tokens(const Network<double>& network, ParallelFor parallel) { run(network, parallel); }

}  // namespace memformer::cpu::MEMFORMER_ISA
