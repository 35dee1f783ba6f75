// Training of response-only networks on the CPU: a part's tasks, made and used in cache, to sums of gradients.
//
// A group is one vector of tasks and belongs to one thread. Nothing is read but the parameters. Operations per task:
// those of its sampler and, for each of its contexts (one, or one a query), of core/response_gram.h; d = 5, L = 4,
// gamma in full: 230 multiply-adds forward, 380 backward.

#include "core/response_gram.h"

#include "cpu/tasks/errors.h"
#include "cpu/tasks/parts.h"
#include "cpu/tasks/response_sums.h"
#include "cpu/tasks/run_network.h"

namespace memformer::cpu::MEMFORMER_ISA {
namespace {

template <class T, class Extent>
class ResponseTraining {
  using S = Lanes<T>;
  using Trace = core::ResponseTrace<S, Extent, 1>;

 public:
  ResponseTraining(const PartOfStep<T>& part, Extent d)
      : draw_(part.draw), network_(part.network), d_(d), errors_(part.network, part.draw), at_(part.draw.source) {
    const T* const gamma = part.dense + network_.q_count;
    method_ = {network_.coefficients(gamma, gamma + network_.gamma_count), part.dense};
  }

  std::size_t scratch_cells() const {
    return static_cast<std::size_t>(at_.count()) + trace_cells() + fill_scratch(draw_.source);
  }

  void operator()(Tasks tasks, S* sums, S* scratch) const {
    S* const cells = scratch;
    S* const trace_begin = cells + at_.count();
    fill_tasks(draw_, tasks, cells, trace_begin + trace_cells());
    for (int context = 0; context < at_.contexts(); ++context) {
      if (context > 0) at_.join(context - 1, cells);
      learn(context, cells, sums, trace_begin);
      checkpoint_at_row(context);
    }
  }

 private:
  MEMFORMER_INLINE void learn(int context, const S* cells, S* sums, S* trace_begin) const {
    core::SymmetricQuadratic<S, Extent> task;
    task.extent = d_;
    const int d = d_;
    MEMFORMER_UNROLL
    for (int k = 0; k < core::packed_size(d); ++k) task.h[k] = cells[k];
    MEMFORMER_UNROLL
    for (int c = 0; c < d; ++c) task.b[c] = cells[core::packed_size(d) + c];
    const Trace trace{{trace_begin}, network_.layers, network_.kept, d_};
    S s[Extent::limit], grad[Extent::limit];
    MEMFORMER_UNROLL
    for (int c = 0; c < d; ++c) s[c] = S(T(0));
    core::response_forward<false>(task, method_, s, trace);
    S* const gamma_sums = sums + network_.q_count;
    S* const beta_sums = gamma_sums + network_.gamma_count;
    beta_sums[network_.beta_count] += errors_(context, cells, s, grad);
    ResponseSums<S> sink{sums, gamma_sums, beta_sums};
    const auto outer = [&, d](int l, S* ds) {
      if (l + 1 < network_.layers) return;
      MEMFORMER_UNROLL
      for (int c = 0; c < d; ++c) ds[c] += grad[c];
    };
    core::response_backward<false>(task, method_, trace, outer, sink, s,
                                   static_cast<core::SymmetricQuadratic<S, Extent>*>(nullptr));
  }

  int trace_cells() const { return Trace::size(network_.layers, network_.kept, d_); }

  const Draw<T>& draw_;
  const TrainedNetwork<T>& network_;
  Extent d_;
  Errors<T> errors_;
  TaskCells<T> at_;
  core::FirstOrder<T> method_;
};

template <class T>
void train(const PartOfStep<T>& part) {
  with_extent<T>(part.draw.source.features, [&](auto d) {
    const ResponseTraining<T, decltype(d)> group(part, d);
    const int sums = whole_sums<T>(part.network.dense() + 1);
    run_part<T>(group, part.draw.source.tasks, part.part, sums, group.scratch_cells(), part.partial);
  });
}

}  // namespace

void train_response(const PartOfStep<float>& part) { train(part); }

void train_response(const PartOfStep<double>& part) { train(part); }

}  // namespace memformer::cpu::MEMFORMER_ISA
