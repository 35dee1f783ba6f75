// Response-only networks in Gram space with more features than a lane can hold: one task at a time, vectors along its
// features.
//
// A task belongs to one thread. Bytes per task: its tokens, read once (twice for their own gradient), and whatever
// result or token gradient is asked for. Multiply-adds per task (d features, n examples, L layers, R registers each): n
// d^2 / 2 and up to half a tile's width more for H, L (1 + R) d^2 forward, as many for the gradients of vectors and L R
// d^2 for that of A, 4 L n d for that of the tokens, since dH = sum_l dg_l s_l^T never becomes a matrix.

#include "cpu/kernels.h"
#include "cpu/lanes/prefetch.h"
#include "cpu/wide/context_sums.h"
#include "cpu/wide/vector_memory.h"
#include "cpu/wide/wide_tasks.h"

namespace memformer::cpu::MEMFORMER_ISA {
namespace {

template <class T>
class WideGram {
  using S = Lanes<T>;

 public:
  WideGram(const Network<T>& network, const Preconditioners<T>& preconditioners)
      : network_(network),
        a_(preconditioners),
        memory_{{network.layers, network.kept, network.diagonal, 1, 1, network.gamma, network.beta}},
        d_(network.width - 1),
        size_(whole_rows<T>(d_)),
        stack_(network.queries < 0),
        out_first_(stack_ ? 0 : network.tokens - network.queries),
        out_count_(network.tokens - out_first_),
        first_layer_(network.layers - network.result_layers),
        context_(d_, 1, network.lengths && !stack_ ? network.tokens - network.queries : network.context) {}

  int sums() const { return static_cast<int>(memory_.gamma_count() + memory_.beta_count()) + 1; }

  void add_sums(const T* sums, double* totals) const {
    for (int k = 0; k < this->sums(); ++k) totals[k] += static_cast<double>(sums[k]);
  }

  int64_t scratch() const {
    const int layers = network_.layers;
    const int64_t vectors = 3 * layers + 1 + layers * network_.kept + network_.result_layers + 2;
    return context_.count() + context_.example_count() + context_.at_once() + core::gram_block * (size_ + 3) +
           vectors * size_ + static_cast<int64_t>(network_.result_layers) * out_count_;
  }

  void operator()(int64_t task, T* sums, T* scratch, TaskVectors<T> vectors) const {
    Places at(*this, scratch);
    at.prefetch.begin(network_.z, Tasks{task, 1}, 1, prefetch_bytes);
    const TaskRows<T> rows(network_.z, network_.tokens, network_.width, task);
    const int n = network_.lengths ? static_cast<int>(network_.lengths[task]) : network_.context;
    const T scale = T(1) / static_cast<T>(n);
    // H, and b as its last row, not divided by n.
    context_.sum(rows, 0, n, at.h, at.x, at.y, [&](int step) { at.prefetch.advance(step, prefetch_steps()); });
    forward(scale, vectors, at);
    read_out(TaskReadout<T>(network_, task), task, rows, at, sums + this->sums() - 1);
    if (!is_backward()) return;
    const bool wants_z = network_.grad_z.data != nullptr;
    backward(scale, wants_z, vectors, sums, at);
    if (wants_z) write_token_grads(task, rows, n, at);
  }

 private:
  // H (and b, its last row) as sums of examples, `levels` of them that wait for a partner; s_0..s_L, u_0..u_{L-1},
  // scaled gradients dg_0..dg_{L-1} of g, registers, gradients of s from outside, ds and one vector more; errors e of
  // rows with a result, by layer; rows of tokens.
  struct Places {
    Places(const WideGram& of, T* scratch) {
      const int layers = of.network_.layers, size = of.size_;
      h = scratch;
      states = h + of.context_.count();
      updates = states + (layers + 1) * size;
      grads = updates + layers * size;
      registers = grads + layers * size;
      outer = registers + layers * of.network_.kept * size;
      ds = outer + of.network_.result_layers * size;
      spare = ds + size;
      x = spare + size;
      made = x + of.context_.example_count();
      y = made + core::gram_block * size;
      slots = y + of.context_.at_once() + core::gram_block;
      errors = slots + core::gram_block;
    }
    Prefetch<T> prefetch;
    T *h, *states, *updates, *grads, *registers, *outer, *ds, *spare, *x, *made, *y, *slots, *errors;
  };

  // Moments at which the next task's tokens are asked for.
  int prefetch_steps() const { return context_.steps() + (is_backward() ? 2 : 1) * network_.layers; }
  bool is_backward() const { return network_.pass == Pass::backward || network_.pass == Pass::loss_backward; }

  void forward(T scale, TaskVectors<T> vectors, Places& at) const {
    const int size = size_, kept = network_.kept;
    const T* const b = at.h + size * size;
    clear(at.states, size);
    for (int l = 0; l < network_.layers; ++l) {
      at.prefetch.advance(context_.steps() + l, prefetch_steps());
      const T* const s = at.states + l * size;
      T* const g = vectors.residual(l);
      if (l == 0) {
        std::copy(b, b + size, g);
      } else {
        add_weighted_rows(at.h, size, d_, s, 1, size, b, g);
      }
      for (int c = 0; c < size; c += S::width) (S::load(g + c) * scale).store(g + c);
      for (int h = 0; h < kept; ++h) {
        T* const r = at.registers + (l * kept + h) * size;
        a_.multiply(l * kept + h, g, r);
        memory_.remember(l, h, 0, size, r - kept * size, r);
      }
      memory_.update(l, 0, size, at.registers, size, s, at.states + (l + 1) * size);
    }
  }

  // Results of the rows that have one, or errors e of their response slots and outer_l = sum of e x.
  void read_out(const TaskReadout<T>& readout, int64_t task, const TaskRows<T>& rows, Places& at, T* squared) const {
    const bool backward = is_backward();
    const TaskRows<T> result(network_.result, network_.tokens, network_.width, task);
    clear(at.outer, network_.result_layers * size_);
    for (int first = 0; first < out_count_; first += core::gram_block) {
      checkpoint_at_row(first);
      const int count = std::min(core::gram_block, out_count_ - first);
      rows.load(out_first_ + first, count, size_, at.x, at.y);
      for (int k = 0; k < network_.result_layers; ++k) {
        T* const errors = at.errors + k * out_count_ + first;
        const T* const s = at.states + (first_layer_ + k + 1) * size_;
        if (stack_ && backward) {
          result.load(first, count, size_, at.made, errors);
        } else {
          const bool reads = network_.pass != Pass::backward;
          for (int i = 0; i < count; ++i) {
            const T response = reads ? at.y[i] + dot(at.x + i * size_, s, size_) : T(0);
            errors[i] = stack_ ? response : readout.read_out(k, first + i, response, *squared);
          }
          if (stack_) result.store(first, count, at.x, size_, errors);
        }
        if (backward) {
          T* const outer = at.outer + k * size_;
          add_weighted_rows(at.x, size_, count, errors, 1, size_, static_cast<const T*>(outer), outer);
        }
      }
    }
  }

  void backward(T scale, bool wants_z, TaskVectors<T> vectors, T* sums, Places& at) const {
    const int size = size_, kept = network_.kept;
    T* const grad_gamma = sums;
    T* const grad_beta = sums + memory_.gamma_count();
    clear(at.ds, size);
    for (int l = network_.layers - 1; l >= 0; --l) {
      at.prefetch.advance(prefetch_steps() - l, prefetch_steps());
      if (l >= first_layer_) {
        const T* const outer = at.outer + (l - first_layer_) * size;
        for (int c = 0; c < size; c += S::width) (S::load(at.ds + c) + S::load(outer + c)).store(at.ds + c);
      }
      std::copy(at.ds, at.ds + size, at.updates + l * size);
      T* const dg = at.grads + l * size;
      clear(dg, size);
      for (int h = 0; h < kept; ++h) {
        const int place = l * kept + h;
        const T* const r = at.registers + place * size;
        T* const dr = vectors.grad(place);
        const T* const later = l + 1 < network_.layers ? vectors.grad(place + kept) : nullptr;
        memory_.register_grad(
            l, h, [](int) { return 0; }, size, at.updates, size, r, later, r - kept * size, grad_gamma, grad_beta, dr);
        if (l > 0 || wants_z) a_.add_transposed(place, dr, dg);
      }
      for (int c = 0; c < size; c += S::width) (S::load(dg + c) * scale).store(dg + c);
      if (l > 0) add_weighted_rows(at.h, size, d_, dg, 1, size, static_cast<const T*>(at.ds), at.ds);
    }
  }

  // Rows of the context get (dH + dH^T) x + db y, and db x in their response slot, where dH = sum_l dg_l s_l^T and db =
  // sum_l dg_l; rows with a result e s in their features and e in their response slot.
  void write_token_grads(int64_t task, const TaskRows<T>& rows, int n, Places& at) const {
    const TaskRows<T> grads(network_.grad_z, network_.tokens, network_.width, task);
    const TaskRows<T> result(network_.result, network_.tokens, network_.width, task);
    const int size = size_, layers = network_.layers;
    // s_0 = 0, so that the place of dg_0 is free for db.
    for (int l = 1; l < layers; ++l) {
      const T* const dg = at.grads + l * size;
      for (int c = 0; c < size; c += S::width) (S::load(at.grads + c) + S::load(dg + c)).store(at.grads + c);
    }
    for (int first = 0; first < network_.tokens; first += core::gram_block) {
      checkpoint_after(static_cast<int64_t>(core::gram_block) * size * layers);
      const int count = std::min(core::gram_block, network_.tokens - first);
      rows.load(first, count, size, at.x, at.y);
      const bool incoming = stack_ && first + count > out_first_;
      if (incoming) {
        result.load(first, count, size, at.made, at.slots);
      } else {
        clear(at.made, count * size);
      }
      for (int i = 0; i < count; ++i) {
        T* const made = at.made + i * size;
        at.slots[i] = T(0);
        if (first + i < n) add_context_grad(at.x + i * size, at.y[i], at, made, at.slots + i);
        if (first + i < out_first_) continue;
        const T* const errors = at.errors + first + i - out_first_;
        add_weighted_rows(at.states + (first_layer_ + 1) * size, size, network_.result_layers, errors, out_count_, size,
                          static_cast<const T*>(made), made);
        for (int k = 0; k < network_.result_layers; ++k) at.slots[i] += errors[k * out_count_];
      }
      grads.store(first, count, at.made, size, at.slots);
    }
  }

  void add_context_grad(const T* x, T y, Places& at, T* made, T* slot) const {
    const int size = size_, others = network_.layers - 1;
    *slot = dot(at.grads, x, size);
    T* const weights = at.spare;
    // Sums over vectors whose weights are products with the row, `size` of them at a time.
    add_weighted_rows(at.grads, size, 1, &y, 0, size, static_cast<const T*>(made), made);
    for (int l = 1; l <= others; l += size) {
      const int count = std::min(size, others + 1 - l);
      const T* const grads = at.grads + l * size;
      const T* const states = at.states + l * size;
      multiply_rows(states, size, count, x, size, weights);
      add_weighted_rows(grads, size, count, weights, 1, size, static_cast<const T*>(made), made);
      multiply_rows(grads, size, count, x, size, weights);
      add_weighted_rows(states, size, count, weights, 1, size, static_cast<const T*>(made), made);
    }
  }

  const Network<T>& network_;
  const Preconditioners<T>& a_;
  VectorMemory<T> memory_;
  int d_, size_;
  bool stack_;
  int out_first_, out_count_, first_layer_;
  ContextSums<T> context_;
};

template <class T>
void run(const Network<T>& network, ParallelFor parallel) {
  Preconditioners<T> a(network.q, network.layers * network.kept, network.width - 1);
  const Memory memory(a.numbers() * sizeof(T));
  a.copy_to(static_cast<T*>(memory.data()));
  const WideGram<T> task(network, a);
  run_wide_network(network, task, parallel);
}

}  // namespace

void wide_gram(const Network<float>& network, ParallelFor parallel) { run(network, parallel); }

void wide_gram(const Network<double>& network, ParallelFor parallel) { run(network, parallel); }

}  // namespace memformer::cpu::MEMFORMER_ISA
