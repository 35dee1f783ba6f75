// The proxes of one task whose neighbours fill a SIMD vector, and the way back.
//
// What is past the last coordinate is zero in states and parameters: a prox leaves it zero. Operations: those of
// core/proximal.h for each entry; the parameters' gradients are read and written with the vectors.

#pragma once

#include "core/proximal.h"
#include "cpu/lanes/elementary.h"
#include "cpu/wide/vector_memory.h"

namespace memformer::cpu::MEMFORMER_ISA {

template <class T>
class VectorProximal {
  using S = Lanes<T>;

 public:
  VectorProximal(const core::Proximal<const T>& given, int layers, int d, int length)
      : level_(given.level, layers, d, length),
        lower_(given.lower, layers, d, length),
        upper_(given.upper, layers, d, length),
        given_(given),
        layers_(layers),
        length_(length) {}

  bool any() const { return given_.any(); }
  int64_t numbers() const { return level_.numbers() + lower_.numbers() + upper_.numbers(); }

  // The parameters in whole vectors, at `memory`.
  void copy_to(T* memory) {
    own_ = {level_.copy_to(memory), lower_.copy_to(memory + level_.numbers()),
            upper_.copy_to(memory + level_.numbers() + lower_.numbers()), given_.radius};
  }

  // Sums of gradients: those of level, lower and upper as they are copied, then those of the radii.
  int64_t sums() const { return numbers() + (given_.radius ? layers_ : 0); }

  double* add(const T* sums, double* totals) const {
    totals = lower_.add(sums + level_.numbers(), level_.add(sums, totals));
    totals = upper_.add(sums + level_.numbers() + lower_.numbers(), totals);
    for (int l = 0; given_.radius && l < layers_; ++l) *totals++ += static_cast<double>(sums[numbers() + l]);
    return totals;
  }

  // The prox of layer l at the state s, in place.
  void apply(int l, T* s) const {
    const auto own = own_.layer(l, length_);
    if (own.radius) {
      const core::Projection<T> projection(dot(s, s, length_), *own.radius);
      for (int c = 0; c < length_; c += S::width) (S::load(s + c) * projection.scale).store(s + c);
      return;
    }
    for (int c = 0; c < length_; c += S::width) core::coordinate_prox(own, c, S::load(s + c), load).store(s + c);
  }

  // From the gradient ds of the state after the prox at `point` that of the point, in place; adds the parameters' to
  // the sums.
  void pull_back(int l, const T* point, T* ds, T* sums) const {
    const auto own = own_.layer(l, length_);
    if (own.radius) {
      const core::Projection<T> projection(dot(point, point, length_), *own.radius);
      const T along = dot(point, static_cast<const T*>(ds), length_);
      sums[numbers() + l] += projection.radius_grad(*own.radius, along);
      for (int c = 0; c < length_; c += S::width) {
        projection.pull_back(S::load(point + c), S::load(ds + c), along).store(ds + c);
      }
      return;
    }
    const core::Proximal<T> grads{sums, sums + level_.numbers(), sums + level_.numbers() + lower_.numbers(), nullptr};
    const auto add = [](T* sum, S value) { (S::load(sum) + value).store(sum); };
    for (int c = 0; c < length_; c += S::width) {
      const S grad = S::load(ds + c);
      core::coordinate_pull_back(own, c, S::load(point + c), grad, grads.layer(l, length_), load, add).store(ds + c);
    }
  }

 private:
  static MEMFORMER_INLINE S load(const T* from) { return S::load(from); }

  EntryCoefficients<T> level_, lower_, upper_;
  core::Proximal<const T> given_, own_{};
  int layers_, length_;
};

}  // namespace memformer::cpu::MEMFORMER_ISA
