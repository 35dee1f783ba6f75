// Training of networks with any P and Q on the CPU: a part's tasks, made and used in cache, to sums of gradients.
//
// A group is one vector of tasks and belongs to one thread. Nothing is read but the parameters. Operations per task:
// those of its sampler and, for each of its contexts (one, or one a query), of core/general_gram.h.

#include "core/general_gram.h"
#include "core/parameter_sums.h"

#include "cpu/tasks/errors.h"
#include "cpu/tasks/parts.h"
#include "cpu/tasks/run_network.h"

namespace memformer::cpu::MEMFORMER_ISA {
namespace {

template <class T, class Shape>
class GeneralTraining {
  using S = Lanes<T>;
  using Cells = core::Cells<S>;
  static constexpr int rows_limit = decltype(Shape{}.width())::limit;

 public:
  GeneralTraining(const PartOfStep<T>& part, Shape shape)
      : draw_(part.draw),
        network_(part.network),
        shape_(shape),
        errors_(part.network, part.draw),
        at_(part.draw.source) {
    const T* const p = part.dense + network_.q_count;
    const T* const gamma = p + network_.p_count;
    parameters_ = {network_.coefficients(gamma, gamma + network_.gamma_count), network_.heads, part.dense, p};
  }

  std::size_t scratch_cells() const {
    return static_cast<std::size_t>(at_.count()) + trace_cells() + core::general_gram_scratch(shape_, true) +
           fill_scratch(draw_.source);
  }

  void operator()(Tasks tasks, S* sums, S* scratch) const {
    S* const cells = scratch;
    S* const trace_begin = cells + at_.count();
    S* const work = trace_begin + trace_cells();
    fill_tasks(draw_, tasks, cells, work + core::general_gram_scratch(shape_, true));
    for (int context = 0; context < at_.contexts(); ++context) {
      if (context > 0) at_.join(context - 1, cells);
      learn(context, cells, sums, trace_begin);
      checkpoint_at_row(context);
    }
  }

 private:
  MEMFORMER_INLINE void learn(int context, S* cells, S* sums, S* trace_begin) const {
    const int width = shape_.width(), rows = shape_.rows;
    S* const work = trace_begin + trace_cells();
    const core::Trace<S, 1> trace(Cells{trace_begin}, parameters_, shape_.size(), true);
    core::general_gram_forward(shape_, parameters_, Cells{cells}, trace, Cells{work}, [](int, Cells) {});
    S column[rows_limit], grad[rows_limit];
    const Cells last = trace.state(network_.layers);
    for (int k = 0; k < rows; ++k) column[k] = last[k * width + width - 1];
    const core::ParameterCounts counts{network_.q_count, network_.p_count, network_.gamma_count, network_.beta_count};
    sums[counts.all()] += errors_(context, cells, column, grad);
    core::ParameterSums<S> sink = counts.from(sums);
    const auto outer = [&](int l, Cells to) {
      if (l + 1 < network_.layers) return;
      for (int k = 0; k < rows; ++k) to[k * width + width - 1] += grad[k];
    };
    core::general_gram_backward(shape_, parameters_, Cells{cells}, trace, Cells{work}, outer, sink, Cells{nullptr});
  }

  int trace_cells() const { return core::Trace<S, 1>::count(parameters_, shape_.size(), true); }

  const Draw<T>& draw_;
  const TrainedNetwork<T>& network_;
  Shape shape_;
  Errors<T> errors_;
  TaskCells<T> at_;
  core::Parameters<T> parameters_;
};

template <class T>
void train(const PartOfStep<T>& part) {
  with_shape<T>(part.network.block, part.network.width, [&](auto shape) {
    const GeneralTraining<T, decltype(shape)> group(part, shape);
    const int sums = whole_sums<T>(part.network.dense() + 1);
    run_part<T>(group, part.draw.source.tasks, part.part, sums, group.scratch_cells(), part.partial);
  });
}

}  // namespace

void train_general(const PartOfStep<float>& part) { train(part); }

void train_general(const PartOfStep<double>& part) { train(part); }

}  // namespace memformer::cpu::MEMFORMER_ISA
