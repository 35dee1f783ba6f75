// Networks with any P and Q in Gram space whose D x D matrices are too large for a lane: one task at a time, vectors
// along its features.
//
// A task belongs to one thread, whose matrices T_l, R_{l,r}, G_l and what is made of them lie in its caches
// (core/general_gram.h has the equations). Block structure runs as the dense matrices it stands for: Q = [[A, 0], [0,
// 0]] and P = [[Bm, 0], [0, 1]], so that the last row of T_l stays 0 ... 0 1, and what their other entries get is left
// out. Bytes per task: its tokens, and whatever result or token gradient is asked for, twice their tokens.
// Multiply-adds per task (n examples, L layers, H heads, R registers each): n D^2 / 2 for the Gram matrix and for each
// layer (2 H + R
// + 2) D^3 forward, (4 H + 2 R + 3) D^3 backward with the gradient of the tokens, 2 D^3 less without.

#include "cpu/kernels.h"
#include "cpu/wide/context_sums.h"
#include "cpu/wide/head_matrices.h"
#include "cpu/wide/vector_memory.h"
#include "cpu/wide/wide_tasks.h"

namespace memformer::cpu::MEMFORMER_ISA {
namespace {

template <class T>
class WideGeneral {
  using S = Lanes<T>;

 public:
  WideGeneral(const Network<T>& network, const HeadMatrices<T>& heads, const EntryCoefficients<T>& gamma,
              const EntryCoefficients<T>& beta, T* memory)
      : network_(network),
        heads_(heads),
        square_(heads.square()),
        gamma_(gamma),
        beta_(beta),
        coefficients_{network.layers,
                      network.kept,
                      network.diagonal,
                      1,
                      1,
                      gamma.copy_to(memory),
                      beta.copy_to(memory + gamma.numbers())},
        backward_(network.pass == Pass::backward || network.pass == Pass::loss_backward),
        stack_(network.queries < 0),
        out_first_(stack_ ? 0 : network.tokens - network.queries),
        out_count_(network.tokens - out_first_),
        first_layer_(network.layers - network.result_layers),
        context_(network.width, 0, network.lengths && !stack_ ? network.tokens - network.queries : network.context) {}

  int sums() const {
    return static_cast<int>(2 * all_heads() * square_.numbers() + gamma_.numbers() + beta_.numbers()) + 1;
  }

  void add_sums(const T* sums, double* totals) const {
    for (int64_t head = 0; head < 2 * all_heads(); ++head, sums += square_.numbers()) totals = heads_.add(sums, totals);
    totals = gamma_.add(sums, totals);
    totals = beta_.add(sums + gamma_.numbers(), totals);
    *totals += static_cast<double>(sums[gamma_.numbers() + beta_.numbers()]);
  }

  int64_t scratch() const {
    return context_.count() + context_.example_count() + squares() * square_.numbers() + 3 * square_.chunk() +
           vectors();
  }

  void operator()(int64_t task, T* sums, T* scratch, TaskVectors<T>) const {
    Places at(*this, scratch);
    const int n = network_.lengths ? static_cast<int>(network_.lengths[task]) : network_.context;
    const T scale = T(1) / static_cast<T>(n);
    context_.sum(tokens(network_.z, task), 0, n, at.context, at.examples, static_cast<T*>(nullptr), [](int) {});
    square_.load(at.context, square_.size, scale, of(at.grams, 0));
    drop_corner(of(at.grams, 0));
    forward(at);
    read_out(task, at, sums + this->sums() - 1);
    if (!backward_) return;
    T* const gram_grad = network_.grad_z.data ? at.gram_grad : nullptr;
    backward(sums, gram_grad, at);
    if (gram_grad) write_token_grads(task, n, scale, at);
  }

 private:
  // The sums of the context, and room for examples. Squares: T_l, R_{l,r}, G_l (the first is G_0), K_l = G_0 T_l, Q_h
  // G_l and M_{l,r}, those of all layers where something goes back through them; the gradients of T, R_r, M_r and G,
  // the gradient C of G_0, a spare one and T_L^T. Chunks of rows. Vectors by layer whose result is read: the last
  // column of T and its gradient; errors e of rows with a result.
  struct Places {
    Places(const WideGeneral& of, T* scratch) {
      const int64_t square = of.square_.numbers(), layers = of.kept_layers(), kept = of.network_.kept;
      const auto squares = [&](int64_t count) {
        T* const begin = scratch;
        scratch += count * square;
        return begin;
      };
      states = squares(of.backward_ ? layers + 1 : 1);
      registers = squares(of.kept_registers());
      grams = squares(of.kept_grams());
      weighted = squares(layers);
      mixed = squares(layers * kept);
      query_grams = squares(of.all_heads());
      state_grad = squares(of.backward_);
      register_grads = squares(of.backward_ ? kept : 0);
      mixed_grad = squares(of.backward_);
      change = squares(of.backward_);
      gram_grad = squares(of.backward_);
      spare = squares(of.backward_);
      outgoing = squares(of.backward_ && of.stack_);
      context = scratch;
      examples = context + of.context_.count();
      x = examples + of.context_.example_count();
      made = x + of.square_.chunk();
      incoming = made + of.square_.chunk();
      columns = incoming + of.square_.chunk();
      outer = columns + static_cast<int64_t>(of.network_.result_layers) * of.square_.step;
      errors = outer + static_cast<int64_t>(of.network_.result_layers) * of.square_.step;
    }
    T *states, *registers, *grams, *weighted, *mixed, *query_grams, *state_grad, *register_grads, *mixed_grad, *change;
    T *gram_grad, *spare, *outgoing, *context, *examples, *x, *made, *incoming, *columns, *outer, *errors;
  };

  int64_t all_heads() const { return static_cast<int64_t>(network_.layers) * network_.heads; }
  // Layers whose matrices stay, and their Gram matrices and registers.
  int64_t kept_layers() const { return backward_ ? network_.layers : 1; }
  int64_t kept_grams() const { return backward_ ? network_.layers : 2; }
  int64_t kept_registers() const {
    return (backward_ || !coefficients_.newest_only() ? network_.layers : 1) * static_cast<int64_t>(network_.kept);
  }
  int64_t squares() const {
    const int64_t layers = kept_layers(), kept = network_.kept;
    return (backward_ ? layers + 1 : 1) + kept_registers() + kept_grams() + layers + layers * kept + all_heads() +
           (backward_ ? 5 + kept + stack_ : 0);
  }
  int64_t vectors() const {
    return static_cast<int64_t>(network_.result_layers) * (2 * square_.step + out_count_ + tile_rows);
  }

  T* of(T* squares, int64_t k) const { return squares + k * square_.numbers(); }
  T* state(Places& at, int l) const { return of(at.states, backward_ ? l : 0); }
  // G_l, of which G_0 stays.
  T* gram(Places& at, int l) const { return of(at.grams, backward_ ? l : l > 0); }
  T* weighted(Places& at, int l) const { return of(at.weighted, backward_ ? l : 0); }
  T* mixed(Places& at, int l, int r) const { return of(at.mixed, (backward_ ? l * network_.kept : 0) + r); }
  T* register_at(Places& at, int l, int r) const {
    return of(at.registers, (backward_ || !coefficients_.newest_only() ? l * network_.kept : 0) + r);
  }
  const T* gamma(int l, int j, int r) const {
    return coefficients_.gamma + coefficients_.gamma_index(l, j, r, square_.size);
  }
  const T* beta(int l, int r) const { return coefficients_.beta + coefficients_.beta_index(l, r, square_.size); }

  TaskRows<T> tokens(const Array& array, int64_t task) const {
    return TaskRows<T>(array, network_.tokens, network_.width, task, 0);
  }

  template <class Chunk>
  void each_chunk(int begin, int end, Chunk body) const {
    for (int row = begin; row < end; row += chunk_rows) {
      checkpoint_after(static_cast<int64_t>(chunk_rows) * square_.size * square_.size);
      body(row, std::min(chunk_rows, end - row));
    }
  }

  // In block structure squares of responses count for nothing, 0 times what may be more than a number holds.
  void drop_corner(T* matrix) const {
    if (network_.block) matrix[square_.at(square_.side - 1, square_.side - 1)] = T(0);
  }

  // body(c, place) for every vector of a matrix.
  template <class Vector>
  MEMFORMER_INLINE void each_vector(Vector body) const {
    for (int64_t row = 0; row < square_.side; ++row) {
      for (int c = 0; c < square_.size; c += S::width) body(c, row * square_.step + c);
    }
  }

  // to += from * own, column by column; ones where `own` is null.
  void add_weighted(const T* from, const T* own, T* to) const {
    if (own) {
      each_vector([&](int c, int64_t k) { (S::load(to + k) + S::load(from + k) * S::load(own + c)).store(to + k); });
    } else {
      each_vector([&](int, int64_t k) { (S::load(to + k) + S::load(from + k)).store(to + k); });
    }
  }

  // Adds the sums over rows of left * right to the gradient of a row of coefficients.
  void add_products(const T* left, const T* right, T* grad) const {
    for (int c = 0; c < square_.size; c += S::width) {
      S sum(T(0));
      for (int64_t row = 0; row < square_.side; ++row)
        sum += S::load(left + row * square_.step + c) * S::load(right + row * square_.step + c);
      (S::load(grad + c) + sum).store(grad + c);
    }
  }

  void forward(Places& at) const {
    const int64_t numbers = square_.numbers();
    const int per_register = network_.heads / network_.kept;
    clear(state(at, 0), numbers);
    for (int i = 0; i < square_.side; ++i) state(at, 0)[square_.at(i, i)] = T(1);
    for (int l = 0; l < network_.layers; ++l) {
      if (l > 0) {
        square_.template multiply<false>(at.grams, false, state(at, l), weighted(at, l));
        drop_corner(weighted(at, l));
        square_.template multiply<false>(state(at, l), true, weighted(at, l), gram(at, l));
        drop_corner(gram(at, l));
      }
      for (int r = 0; r < network_.kept; ++r) {
        const int head = l * network_.heads + r * per_register;
        T* const own = register_at(at, l, r);
        // Where no layer but the newest is kept, R_{l-1,r} is in the place of R_{l,r}.
        const bool remembers = coefficients_.beta && l > 0;
        if (remembers && own == register_at(at, l - 1, r)) {
          each_vector([&](int c, int64_t k) { (S::load(own + k) * S::load(beta(l, r) + c)).store(own + k); });
        } else if (remembers) {
          clear(own, numbers);
          add_weighted(register_at(at, l - 1, r), beta(l, r), own);
        }
        heads_.mix(head, head + per_register, gram(at, l), at.query_grams, mixed(at, l, r));
        if (l == 0) {
          std::copy(mixed(at, 0, r), mixed(at, 0, r) + numbers, own);
        } else if (remembers) {
          square_.template multiply<true>(state(at, l), false, mixed(at, l, r), own);
        } else {
          square_.template multiply<false>(state(at, l), false, mixed(at, l, r), own);
        }
      }
      T* const next = state(at, l + 1);
      if (next != state(at, l)) std::copy(state(at, l), state(at, l) + numbers, next);
      for (int r = 0; r < network_.kept; ++r) {
        for (int j = coefficients_.newest_only() ? l : 0; j <= l; ++j)
          add_weighted(register_at(at, j, r), coefficients_.gamma ? gamma(l, j, r) : nullptr, next);
      }
      if (!stack_ && l >= first_layer_) keep_column(next, column(at, l));
    }
    if (stack_ && backward_) square_.transpose_to(state(at, network_.layers), at.outgoing);
  }

  T* column(Places& at, int l) const { return at.columns + static_cast<int64_t>(l - first_layer_) * square_.step; }
  T* outer(Places& at, int l) const { return at.outer + static_cast<int64_t>(l - first_layer_) * square_.step; }

  // What predictions read of T: its last column.
  void keep_column(const T* state, T* to) const {
    for (int i = 0; i < square_.side; ++i) to[i] = state[square_.at(i, square_.side - 1)];
    clear(to + square_.side, square_.step - square_.side);
  }

  // Results, or the gradients that reach T from them: sum_i z_i dz_i^T of tokens, sum_i e_i z_i of predictions.
  void read_out(int64_t task, Places& at, T* squared) const {
    const TaskRows<T> rows = tokens(network_.z, task), result = tokens(network_.result, task);
    if (backward_) clear(at.state_grad, square_.numbers());
    clear(at.outer, static_cast<int64_t>(network_.result_layers) * square_.step);
    const TaskReadout<T> readout(network_, task);
    each_chunk(out_first_, network_.tokens, [&](int row, int count) {
      square_.load_chunk(rows, row, count, at.x);
      if (!stack_) return read_predictions(readout, row - out_first_, count, at, squared);
      if (!backward_) {
        square_.template multiply_chunk<false>(at.x, count, state(at, network_.layers), at.made);
        return result.store(row, count, at.made, square_.step, nullptr);
      }
      square_.load_chunk(result, row, count, at.incoming);
      square_.add_outer_products(at.x, at.incoming, count, at.state_grad);
    });
  }

  void read_predictions(const TaskReadout<T>& readout, int first, int count, Places& at, T* squared) const {
    const int size = square_.size;
    const int64_t step = square_.step;
    for (int k = 0; k < network_.result_layers; ++k) {
      T* const errors = at.errors + static_cast<int64_t>(k) * out_count_ + first;
      for (int i = 0; i < count; ++i) {
        const T response = network_.pass == Pass::backward ? T(0) : dot(at.x + i * step, at.columns + k * step, size);
        errors[i] = readout.read_out(k, first + i, response, *squared);
      }
      if (!backward_) continue;
      T* const outer = at.outer + k * step;
      add_weighted_rows(at.x, step, count, errors, 1, size, static_cast<const T*>(outer), outer);
    }
  }

  // Gradients of the parameters, added, and C = E + E^T for that of G_0, where it is wanted.
  void backward(T* sums, T* gram_grad, Places& at) const {
    const int64_t numbers = square_.numbers(), heads = all_heads() * numbers;
    const int per_register = network_.heads / network_.kept;
    if (gram_grad) clear(gram_grad, numbers);
    for (int l = network_.layers - 1; l >= 0; --l) {
      if (!stack_ && l >= first_layer_) {
        for (int i = 0; i < square_.side; ++i) at.state_grad[square_.at(i, square_.side - 1)] += outer(at, l)[i];
      }
      // In block structure the last row of T is constant.
      if (network_.block) clear(at.state_grad + square_.at(square_.side - 1, 0), square_.size);
      // Nothing reads T_{l+1} from here on: its place takes the gradient of layer l's update.
      std::copy(at.state_grad, at.state_grad + numbers, state(at, l + 1));
      clear(at.change, numbers);
      for (int r = 0; r < network_.kept; ++r) {
        const int head = l * network_.heads + r * per_register;
        T* const own = of(at.register_grads, r);
        make_register_grad(l, r, sums + 2 * heads, at, own);
        const T* mixed_grad = own;
        if (l > 0) {
          square_.template multiply<false>(state(at, l), true, own, at.mixed_grad);
          square_.transpose_to(mixed(at, l, r), at.spare);
          square_.template multiply<true>(own, false, at.spare, at.state_grad);
          mixed_grad = at.mixed_grad;
        }
        heads_.mix_backward(head, head + per_register, gram(at, l), at.query_grams, mixed_grad, at.spare, sums,
                            sums + heads, l > 0 || gram_grad ? at.change : nullptr);
      }
      if (l == 0 && !gram_grad) continue;
      add_transpose(at.change, at.spare);
      if (l == 0) {
        add_weighted(at.change, nullptr, gram_grad);
        continue;
      }
      square_.template multiply<true>(weighted(at, l), false, at.change, at.state_grad);
      if (!gram_grad) continue;
      square_.template multiply<false>(state(at, l), false, at.change, at.spare);
      square_.transpose_to(state(at, l), at.mixed_grad);
      square_.template multiply<true>(at.spare, false, at.mixed_grad, gram_grad);
    }
  }

  // matrix += matrix^T.
  void add_transpose(T* matrix, T* spare) const {
    square_.transpose_to(matrix, spare);
    add_weighted(spare, nullptr, matrix);
  }

  // The gradient of R_{l,r}, in place of that of R_{l+1,r}, and those of gamma_{.,l,r} and beta_{l,r}, added.
  void make_register_grad(int l, int r, T* coefficient_grads, Places& at, T* own) const {
    if (coefficients_.beta && l + 1 < network_.layers) {
      const T* const next = beta(l + 1, r);
      each_vector([&](int c, int64_t k) { (S::load(own + k) * S::load(next + c)).store(own + k); });
    } else {
      clear(own, square_.numbers());
    }
    const T* const value = register_at(at, l, r);
    const int last = coefficients_.newest_only() ? l : network_.layers - 1;
    for (int later = l; later <= last; ++later) {
      const T* const update = state(at, later + 1);
      add_weighted(update, coefficients_.gamma ? gamma(later, l, r) : nullptr, own);
      if (coefficients_.gamma)
        add_products(value, update, coefficient_grads + coefficients_.gamma_index(later, l, r, square_.size));
    }
    if (coefficients_.beta && l > 0) {
      add_products(own, register_at(at, l - 1, r),
                   coefficient_grads + gamma_.numbers() + coefficients_.beta_index(l, r, square_.size));
    }
  }

  // Rows of the context get C z / n, rows with a result what reaches them through Z_0 T.
  void write_token_grads(int64_t task, int n, T scale, Places& at) const {
    each_vector([&](int, int64_t k) { (S::load(at.gram_grad + k) * scale).store(at.gram_grad + k); });
    const TaskRows<T> rows = tokens(network_.z, task), result = tokens(network_.result, task);
    each_chunk(0, network_.tokens, [&](int row, int count) {
      if (stack_) {
        square_.load_chunk(result, row, count, at.incoming);
        square_.template multiply_chunk<false>(at.incoming, count, at.outgoing, at.made);
      } else {
        clear(at.made, padded_to(count, tile_rows) * static_cast<int64_t>(square_.step));
      }
      const int labelled = std::clamp(n - row, 0, count);
      if (labelled) {
        square_.load_chunk(rows, row, labelled, at.x);
        // What is behind the context gets none of it, were it 0 times what is no number.
        square_.template multiply_chunk<false>(at.x, labelled, at.gram_grad, at.incoming);
        for (int64_t k = 0; k < labelled * static_cast<int64_t>(square_.step); k += S::width)
          (S::load(at.made + k) + S::load(at.incoming + k)).store(at.made + k);
      }
      for (int i = std::max(0, out_first_ - row); !stack_ && i < count; ++i) {
        T* const made = at.made + static_cast<int64_t>(i) * square_.step;
        add_weighted_rows(at.columns, square_.step, network_.result_layers, at.errors + row + i - out_first_,
                          out_count_, square_.size, static_cast<const T*>(made), made);
      }
      tokens(network_.grad_z, task).store(row, count, at.made, square_.step, nullptr);
    });
  }

  const Network<T>& network_;
  const HeadMatrices<T>& heads_;
  Square<T> square_;
  const EntryCoefficients<T>& gamma_;
  const EntryCoefficients<T>& beta_;
  core::Coefficients<T, int64_t> coefficients_;
  bool backward_, stack_;
  int out_first_, out_count_, first_layer_;
  ContextSums<T> context_;
};

template <class T>
void run(const Network<T>& network, ParallelFor parallel) {
  const int width = network.width, layers = network.layers;
  HeadMatrices<T> heads(network.q, network.p, layers * network.heads, width, network.block ? width - 1 : width);
  const int size = heads.square().size;
  const int64_t places = static_cast<int64_t>(layers) * network.kept;
  const EntryCoefficients<T> gamma(network.gamma, network.diagonal ? places : places * layers, width, size);
  const EntryCoefficients<T> beta(network.beta, places, width, size);
  const Memory memory((heads.numbers() + gamma.numbers() + beta.numbers()) * sizeof(T));
  T* const numbers = static_cast<T*>(memory.data());
  heads.copy_to(numbers);
  const WideGeneral<T> task(network, heads, gamma, beta, numbers + heads.numbers());
  WideTasks<T, WideGeneral<T>>(network.tasks, 0, 0, 0, network.pass != Pass::forward, false, task)
      .run(parallel, network.totals);
}

}  // namespace

void wide_general(const Network<float>& network, ParallelFor parallel) { run(network, parallel); }

void wide_general(const Network<double>& network, ParallelFor parallel) { run(network, parallel); }

}  // namespace memformer::cpu::MEMFORMER_ISA
