// Networks with any P and Q on every prefix of their tasks on the CPU: one task per lane, tokens read once (twice for
// their own gradient).
//
// A group is one vector of tasks and belongs to one thread. Bytes per task: its tokens, and whatever result, target or
// token gradient is asked for. Operations per task (N tokens, the shortest prefix of n): N D (D + 1) / 2 for the
// running Gram matrix, then N - n times those of core/general_gram.h.

#include "core/general_gram.h"
#include "core/parameter_sums.h"

#include "cpu/kernels.h"
#include "cpu/tasks/prefixes.h"
#include "cpu/tasks/run_network.h"

namespace memformer::cpu::MEMFORMER_ISA {
namespace {

template <class T, class Shape>
class GeneralLayers {
  using S = Lanes<T>;
  using Cells = core::Cells<S>;

 public:
  using Width = decltype(Shape{}.width());
  static constexpr bool reads_all = true;

  GeneralLayers(const Network<T>& network, Shape shape)
      : network_(network),
        shape_(shape),
        parameters_{network.coefficients(), network.heads, network.q, network.p},
        counts_(core::counts_of(parameters_, shape.head(), shape.width())),
        backward_(network.pass == Pass::backward || network.pass == Pass::loss_backward) {}

  Width width() const { return shape_.width(); }
  int sums() const { return counts_.all(); }

  std::size_t scratch_cells() const {
    return static_cast<std::size_t>(trace_cells()) + core::general_gram_scratch(shape_, backward_) +
           core::packed_size(width()) + 2 * network_.result_layers * features();
  }

  template <class Read>
  MEMFORMER_INLINE void operator()(const S* sum, S scale, const S* row, Read read, S* sums, S* grad, S* direct,
                                   S* scratch) const {
    const int width = shape_.width(), d = features(), first_layer = network_.layers - network_.result_layers;
    S* const work = scratch + trace_cells();
    S* const gram = work + core::general_gram_scratch(shape_, backward_);
    S* const columns = gram + core::packed_size(width);
    S* const outer = columns + network_.result_layers * d;
    for (int k = 0; k < core::packed_size(width); ++k) gram[k] = sum[k] * scale;
    const core::Trace<S, 1> trace(Cells{scratch}, parameters_, shape_.size(), backward_);
    core::general_gram_forward(shape_, parameters_, Cells{gram}, trace, Cells{work}, [&](int l, Cells state) {
      if (l < first_layer) return;
      for (int k = 0; k < d; ++k) columns[(l - first_layer) * d + k] = state[k * width + width - 1];
    });
    for (int l = 0; l < network_.result_layers; ++l) {
      const S* const column = columns + l * d;
      S response = row[0] * column[0];
      for (int k = 1; k < d; ++k) response += row[k] * column[k];
      const S e = read(l, response);
      if (!sums) continue;
      for (int k = 0; k < d; ++k) outer[l * d + k] = e * row[k];
      if (!direct) continue;
      for (int k = 0; k < d; ++k) direct[k] = l == 0 ? e * column[k] : direct[k] + e * column[k];
    }
    if (!sums) return;
    core::ParameterSums<S> sink = counts_.from(sums);
    for (int k = 0; grad && k < core::packed_size(width); ++k) grad[k] = S(T(0));
    core::general_gram_backward(
        shape_, parameters_, Cells{gram}, trace, Cells{work},
        [&](int l, Cells to) {
          if (l < first_layer) return;
          for (int k = 0; k < d; ++k) to[k * width + width - 1] += outer[(l - first_layer) * d + k];
        },
        sink, Cells{grad});
    for (int k = 0; grad && k < core::packed_size(width); ++k) grad[k] = grad[k] * scale;
  }

 private:
  int features() const { return network_.width - 1; }
  int trace_cells() const { return core::Trace<S, 1>::count(parameters_, shape_.size(), backward_); }

  const Network<T>& network_;
  Shape shape_;
  core::Parameters<T> parameters_;
  core::ParameterCounts counts_;
  bool backward_;
};

template <class T, class Shape>
void run(const Network<T>& network, Shape shape, ParallelFor parallel) {
  using Layers = GeneralLayers<T, Shape>;
  run_network(network, Prefixes<T, Layers>(network, Layers(network, shape)), parallel);
}

template <class T>
void run(const Network<T>& network, ParallelFor parallel) {
  const int width = network.width;
  if (!network.block) return run(network, core::Shape<false, core::UpTo<16>>{{width}}, parallel);
  if constexpr (compiles_sizes<T>) {
    switch (width) {
      case 4: return run(network, core::Shape<true, core::Fixed<3>>{}, parallel);
      case 6: return run(network, core::Shape<true, core::Fixed<5>>{}, parallel);
    }
  }
  run(network, core::Shape<true, core::UpTo<16>>{{width - 1}}, parallel);
}

}  // namespace

void prefix_general(const Network<float>& network, ParallelFor parallel) { run(network, parallel); }

void prefix_general(const Network<double>& network, ParallelFor parallel) { run(network, parallel); }

}  // namespace memformer::cpu::MEMFORMER_ISA
