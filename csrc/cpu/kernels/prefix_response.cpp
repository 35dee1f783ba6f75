// Response-only networks on every prefix of their tasks on the CPU: one task per lane, tokens read once (twice for
// their own gradient).
//
// A group is one vector of tasks and belongs to one thread. Bytes per task: its tokens, and whatever result, target or
// token gradient is asked for. Operations per task (d features, N tokens, the shortest prefix of n): N d (d + 3) / 2
// for the running H and b, then N - n times those of core/response_gram.h.

#include "core/response_gram.h"
#include "cpu/kernels.h"
#include "cpu/tasks/prefixes.h"
#include "cpu/tasks/response_sums.h"
#include "cpu/tasks/run_network.h"

namespace memformer::cpu::MEMFORMER_ISA {
namespace {

// Lfom: one register a layer, gamma in full and no beta, known when compiling.
template <class T, class Extent, bool Lfom>
class ResponseLayers {
  using S = Lanes<T>;
  using Task = core::SymmetricQuadratic<S, Extent>;
  using Trace = core::ResponseTrace<S, Extent, 1>;

 public:
  using Width = decltype(core::successor(Extent{}));
  static constexpr bool reads_all = false;

  ResponseLayers(const Network<T>& network, Extent d) : network_(network), d_(d) {}

  Width width() const { return core::successor(d_); }

  int sums() const { return a_count() + gamma_count() + beta_count(); }

  std::size_t scratch_cells() const { return static_cast<std::size_t>(trace_cells()) + network_.result_layers * d_; }

  template <class Read>
  MEMFORMER_INLINE void operator()(const S* gram, S scale, const S* row, Read read, S* sums, S* grad, S* direct,
                                   S* scratch) const {
    const int d = d_, first_layer = network_.layers - network_.result_layers;
    Task task;
    task.extent = d_;
    MEMFORMER_UNROLL
    for (int k = 0; k < core::packed_size(d); ++k) task.h[k] = gram[k] * scale;
    MEMFORMER_UNROLL
    for (int c = 0; c < d; ++c) task.b[c] = gram[core::packed_size(d_) + c] * scale;
    const core::FirstOrder<T> method = this->method();
    const Trace trace{{scratch}, network_.layers, network_.kept, d_};
    S* const outer = scratch + trace_cells();
    S s[Extent::limit];
    MEMFORMER_UNROLL
    for (int c = 0; c < d; ++c) s[c] = S(T(0));
    core::response_forward<false>(task, method, s, trace);
    for (int l = first_layer; l < network_.layers; ++l) {
      const auto state = trace.state(l + 1);
      S response = row[0] * state[0];
      MEMFORMER_UNROLL
      for (int c = 1; c < d; ++c) response += row[c] * state[c];
      const S e = read(l - first_layer, response);
      if (!sums) continue;
      MEMFORMER_UNROLL
      for (int c = 0; c < d; ++c) outer[(l - first_layer) * d + c] = e * row[c];
      if (!direct) continue;
      for (int c = 0; c < d; ++c) direct[c] = l == first_layer ? e * state[c] : direct[c] + e * state[c];
    }
    if (!sums) return;
    ResponseSums<S> sink{sums, sums + a_count(), sums + a_count() + gamma_count()};
    Task task_grad;
    task_grad.extent = d_;
    if (grad) {
      for (int k = 0; k < core::packed_size(d); ++k) task_grad.h[k] = S(T(0));
      for (int c = 0; c < d; ++c) task_grad.b[c] = S(T(0));
    }
    core::response_backward<false>(
        task, method, trace,
        [&, d](int l, S* ds) {
          if (l < first_layer) return;
          MEMFORMER_UNROLL
          for (int c = 0; c < d; ++c) ds[c] += outer[(l - first_layer) * d_ + c];
        },
        sink, s, grad ? &task_grad : nullptr);
    if (!grad) return;
    for (int k = 0; k < core::packed_size(d); ++k) grad[k] = task_grad.h[k] * scale;
    for (int c = 0; c < d; ++c) grad[core::packed_size(d_) + c] = task_grad.b[c] * scale;
    grad[core::packed_size(d_ + 1) - 1] = S(T(0));
  }

 private:
  int a_count() const { return network_.layers * network_.kept * d_ * d_; }
  int gamma_count() const {
    const int pairs = network_.diagonal ? network_.layers : network_.layers * network_.layers;
    return network_.gamma ? pairs * network_.kept : 0;
  }
  int beta_count() const { return network_.beta ? network_.layers * network_.kept : 0; }
  int trace_cells() const { return Trace::size(network_.layers, network_.kept, d_); }

  // Constants where they are known, so that the compiler leaves out what they rule out.
  MEMFORMER_INLINE core::FirstOrder<T> method() const {
    if constexpr (Lfom) {
      if (!network_.gamma) __builtin_unreachable();
      return {{network_.layers, 1, false, 1, 1, network_.gamma, nullptr}, network_.q};
    } else {
      return {network_.coefficients(), network_.q};
    }
  }

  const Network<T>& network_;
  Extent d_;
};

template <class T, class Extent>
void run(const Network<T>& network, Extent d, ParallelFor parallel) {
  with_lfom<Extent>(network, true, [&](auto lfom) {
    using Layers = ResponseLayers<T, Extent, lfom.value>;
    run_network(network, Prefixes<T, Layers>(network, Layers(network, d)), parallel);
  });
}

template <class T>
void run(const Network<T>& network, ParallelFor parallel) {
  const int d = network.width - 1;
  if constexpr (compiles_sizes<T>) {
    switch (d) {
      case 3: return run(network, core::Fixed<3>{}, parallel);
      case 5: return run(network, core::Fixed<5>{}, parallel);
      case 8: return run(network, core::Fixed<8>{}, parallel);
    }
  }
  run(network, core::UpTo<16>{d}, parallel);
}

}  // namespace

void prefix_response(const Network<float>& network, ParallelFor parallel) { run(network, parallel); }

void prefix_response(const Network<double>& network, ParallelFor parallel) { run(network, parallel); }

}  // namespace memformer::cpu::MEMFORMER_ISA
