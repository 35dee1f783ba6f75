// Learned first-order methods on given quadratics of more weights than a lane can hold, steps of which may end in a
// prox: one task at a time, vectors along its weights.
//
// A task belongs to one thread. Bytes per task: h, b and w0 read, the iterates written; backward: those again, and the
// gradients of h, b and w0. Multiply-adds per task (d weights, L layers): 2 L d^2 forward, as many for the gradients of
// vectors and L d^2 each for those of A and h.

#include "cpu/kernels.h"
#include "cpu/wide/vector_memory.h"
#include "cpu/wide/vector_proximal.h"
#include "cpu/wide/wide_tasks.h"

namespace memformer::cpu::MEMFORMER_ISA {
namespace {

template <class T>
class WideQuadratics {
  using S = Lanes<T>;

 public:
  WideQuadratics(const ProximalQuadratics<T>& call, const Preconditioners<T>& preconditioners,
                 const VectorProximal<T>& proximal, const EntryCoefficients<T>& gamma, const EntryCoefficients<T>& beta,
                 T* memory)
      : call_(call),
        a_(preconditioners),
        proximal_(proximal),
        gamma_(gamma),
        beta_(beta),
        memory_{{call.layers, 1, call.diagonal || !call.gamma, gamma.entries(), beta.entries(), gamma.copy_to(memory),
                 beta.copy_to(memory + gamma.numbers())}},
        d_(call.weights),
        size_(whole_rows<T>(d_)),
        first_layer_(call.layers - call.result_layers) {}

  int sums() const { return static_cast<int>(coefficients() + proximal_.sums()); }

  void add_sums(const T* sums, double* totals) const {
    totals = beta_.add(sums + memory_.gamma_count(), gamma_.add(sums, totals));
    proximal_.add(sums + coefficients(), totals);
  }

  int64_t scratch() const {
    const int vectors = proximal_.any() ? 5 : 4;
    return static_cast<int64_t>(size_ + vectors * call_.layers + 4) * size_;
  }

  void operator()(int64_t task, T* sums, T* scratch, TaskVectors<T> vectors) const {
    Places at(*this, scratch);
    load(task, at);
    forward(vectors, at);
    if (call_.backward) {
      backward(task, vectors, sums, at);
      write_grads(task, at);
      return;
    }
    for (int l = first_layer_; l < call_.layers; ++l) store_negative(at.states + (l + 1) * size_, iterate(task, l));
  }

 private:
  int64_t coefficients() const { return memory_.gamma_count() + memory_.beta_count(); }

  // H by rows, b; s_0..s_L, u_0..u_{L-1}, gradients dg_0..dg_{L-1} of g, registers, ds, a vector on its way, and the
  // points that proxes are taken of.
  struct Places {
    Places(const WideQuadratics& of, T* scratch) {
      const int layers = of.call_.layers, size = of.size_;
      h = scratch;
      b = h + size * size;
      states = b + size;
      updates = states + (layers + 1) * size;
      grads = updates + layers * size;
      registers = grads + layers * size;
      ds = registers + layers * size;
      spare = ds + size;
      points = spare + size;
    }
    T *h, *b, *states, *updates, *grads, *registers, *ds, *spare, *points;
  };

  // A vector of d numbers in memory.
  struct Strided {
    T* data;
    int64_t step;
  };

  static Strided vector_of(const Array& array, int64_t offset, int64_t step) {
    return {static_cast<T*>(array.data) + offset, step};
  }
  Strided of_task(const Array& array, int64_t task) const {
    return vector_of(array, task * array.stride[0], array.stride[1]);
  }
  Strided matrix_row(const Array& array, int64_t task, int row) const {
    return vector_of(array, task * array.stride[0] + row * array.stride[1], array.stride[2]);
  }
  // The iterate after layer l, or its gradient.
  Strided iterate(int64_t task, int l) const {
    const Array& result = call_.result;
    return vector_of(result, (l - first_layer_) * result.stride[0] + task * result.stride[1], result.stride[2]);
  }

  void load_vector(Strided from, T* to) const {
    if (from.step == 1) {
      std::copy(from.data, from.data + d_, to);
    } else {
      for (int c = 0; c < d_; ++c) to[c] = from.data[c * from.step];
    }
    clear(to + d_, size_ - d_);
  }
  void store(const T* from, Strided to) const {
    if (to.step == 1) {
      std::copy(from, from + d_, to.data);
    } else {
      for (int c = 0; c < d_; ++c) to.data[c * to.step] = from[c];
    }
  }
  void store_negative(const T* from, Strided to) const {
    for (int c = 0; c < d_; ++c) to.data[c * to.step] = -from[c];
  }

  void load(int64_t task, const Places& at) const {
    for (int row = 0; row < d_; ++row) load_vector(matrix_row(call_.h, task, row), at.h + row * size_);
    clear(at.h + d_ * size_, static_cast<int64_t>(size_ - d_) * size_);
    load_vector(of_task(call_.b, task), at.b);
    clear(at.states, size_);
    if (!call_.w0.data) return;
    load_vector(of_task(call_.w0, task), at.states);
    for (int c = 0; c < d_; ++c) at.states[c] = -at.states[c];
  }

  void forward(TaskVectors<T> vectors, const Places& at) const {
    const int size = size_;
    for (int l = 0; l < call_.layers; ++l) {
      const T* const s = at.states + l * size;
      T* const g = vectors.residual(l);
      T* const r = at.registers + l * size;
      multiply_rows(static_cast<const T*>(at.h), size, size, s, size, g);
      for (int c = 0; c < size; c += S::width) (S::load(at.b + c) + S::load(g + c)).store(g + c);
      a_.multiply(l, g, r);
      memory_.remember(l, 0, 0, size, r - size, r);
      T* const next = at.states + (l + 1) * size;
      memory_.update(l, 0, size, at.registers, size, s, next);
      if (!proximal_.any()) continue;
      std::copy(next, next + size, at.points + l * size);
      proximal_.apply(l, next);
    }
  }

  void backward(int64_t task, TaskVectors<T> vectors, T* sums, const Places& at) const {
    const int size = size_, layers = call_.layers;
    clear(at.ds, size);
    for (int l = layers - 1; l >= 0; --l) {
      if (l >= first_layer_) {
        load_vector(iterate(task, l), at.spare);
        for (int c = 0; c < size; c += S::width) (S::load(at.ds + c) - S::load(at.spare + c)).store(at.ds + c);
      }
      if (proximal_.any()) proximal_.pull_back(l, at.points + l * size, at.ds, sums + coefficients());
      std::copy(at.ds, at.ds + size, at.updates + l * size);
      const T* const r = at.registers + l * size;
      const T* const later = l + 1 < layers ? vectors.grad(l + 1) : nullptr;
      memory_.register_grad(
          l, 0, [](int) { return 0; }, size, at.updates, size, r, later, r - size, sums, sums + memory_.gamma_count(),
          vectors.grad(l));
      T* const dg = at.grads + l * size;
      clear(dg, size);
      a_.add_transposed(l, vectors.grad(l), dg);
      add_weighted_rows(at.h, size, d_, dg, 1, size, static_cast<const T*>(at.ds), at.ds);
    }
  }

  // dh = sum_l dg_l s_l^T, db = sum_l dg_l, dw0 = -ds.
  void write_grads(int64_t task, const Places& at) const {
    const int layers = call_.layers;
    const T one = T(1);
    const T* const none = nullptr;
    for (int row = 0; call_.grad_h.data && row < d_; ++row) {
      add_weighted_rows(at.states, size_, layers, at.grads + row, size_, size_, none, at.spare);
      store(at.spare, matrix_row(call_.grad_h, task, row));
    }
    if (call_.grad_b.data) {
      add_weighted_rows(at.grads, size_, layers, &one, 0, size_, none, at.spare);
      store(at.spare, of_task(call_.grad_b, task));
    }
    if (call_.grad_w0.data) store_negative(at.ds, of_task(call_.grad_w0, task));
  }

  const ProximalQuadratics<T>& call_;
  const Preconditioners<T>& a_;
  const VectorProximal<T>& proximal_;
  const EntryCoefficients<T>& gamma_;
  const EntryCoefficients<T>& beta_;
  VectorMemory<T> memory_;
  int d_, size_;
  int first_layer_;  // the first layer whose iterate is asked for
};

template <class T>
void run(const ProximalQuadratics<T>& call, ParallelFor parallel) {
  const int d = call.weights, size = whole_rows<T>(d), layers = call.layers;
  Preconditioners<T> a(call.a, layers, d);
  const EntryCoefficients<T> gamma(call.gamma, static_cast<int64_t>(call.diagonal ? 1 : layers) * layers, d, size);
  const EntryCoefficients<T> beta(call.beta, layers, d, size);
  VectorProximal<T> proximal(call.proximal, layers, d, size);
  const Memory memory((a.numbers() + proximal.numbers() + gamma.numbers() + beta.numbers()) * sizeof(T));
  T* const numbers = static_cast<T*>(memory.data());
  a.copy_to(numbers);
  proximal.copy_to(numbers + a.numbers());
  const WideQuadratics<T> task(call, a, proximal, gamma, beta, numbers + a.numbers() + proximal.numbers());
  WideTasks<T, WideQuadratics<T>>(call.tasks, d, layers, 1, call.backward, call.backward, task)
      .run(parallel, call.totals);
}

}  // namespace

void wide_quadratics(const ProximalQuadratics<float>& call, ParallelFor parallel) { run(call, parallel); }

void wide_quadratics(const ProximalQuadratics<double>& call, ParallelFor parallel) { run(call, parallel); }

}  // namespace memformer::cpu::MEMFORMER_ISA
