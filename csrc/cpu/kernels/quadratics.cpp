// Learned first-order methods on given quadratics on the CPU, steps of which may end in a prox: one task per lane.
//
// Bytes per task: h, b and w0 read, the iterates written; backward: those again, and the gradients of h, b and w0.
// Operations per task: those of core/response_gram.h and, for each layer's prox, of core/proximal.h.

#include <algorithm>

#include "core/proximal.h"
#include "core/response_gram.h"
#include "cpu/kernels.h"
#include "cpu/lanes/elementary.h"
#include "cpu/tasks/parts.h"
#include "cpu/tasks/response_sums.h"

namespace memformer::cpu::MEMFORMER_ISA {
namespace {

template <class T, class Extent, bool has_prox>
class FirstOrderGroup {
  using S = Lanes<T>;
  using Task = core::FullQuadratic<S, Extent>;
  using Trace = core::ResponseTrace<S, Extent, 1>;

 public:
  FirstOrderGroup(const ProximalQuadratics<T>& call, Extent d)
      : call_(call), d_(d), method_{{call.layers, 1, call.diagonal, 1, 1, call.gamma, call.beta}, call.a} {}

  int sums() const {
    const auto& own = call_.proximal;
    const int bounds = (own.level ? 1 : 0) + (own.lower ? 1 : 0) + (own.upper ? 1 : 0);
    return of_gamma() + gammas() + betas() + (bounds * d_ + (own.radius ? 1 : 0)) * call_.layers;
  }

  // The points that proxes are taken of lie behind the trace.
  std::size_t scratch_cells() const { return static_cast<std::size_t>(points() + (has_prox ? call_.layers * d_ : 0)); }

  void operator()(Tasks tasks, S* sums, S* scratch) {
    const int d = d_, layers = call_.layers, first_layer = layers - call_.result_layers;
    Task task;
    task.extent = d_;
    load_rows(call_.h, tasks, 0, d, d, task.h);
    load_vector(call_.b, tasks, task.b);
    S s[Extent::limit];
    for (int c = 0; c < d; ++c) s[c] = S(T(0));
    if (call_.w0.data) {
      load_vector(call_.w0, tasks, s);
      for (int c = 0; c < d; ++c) s[c] = -s[c];
    }
    const Trace trace{{scratch}, layers, 1, d_};
    S* const point = scratch + points();
    core::response_forward<true>(task, method_, s, trace, [&](int l, S* made) {
      if constexpr (has_prox) {
        if (call_.backward) std::copy(made, made + d, point + l * d);
        core::prox(call_.proximal.layer(l, d), d_, made);
      }
    });
    if (!call_.backward) {
      for (int l = first_layer; l < layers; ++l) {
        for (int c = 0; c < d; ++c) s[c] = -trace.state(l + 1)[c];
        store_vector(s, layer_of(call_.result, l - first_layer), tasks);
      }
      return;
    }
    ResponseSums<S> sink{sums, sums + of_gamma(), sums + of_gamma() + gammas()};
    const core::Proximal<S> prox_sums = sums_of_prox(sums + of_gamma() + gammas() + betas());
    Task grad;
    grad.extent = d_;
    for (int k = 0; k < d * d; ++k) grad.h[k] = S(T(0));
    for (int c = 0; c < d; ++c) grad.b[c] = S(T(0));
    core::response_backward<true>(
        task, method_, trace,
        [&](int l, S* ds) {
          if (l >= first_layer) {
            S incoming[Extent::limit];
            load_vector(layer_of(call_.result, l - first_layer), tasks, incoming);
            for (int c = 0; c < d; ++c) ds[c] -= incoming[c];
          }
          if constexpr (has_prox) {
            core::prox_backward(call_.proximal.layer(l, d), d_, point + l * d, ds, prox_sums.layer(l, d));
          }
        },
        sink, s, &grad);
    if (call_.grad_h.data) store_rows(grad.h, call_.grad_h, tasks, 0, d, d);
    if (call_.grad_b.data) store_vector(grad.b, call_.grad_b, tasks);
    if (call_.grad_w0.data) {
      for (int c = 0; c < d; ++c) s[c] = -s[c];
      store_vector(s, call_.grad_w0, tasks);
    }
  }

 private:
  int of_gamma() const { return call_.layers * d_ * d_; }
  int gammas() const { return call_.gamma ? (call_.diagonal ? 1 : call_.layers) * call_.layers * d_ : 0; }
  int betas() const { return call_.beta ? call_.layers * d_ : 0; }
  int points() const { return Trace::size(call_.layers, 1, d_); }

  core::Proximal<S> sums_of_prox(S* next) const {
    const auto take = [&](const T* given, int count) {
      S* const first = given ? next : nullptr;
      next += given ? count : 0;
      return first;
    };
    const core::Proximal<const T>& own = call_.proximal;
    const int count = call_.layers * d_;
    return {take(own.level, count), take(own.lower, count), take(own.upper, count), take(own.radius, call_.layers)};
  }

  // A batch of vectors (B, d) as one of single rows.
  static Array as_rows(Array array) {
    array.stride[2] = array.stride[1];
    array.stride[1] = 0;
    return array;
  }

  void load_vector(const Array& array, Tasks tasks, S* to) const { load_rows(as_rows(array), tasks, 0, 1, d_, to); }
  void store_vector(const S* from, const Array& array, Tasks tasks) const {
    store_rows(from, as_rows(array), tasks, 0, 1, d_);
  }

  static Array layer_of(Array array, int layer) {
    array.data = static_cast<T*>(array.data) + layer * array.stride[0];
    array.stride[0] = array.stride[1];
    array.stride[1] = array.stride[2];
    return array;
  }

  const ProximalQuadratics<T>& call_;
  Extent d_;
  core::FirstOrder<T> method_;
};

template <bool has_prox, class T, class Extent>
void run_group(const ProximalQuadratics<T>& call, Extent d, ParallelFor parallel) {
  const FirstOrderGroup<T, Extent, has_prox> group(call, d);
  over_parts<T>(call.tasks, call.backward ? group.sums() : 0, group.scratch_cells(), call.totals, parallel, group);
}

template <class T, class Extent>
void run(const ProximalQuadratics<T>& call, Extent d, ParallelFor parallel) {
  call.proximal.any() ? run_group<true>(call, d, parallel) : run_group<false>(call, d, parallel);
}

}  // namespace

void quadratics(const ProximalQuadratics<float>& call, ParallelFor parallel) {
#if MEMFORMER_VECTOR_BYTES > 16
  switch (call.weights) {
    case 3: return run(call, core::Fixed<3>{}, parallel);
    case 5: return run(call, core::Fixed<5>{}, parallel);
    case 8: return run(call, core::Fixed<8>{}, parallel);
  }
#endif
  run(call, core::UpTo<16>{call.weights}, parallel);
}

void quadratics(const ProximalQuadratics<double>& call, ParallelFor parallel) {
  run(call, core::UpTo<16>{call.weights}, parallel);
}

}  // namespace memformer::cpu::MEMFORMER_ISA
