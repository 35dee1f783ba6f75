// One layer on tokens on the CPU, with the registers of the layers before it: one task per lane.
//
// A group is one vector of tasks and belongs to one thread. Bytes per task: its tokens and J + 1 layers' registers,
// read or written once, and as much again for their gradients. Operations per task: those of core/layer.h.

#include "core/layer.h"
#include "core/parameter_sums.h"

#include "cpu/kernels.h"
#include "cpu/tasks/parts.h"

namespace memformer::cpu::MEMFORMER_ISA {
namespace {

template <class T, class Extent>
class OneLayer {
  using S = Lanes<T>;
  using Cells = core::Cells<S>;
  using Shape = core::Shape<false, Extent>;

 public:
  OneLayer(const Layer<T>& layer, Extent width)
      : layer_(layer),
        shape_{width},
        parameters_{{layer.earlier + 1, layer.kept, false, layer.gamma_rows, layer.beta_rows, layer.gamma, layer.beta},
                    layer.heads,
                    layer.q,
                    layer.p},
        counts_{layer.heads * shape_.head(), layer.heads * shape_.head(),
                layer.gamma ? (layer.earlier + 1) * layer.kept * layer.gamma_rows * layer.width : 0,
                layer.beta ? layer.kept * layer.beta_rows * layer.width : 0} {}

  int sums() const { return counts_.all(); }

  std::size_t scratch_cells() const {
    const std::size_t grids = 2 + static_cast<std::size_t>(registers()) * (layer_.backward ? 2 : 1);
    return grids * size() + core::layer_scratch(shape_, layer_.lengths, layer_.backward);
  }

  void operator()(Tasks tasks, S* sums, S* scratch) {
    const Cells tokens{scratch};
    const Cells next = tokens.at(size());
    const Cells memory = next.at(size());
    const Cells memory_grad = memory.at(registers() * size());
    const Cells work = layer_.backward ? memory_grad.at(registers() * size()) : memory_grad;

    const S count = load_lengths<T>(layer_.lengths, layer_.context, tasks);
    const core::Labelled<S> labelled{layer_.context, layer_.lengths != nullptr, count, S(T(1)) / count};
    load_rows(layer_.z, tasks, 0, layer_.tokens, layer_.width, tokens.data);
    for (int j = 0; j < layer_.earlier; ++j) load(layer_.registers[j], tasks, memory.at(j * layer_.kept * size()));
    const Cells fresh = memory.at(layer_.earlier * layer_.kept * size());
    core::layer_forward(shape_, parameters_, labelled, layer_.tokens, tokens, memory, next, work);
    if (!layer_.backward) {
      store_rows(next.data, layer_.result, tasks, 0, layer_.tokens, layer_.width);
      store(fresh, layer_.fresh, tasks);
      return;
    }

    const Cells grad = next;
    load_rows(layer_.result, tasks, 0, layer_.tokens, layer_.width, grad.data);
    load(layer_.fresh, tasks, memory_grad.at(layer_.earlier * layer_.kept * size()));
    core::ParameterSums<S> sink = counts_.from(sums);
    core::layer_backward(shape_, parameters_, labelled, layer_.tokens, tokens, memory, grad, memory_grad, work, sink);
    if (layer_.grad_z.data) store_rows(grad.data, layer_.grad_z, tasks, 0, layer_.tokens, layer_.width);
    for (int j = 0; layer_.grad_registers && j < layer_.earlier; ++j) {
      if (layer_.grad_registers[j].array.data)
        store(memory_grad.at(j * layer_.kept * size()), layer_.grad_registers[j], tasks);
    }
  }

 private:
  int size() const { return layer_.tokens * layer_.width; }
  int registers() const { return (layer_.earlier + 1) * layer_.kept; }

  // Register r of each task.
  static Array of_head(const Registers& registers, int r) {
    Array one = registers.array;
    one.data = static_cast<char*>(one.data) + r * registers.stride * bytes_of_number(one.storage);
    return one;
  }

  void load(const Registers& from, Tasks tasks, Cells to) const {
    for (int r = 0; r < layer_.kept; ++r) {
      load_rows(of_head(from, r), tasks, 0, layer_.tokens, layer_.width, to.at(r * size()).data);
    }
  }

  void store(Cells from, const Registers& to, Tasks tasks) const {
    for (int r = 0; r < layer_.kept; ++r) {
      store_rows(from.at(r * size()).data, of_head(to, r), tasks, 0, layer_.tokens, layer_.width);
    }
  }

  const Layer<T>& layer_;
  Shape shape_;
  core::Parameters<T> parameters_;
  core::ParameterCounts counts_;
};

template <class T, class Extent>
void run(const Layer<T>& layer, Extent width, ParallelFor parallel) {
  const OneLayer<T, Extent> group(layer, width);
  over_parts<T>(layer.tasks, layer.backward ? group.sums() : 0, group.scratch_cells(), layer.totals, parallel, group);
}

}  // namespace

// Sizes that experiments use most are compiled for themselves; one instance serves all others.
void layer(const Layer<float>& call, ParallelFor parallel) {
#if MEMFORMER_VECTOR_BYTES > 16
  switch (call.width) {
    case 4: return run(call, core::Fixed<4>{}, parallel);
    case 5: return run(call, core::Fixed<5>{}, parallel);
    case 6: return run(call, core::Fixed<6>{}, parallel);
    case 8: return run(call, core::Fixed<8>{}, parallel);
  }
#endif
  run(call, core::UpTo<16>{call.width}, parallel);
}

void layer(const Layer<double>& call, ParallelFor parallel) { run(call, core::UpTo<16>{call.width}, parallel); }

}  // namespace memformer::cpu::MEMFORMER_ISA
