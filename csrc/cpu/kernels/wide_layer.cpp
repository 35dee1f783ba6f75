// One layer on tokens that are too wide for a lane, or too many, with the registers of the layers before it: one task
// at a time, vectors along its features.
//
// A task belongs to one thread, and goes by chunks of rows. Bytes per task: its tokens, twice, and J + 1 layers'
// registers, read or written once; backward as much again for their gradients, and twice that of the result where
// the tokens want one. Multiply-adds per task (N tokens, n of them examples, H heads, R registers): n D^2 / 2 + 2 H D^3
// + R N D^2 forward; backward that again, 4 H D^3 + 2 R N D^2 + n D^2 more.

#include "cpu/kernels.h"
#include "cpu/wide/context_sums.h"
#include "cpu/wide/head_matrices.h"
#include "cpu/wide/vector_memory.h"
#include "cpu/wide/wide_tasks.h"

namespace memformer::cpu::MEMFORMER_ISA {
namespace {

template <class T>
class WideLayer {
  using S = Lanes<T>;

 public:
  WideLayer(const Layer<T>& layer, const HeadMatrices<T>& heads, const EntryCoefficients<T>& gamma,
            const EntryCoefficients<T>& beta, T* memory)
      : layer_(layer),
        heads_(heads),
        square_(heads.square()),
        gamma_(gamma),
        beta_(beta),
        gammas_(gamma.copy_to(memory)),
        betas_(beta.copy_to(memory + gamma.numbers())),
        context_(layer.width, 0, layer.context) {}

  int sums() const {
    return static_cast<int>(2 * layer_.heads * square_.numbers() + gamma_.numbers() + beta_.numbers());
  }

  void add_sums(const T* sums, double* totals) const {
    for (int k = 0; k < 2 * layer_.heads; ++k, sums += square_.numbers()) totals = heads_.add(sums, totals);
    beta_.add(sums + gamma_.numbers(), gamma_.add(sums, totals));
  }

  int64_t scratch() const {
    return context_.count() + context_.example_count() + squares() * square_.numbers() + chunks * square_.chunk();
  }

  void operator()(int64_t task, T* sums, T* scratch, TaskVectors<T>) const {
    Places at(*this, scratch);
    const int n = layer_.lengths ? static_cast<int>(layer_.lengths[task]) : layer_.context;
    const T scale = T(1) / static_cast<T>(n);
    context_.sum(tokens(layer_.z, task), 0, n, at.context, at.examples, static_cast<T*>(nullptr), [](int) {});
    square_.load(at.context, square_.size, scale, at.gram);
    for (int r = 0; r < layer_.kept; ++r)
      heads_.mix(r * shared(), (r + 1) * shared(), at.gram, at.query_grams, of_register(at.mixed, r));
    if (layer_.backward) {
      backward(task, n, scale, sums, at);
    } else {
      forward(task, at);
    }
  }

 private:
  static constexpr int chunks = 6;

  // The sums of the context, and room for examples; G, Q_h G, M_r; backward also the gradients of M_r and of G, M_r^T,
  // and a spare square; chunks of rows.
  struct Places {
    Places(const WideLayer& of, T* scratch) {
      const int64_t square = of.square_.numbers(), kept = of.layer_.kept;
      context = scratch;
      examples = context + of.context_.count();
      gram = examples + of.context_.example_count();
      query_grams = gram + square;
      mixed = query_grams + of.layer_.heads * square;
      mixed_grads = mixed + kept * square;
      gram_grad = mixed_grads + (of.layer_.backward ? kept * square : 0);
      spare = gram_grad + (of.layer_.backward ? square : 0);
      x = spare + (of.layer_.backward ? square : 0);
      grad = x + of.square_.chunk();
      made = grad + of.square_.chunk();
      fresh = made + of.square_.chunk();
      before = fresh + of.square_.chunk();
      other = before + of.square_.chunk();
    }
    T *context, *examples, *gram, *query_grams, *mixed, *mixed_grads, *gram_grad, *spare;
    T *x, *grad, *made, *fresh, *before, *other;
  };

  int64_t squares() const {
    return 1 + layer_.heads + layer_.kept * (layer_.backward ? 2 : 1) + (layer_.backward ? 2 : 0);
  }
  // Heads whose sum a register holds.
  int shared() const { return layer_.heads / layer_.kept; }
  T* of_register(T* squares, int r) const { return squares + r * square_.numbers(); }

  TaskRows<T> tokens(const Array& array, int64_t task) const {
    return TaskRows<T>(array, layer_.tokens, layer_.width, task, 0);
  }
  // Register r of the task.
  TaskRows<T> rows_of(const Registers& registers, int r, int64_t task) const {
    Array one = registers.array;
    one.data = static_cast<char*>(one.data) + r * registers.stride * bytes_of_number(one.storage);
    return tokens(one, task);
  }
  const Registers& last() const { return layer_.registers[layer_.earlier - 1]; }

  template <class Chunk>
  void each_chunk(Chunk body) const {
    for (int row = 0; row < layer_.tokens; row += chunk_rows) {
      checkpoint_after(static_cast<int64_t>(chunk_rows) * square_.size * square_.size);
      body(row, std::min(chunk_rows, layer_.tokens - row));
    }
  }

  void store(const TaskRows<T>& rows, int row, int count, const T* from) const {
    rows.store(row, count, from, square_.step, nullptr);
  }

  // body(i, c, place) for every vector of `count` rows.
  template <class Vector>
  MEMFORMER_INLINE void each_vector(int count, Vector body) const {
    for (int64_t i = 0; i < count; ++i) {
      for (int c = 0; c < square_.size; c += S::width) body(static_cast<int>(i), c, i * square_.step + c);
    }
  }

  // Coefficients of a register's rows from `row` on: the first, and how far the next row's are.
  struct Own {
    const T* data;
    int64_t step;
    MEMFORMER_INLINE S at(int i, int c) const { return S::load(data + i * step + c); }
  };
  static int64_t place_of(int64_t register_place, int coefficient_rows, int row, int size) {
    return (register_place * coefficient_rows + (coefficient_rows > 1 ? row : 0)) * size;
  }
  Own gamma(int j, int r, int row) const {
    return {gammas_ + place_of(j * layer_.kept + r, layer_.gamma_rows, row, square_.size),
            layer_.gamma_rows > 1 ? square_.size : 0};
  }
  Own beta(int r, int row) const {
    return {betas_ + place_of(r, layer_.beta_rows, row, square_.size), layer_.beta_rows > 1 ? square_.size : 0};
  }

  // Adds left * right to the gradient of coefficients that start at `sums`.
  void add_products(const T* left, const T* right, int count, int coefficient_rows, T* sums) const {
    if (coefficient_rows > 1) {
      return each_vector(count, [&](int i, int c, int64_t k) {
        T* const to = sums + static_cast<int64_t>(i) * square_.size + c;
        (S::load(to) + S::load(left + k) * S::load(right + k)).store(to);
      });
    }
    for (int c = 0; c < square_.size; c += S::width) {
      S sum(T(0));
      for (int64_t i = 0; i < count; ++i)
        sum += S::load(left + i * square_.step + c) * S::load(right + i * square_.step + c);
      (S::load(sums + c) + sum).store(sums + c);
    }
  }

  // The new register r of a chunk; `before` is left with that of the layer before, where it is remembered.
  void make_register(int64_t task, int r, int row, int count, Places& at) const {
    square_.template multiply_chunk<false>(at.x, count, of_register(at.mixed, r), at.fresh);
    if (!betas_) return;
    square_.load_chunk(rows_of(last(), r, task), row, count, at.before);
    const Own own = beta(r, row);
    each_vector(count, [&](int i, int c, int64_t k) {
      (S::load(at.fresh + k) + S::load(at.before + k) * own.at(i, c)).store(at.fresh + k);
    });
  }

  void forward(int64_t task, Places& at) const {
    each_chunk([&](int row, int count) {
      square_.load_chunk(tokens(layer_.z, task), row, count, at.x);
      std::copy(at.x, at.x + static_cast<int64_t>(count) * square_.step, at.made);
      for (int r = 0; r < layer_.kept; ++r) {
        make_register(task, r, row, count, at);
        store(rows_of(layer_.fresh, r, task), row, count, at.fresh);
        for (int j = 0; gammas_ && j < layer_.earlier; ++j) {
          square_.load_chunk(rows_of(layer_.registers[j], r, task), row, count, at.other);
          add_weighted(gamma(j, r, row), at.other, count, at.made);
        }
        if (gammas_) {
          add_weighted(gamma(layer_.earlier, r, row), at.fresh, count, at.made);
        } else {
          each_vector(count,
                      [&](int, int, int64_t k) { (S::load(at.made + k) + S::load(at.fresh + k)).store(at.made + k); });
        }
      }
      store(tokens(layer_.result, task), row, count, at.made);
    });
  }

  void add_weighted(Own own, const T* from, int count, T* to) const {
    each_vector(count,
                [&](int i, int c, int64_t k) { (S::load(to + k) + S::load(from + k) * own.at(i, c)).store(to + k); });
  }

  // The gradient of the new register r of a chunk, in `fresh`, from that of the result, in `grad`.
  void make_register_grad(int64_t task, int r, int row, int count, Places& at, T* to) const {
    square_.load_chunk(rows_of(layer_.fresh, r, task), row, count, to);
    if (gammas_) return add_weighted(gamma(layer_.earlier, r, row), at.grad, count, to);
    each_vector(count, [&](int, int, int64_t k) { (S::load(to + k) + S::load(at.grad + k)).store(to + k); });
  }

  void backward(int64_t task, int n, T scale, T* sums, Places& at) const {
    const bool wants_z = layer_.grad_z.data != nullptr;
    clear(at.mixed_grads, layer_.kept * square_.numbers());
    each_chunk([&](int row, int count) {
      square_.load_chunk(tokens(layer_.z, task), row, count, at.x);
      square_.load_chunk(tokens(layer_.result, task), row, count, at.grad);
      for (int r = 0; r < layer_.kept; ++r) backward_chunk(task, r, row, count, sums, at);
    });
    T* const gram_grad = wants_z ? at.gram_grad : nullptr;
    if (wants_z) clear(gram_grad, square_.numbers());
    const int64_t heads = layer_.heads * square_.numbers();
    for (int r = 0; r < layer_.kept; ++r) {
      heads_.mix_backward(r * shared(), (r + 1) * shared(), at.gram, at.query_grams, of_register(at.mixed_grads, r),
                          at.spare, sums, sums + heads, gram_grad);
    }
    if (wants_z) write_token_grads(task, n, scale, at);
  }

  // Gradients of M_r, of coefficients and of earlier registers.
  void backward_chunk(int64_t task, int r, int row, int count, T* sums, Places& at) const {
    T* const gamma_grads = sums + 2 * layer_.heads * square_.numbers();
    T* const beta_grads = gamma_grads + gamma_.numbers();
    T* const register_grad = at.made;
    make_register_grad(task, r, row, count, at, register_grad);
    if (gammas_) {
      make_register(task, r, row, count, at);
      add_gamma_grads(layer_.earlier, r, row, count, at.fresh, at.grad, gamma_grads);
    } else if (betas_) {
      square_.load_chunk(rows_of(last(), r, task), row, count, at.before);
    }
    if (betas_) {
      add_products(at.before, register_grad, count, layer_.beta_rows,
                   beta_grads + place_of(r, layer_.beta_rows, row, square_.size));
    }
    for (int j = 0; j < layer_.earlier; ++j) {
      if (gammas_) {
        square_.load_chunk(rows_of(layer_.registers[j], r, task), row, count, at.other);
        add_gamma_grads(j, r, row, count, at.other, at.grad, gamma_grads);
      }
      if (!layer_.grad_registers || !layer_.grad_registers[j].array.data) continue;
      clear(at.other, static_cast<int64_t>(count) * square_.step);
      if (gammas_) add_weighted(gamma(j, r, row), at.grad, count, at.other);
      if (betas_ && j + 1 == layer_.earlier) add_weighted(beta(r, row), register_grad, count, at.other);
      store(rows_of(layer_.grad_registers[j], r, task), row, count, at.other);
    }
    square_.add_outer_products(at.x, register_grad, count, of_register(at.mixed_grads, r));
  }

  void add_gamma_grads(int j, int r, int row, int count, const T* own, const T* grad, T* sums) const {
    add_products(own, grad, count, layer_.gamma_rows,
                 sums + place_of(j * layer_.kept + r, layer_.gamma_rows, row, square_.size));
  }

  // grad + sum_r dR_r M_r^T for every row, and (dG + dG^T) z / n for those of the context.
  void write_token_grads(int64_t task, int n, T scale, Places& at) const {
    // Nothing reads the gradients of M_r from here on: their places take the transposes of M_r.
    for (int r = 0; r < layer_.kept; ++r)
      square_.transpose_to(of_register(at.mixed, r), of_register(at.mixed_grads, r));
    square_.transpose_to(at.gram_grad, at.spare);
    for (int64_t k = 0; k < square_.numbers(); k += S::width) {
      ((S::load(at.gram_grad + k) + S::load(at.spare + k)) * scale).store(at.gram_grad + k);
    }
    each_chunk([&](int row, int count) {
      square_.load_chunk(tokens(layer_.result, task), row, count, at.grad);
      std::copy(at.grad, at.grad + static_cast<int64_t>(padded_to(count, tile_rows)) * square_.step, at.made);
      for (int r = 0; r < layer_.kept; ++r) {
        make_register_grad(task, r, row, count, at, at.fresh);
        square_.template multiply_chunk<true>(at.fresh, count, of_register(at.mixed_grads, r), at.made);
      }
      const int labelled = std::clamp(n - row, 0, count);
      if (labelled) {
        square_.load_chunk(tokens(layer_.z, task), row, labelled, at.x);
        square_.template multiply_chunk<true>(at.x, labelled, at.gram_grad, at.made);
      }
      store(tokens(layer_.grad_z, task), row, count, at.made);
    });
  }

  const Layer<T>& layer_;
  const HeadMatrices<T>& heads_;
  Square<T> square_;
  const EntryCoefficients<T>& gamma_;
  const EntryCoefficients<T>& beta_;
  const T* gammas_;
  const T* betas_;
  ContextSums<T> context_;
};

template <class T>
void run(const Layer<T>& layer, ParallelFor parallel) {
  const int width = layer.width;
  HeadMatrices<T> heads(layer.q, layer.p, layer.heads, width, width);
  const int size = heads.square().size;
  const int64_t kept = layer.kept;
  const EntryCoefficients<T> gamma(layer.gamma, (layer.earlier + 1) * kept * layer.gamma_rows, width, size);
  const EntryCoefficients<T> beta(layer.beta, kept * layer.beta_rows, width, size);
  const Memory memory((heads.numbers() + gamma.numbers() + beta.numbers()) * sizeof(T));
  T* const numbers = static_cast<T*>(memory.data());
  heads.copy_to(numbers);
  const WideLayer<T> task(layer, heads, gamma, beta, numbers + heads.numbers());
  WideTasks<T, WideLayer<T>>(layer.tasks, 0, 0, 0, layer.backward, false, task).run(parallel, layer.totals);
}

}  // namespace

void wide_layer(const Layer<float>& layer, ParallelFor parallel) { run(layer, parallel); }

void wide_layer(const Layer<double>& layer, ParallelFor parallel) { run(layer, parallel); }

}  // namespace memformer::cpu::MEMFORMER_ISA
