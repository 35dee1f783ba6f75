// Response-only networks in token space of more tokens or features than lanes can hold: one task at a time, vectors
// along its tokens.
//
// A task belongs to one thread, which keeps X^T (d x N) and its vectors in cache. Bytes per task: its tokens, and
// whatever result or token gradient is asked for. Multiply-adds per task (N tokens, d features, L layers, R registers
// each): L (1 + R) N d forward (X A g, X^T s) and as many backward, L (1 + R) d^2 twice, L R d^2 for the gradient of A,
// those of the registers (cpu/wide/vector_memory.h), and L (1 + R) N d for the gradient of the tokens.

#include "cpu/kernels.h"
#include "cpu/lanes/prefetch.h"
#include "cpu/wide/task_rows.h"
#include "cpu/wide/vector_memory.h"
#include "cpu/wide/wide_tasks.h"

namespace memformer::cpu::MEMFORMER_ISA {
namespace {

template <class T>
class WideTokens {
  using S = Lanes<T>;

 public:
  WideTokens(const Network<T>& network, const Preconditioners<T>& preconditioners, const EntryCoefficients<T>& gamma,
             const EntryCoefficients<T>& beta, T* memory)
      : network_(network),
        a_(preconditioners),
        gamma_(gamma),
        beta_(beta),
        memory_{{network.layers, network.kept, network.diagonal, gamma.entries(), beta.entries(), gamma.copy_to(memory),
                 beta.copy_to(memory + gamma.numbers())}},
        d_(network.width - 1),
        size_(whole_rows<T>(d_)),
        stack_(network.queries < 0),
        rows_(rows_of(network)),
        length_(whole_rows<T>(rows_)),
        out_row_(stack_ ? 0 : rows_ - network.queries),
        first_layer_(network.layers - network.result_layers) {}

  // Tokens that are read: all of them if ragged or if the result is the tokens, else the context and then the queries.
  static int rows_of(const Network<T>& network) {
    return network.lengths || network.queries < 0 ? network.tokens : network.context + network.queries;
  }

  int sums() const { return static_cast<int>(memory_.gamma_count() + memory_.beta_count()) + 1; }

  void add_sums(const T* sums, double* totals) const {
    totals = gamma_.add(sums, totals);
    totals = beta_.add(sums + memory_.gamma_count(), totals);
    *totals += static_cast<double>(sums[this->sums() - 1]);
  }

  int64_t scratch() const {
    const int64_t layers = network_.layers, places = layers * network_.kept, out = rows_ - out_row_;
    const int64_t of_rows = size_ + 2 * layers + 2 + 2 * places + 1;
    return of_rows * length_ + (layers + places + 1) * size_ + network_.result_layers * out +
           static_cast<int64_t>(block_rows) * (size_ + 1) + length_;
  }

  void operator()(int64_t task, T* sums, T* scratch, TaskVectors<T> vectors) const {
    Places at(*this, scratch);
    at.prefetch.begin(network_.z, Tasks{task, 1}, 1);
    const int n = network_.lengths ? static_cast<int>(network_.lengths[task]) : network_.context;
    load(task, n, at);
    forward(task, n, vectors, at, sums + this->sums() - 1);
    if (network_.pass == Pass::forward) {
      if (stack_) write_tokens(task, at);
      return;
    }
    if (network_.pass == Pass::loss) return;
    const bool wants_z = network_.grad_z.data != nullptr;
    if (stack_) read_grads(task, at);
    backward(n, wants_z, vectors, sums, at);
    if (wants_z) write_token_grads(task, n, at);
  }

 private:
  // Rows that pass through memory on their way between tokens and vectors.
  static constexpr int block_rows = core::gram_block;

  // X^T; s_0..s_L, u_0..u_{L-1}, registers and their gradients, ds and one vector more, along the tokens; v_{l,h},
  // scaled gradients dg_l of g and one vector more, along the features; errors e of rows with a result, by layer; rows
  // of tokens.
  struct Places {
    Places(const WideTokens& of, T* scratch) {
      const int64_t layers = of.network_.layers, places = layers * of.network_.kept, length = of.length_;
      x = scratch;
      states = x + of.size_ * length;
      updates = states + (layers + 1) * length;
      registers = updates + layers * length;
      register_grads = registers + places * length;
      ds = register_grads + places * length;
      spare = ds + length;
      v = spare + length;
      grads = v + places * of.size_;
      rows = grads + layers * of.size_;
      slots = rows + block_rows * of.size_;
      errors = slots + block_rows;
    }
    Prefetch<T> prefetch;
    T *x, *states, *updates, *registers, *register_grads, *ds, *spare, *v, *grads, *rows, *slots, *errors;
  };

  // The token of a row.
  int token(int row) const { return row < out_row_ || stack_ ? row : network_.tokens - rows_ + row; }

  // The first entry that layer l moves: the last layer only rows with a result, and those in a vector with them.
  int begin(int l) const { return l + 1 == network_.layers ? out_row_ / S::width * S::width : 0; }

  // Calls body(first, count, token) for blocks of rows whose tokens are neighbours.
  template <class Body>
  void each_block(Body body) const {
    for (int first = 0; first < rows_;) {
      const int end = first < out_row_ ? out_row_ : rows_;
      const int count = std::min(block_rows, end - first);
      checkpoint_after(static_cast<int64_t>(block_rows) * size_ * network_.layers);
      body(first, count, token(first));
      first += count;
    }
  }

  // X^T and s_0, zero for rows that are neither context nor result.
  void load(int64_t task, int n, Places& at) const {
    const TaskRows<T> tokens(network_.z, network_.tokens, network_.width, task);
    for (int first = 0; first < length_; first += block_rows) {
      checkpoint_at_row(first);
      const int end = std::min(first + block_rows, length_), last = std::min(end, rows_);
      const int context_end = std::clamp(stack_ ? rows_ : std::min(n, out_row_), first, last);
      const int result = std::clamp(std::max(out_row_, n), context_end, last);
      const auto row = [&](int k) { return at.rows + (k - first) * size_; };
      tokens.load(first, context_end - first, size_, at.rows, at.states + first);
      clear(row(context_end), (result - context_end) * size_);
      clear(at.states + context_end, result - context_end);
      tokens.load(token(result), last - result, size_, row(result), at.states + result);
      clear(row(last), (end - last) * size_);
      clear(at.states + last, end - last);
      transpose(static_cast<const T*>(at.rows), size_, end - first, size_, at.x + first, length_);
    }
  }

  void forward(int64_t task, int n, TaskVectors<T> vectors, Places& at, T* squared) const {
    const TaskReadout<T> readout(network_, task);
    const int64_t length = length_;
    const T scale = T(1) / static_cast<T>(n);
    for (int l = 0; l < network_.layers; ++l) {
      at.prefetch.advance(l + 1, 2 * network_.layers);
      const T* const s = at.states + l * length;
      T* const next = at.states + (l + 1) * length;
      T* const g = vectors.residual(l);
      multiply_rows(at.x, length, size_, s, n, g);
      for (int c = 0; c < size_; c += S::width) (S::load(g + c) * scale).store(g + c);
      const int first = begin(l);
      for (int h = 0; h < network_.kept; ++h) {
        const int place = l * network_.kept + h;
        checkpoint_after(length * size_);
        T* const v = at.v + place * size_;
        T* const r = at.registers + place * length;
        a_.multiply(place, g, v);
        add_weighted_rows(at.x + first, length, d_, v, 1, length_ - first, static_cast<const T*>(nullptr), r + first);
        memory_.remember(l, h, first, length_, r - network_.kept * length, r);
      }
      memory_.update(l, first, length_, at.registers, length, s, next);
      if (stack_ || l < first_layer_) continue;
      T* const errors = at.errors + static_cast<int64_t>(l - first_layer_) * network_.queries;
      for (int k = 0; k < network_.queries; ++k) {
        errors[k] = readout.read_out(l - first_layer_, k, next[out_row_ + k], *squared);
      }
    }
  }

  void write_tokens(int64_t task, Places& at) const {
    const TaskRows<T> tokens(network_.z, network_.tokens, network_.width, task);
    const TaskRows<T> result(network_.result, network_.tokens, network_.width, task);
    const T* const s = at.states + static_cast<int64_t>(network_.layers) * length_;
    each_block([&](int first, int count, int token) {
      tokens.load(token, count, size_, at.rows, at.slots);
      result.store(token, count, at.rows, size_, s + first);
    });
  }

  // The gradients of the response slots of a network whose result is its tokens.
  void read_grads(int64_t task, Places& at) const {
    const TaskRows<T> result(network_.result, network_.tokens, network_.width, task);
    each_block([&](int first, int count, int token) { result.load(token, count, size_, at.rows, at.errors + first); });
  }

  void backward(int n, bool wants_z, TaskVectors<T> vectors, T* sums, Places& at) const {
    const int layers = network_.layers, kept = network_.kept, out = rows_ - out_row_;
    const int64_t length = length_;
    const T scale = T(1) / static_cast<T>(n);
    T* const grad_gamma = sums;
    T* const grad_beta = sums + memory_.gamma_count();
    clear(at.ds, length_);
    for (int l = layers - 1; l >= 0; --l) {
      at.prefetch.advance(2 * layers - l, 2 * layers);
      if (l >= first_layer_) {
        const T* const errors = at.errors + static_cast<int64_t>(l - first_layer_) * out;
        for (int i = 0; i < out; ++i) at.ds[out_row_ + i] += errors[i];
      }
      std::copy(at.ds, at.ds + length_, at.updates + l * length);
      T* const dg = at.grads + l * size_;
      clear(dg, size_);
      const int first = begin(l);
      for (int h = 0; h < kept; ++h) {
        const int place = l * kept + h;
        checkpoint_after(length * size_);
        const T* const r = at.registers + place * length;
        T* const dr = at.register_grads + place * length;
        clear(dr, first);
        memory_.register_grad(
            l, h, [&](int layer) { return begin(layer); }, length_, at.updates, length, r, dr + kept * length,
            r - kept * length, grad_gamma, grad_beta, dr);
        T* const dv = vectors.grad(place);
        multiply_rows(at.x + first, length, size_, dr + first, length_ - first, dv);
        if (l > 0 || wants_z) a_.add_transposed(place, dv, dg);
      }
      if (l == 0 && !wants_z) return;
      for (int c = 0; c < size_; c += S::width) (S::load(dg + c) * scale).store(dg + c);
      add_weighted_rows(at.x, length, d_, dg, 1, whole_rows<T>(n), static_cast<const T*>(nullptr), at.spare);
      for (int i = 0; i < n; i += S::width) {
        (S::load(at.ds + i) + first_lanes<T>(n - i, S::load(at.spare + i))).store(at.ds + i);
      }
    }
  }

  // Every row gets sum_l sum_h dr_{l,h} v_{l,h}, rows of the context s_l dg_l too, and what comes from outside in the
  // features of a network whose result is its tokens.
  void write_token_grads(int64_t task, int n, Places& at) const {
    const TaskRows<T> grads(network_.grad_z, network_.tokens, network_.width, task);
    const TaskRows<T> result(network_.result, network_.tokens, network_.width, task);
    const int layers = network_.layers, places = layers * network_.kept;
    if (!stack_) write_padding_grads(grads, at);
    each_block([&](int first, int count, int token) {
      if (stack_) {
        result.load(token, count, size_, at.rows, at.slots);
      } else {
        clear(at.rows, count * size_);
      }
      for (int i = 0; i < count; ++i) {
        T* const made = at.rows + i * size_;
        const int row = first + i;
        at.slots[i] = T(0);
        // Between the context and the queries of a ragged task.
        if (row >= n && row < out_row_) continue;
        at.slots[i] = at.ds[row];
        add_weighted_rows(at.v, size_, places, at.register_grads + row, length_, size_, static_cast<const T*>(made),
                          made);
        if (row < n)
          add_weighted_rows(at.grads, size_, layers, at.states + row, length_, size_, static_cast<const T*>(made),
                            made);
      }
      grads.store(token, count, at.rows, size_, at.slots);
    });
  }

  // Zeros for tokens that are no row.
  void write_padding_grads(const TaskRows<T>& grads, Places& at) const {
    clear(at.rows, block_rows * size_);
    clear(at.slots, block_rows);
    const int end = network_.tokens - network_.queries;
    for (int first = out_row_; first < end; first += block_rows) {
      grads.store(first, std::min(block_rows, end - first), at.rows, size_, at.slots);
    }
  }

  const Network<T>& network_;
  const Preconditioners<T>& a_;
  const EntryCoefficients<T>& gamma_;
  const EntryCoefficients<T>& beta_;
  VectorMemory<T> memory_;
  int d_, size_;
  bool stack_;
  int rows_, length_;
  int out_row_, first_layer_;  // the first row, and the first layer, with a result
};

template <class T>
void run(const Network<T>& network, ParallelFor parallel) {
  const int rows = WideTokens<T>::rows_of(network), length = whole_rows<T>(rows);
  const int64_t places = static_cast<int64_t>(network.layers) * network.kept;
  Preconditioners<T> a(network.q, static_cast<int>(places), network.width - 1);
  const EntryCoefficients<T> gamma(network.gamma, network.diagonal ? places : places * network.layers,
                                   network.gamma_rows, length);
  const EntryCoefficients<T> beta(network.beta, places, network.beta_rows, length);
  const Memory memory((a.numbers() + gamma.numbers() + beta.numbers()) * sizeof(T));
  T* const numbers = static_cast<T*>(memory.data());
  a.copy_to(numbers);
  const WideTokens<T> task(network, a, gamma, beta, numbers + a.numbers());
  run_wide_network(network, task, parallel);
}

}  // namespace

void wide_tokens(const Network<float>& network, ParallelFor parallel) { run(network, parallel); }

void wide_tokens(const Network<double>& network, ParallelFor parallel) { run(network, parallel); }

}  // namespace memformer::cpu::MEMFORMER_ISA
