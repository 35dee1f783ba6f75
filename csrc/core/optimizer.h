// Optimisers, number by number: stochastic gradient descent with momentum, Adam (Kingma & Ba, arXiv 1412.6980) and
// AdamW (Loshchilov & Hutter, arXiv 1711.05101), in the formulas of torch.optim.
//
// One number of a model per S. Scalars are made once a step, in double. Operations for a number: 3 multiply-adds (SGD),
// 8 with a square root and a division (Adam).

#pragma once

#include <math.h>

#include "core/elementary.h"
#include "core/training.h"

namespace memformer::core {

// What all numbers of a model share in one step.
template <class T>
struct StepScalars {
  Rule rule;
  T rate;          // learning rate; for Adam over 1 - beta1^t
  T momentum;      // or beta1
  T new_first;     // 1 - beta1
  T second;        // beta2
  T new_second;    // 1 - beta2
  T second_scale;  // sqrt(1 - beta2^t)
  T epsilon;
  T decay;  // added to the gradient: weight decay
  T kept;   // of a parameter: 1 - rate * weight decay (AdamW)
};

// Adam's corrections of the moments' bias after t steps: 1 - beta1^t and sqrt(1 - beta2^t).
struct BiasCorrections {
  double first;
  double second;
};

MEMFORMER_INLINE BiasCorrections bias_corrections(const double* hyper, int64_t t) {
  const double count = static_cast<double>(t);
  return {1.0 - pow(hyper[1], count), sqrt(1.0 - pow(hyper[2], count))};
}

MEMFORMER_INLINE bool corrects_bias(Rule rule) { return rule == Rule::adam || rule == Rule::adamw; }

// `hyper`: learning rate, momentum or beta1, beta2, epsilon, weight decay; `factor` of the schedule; `corrections` are
// read by Adam alone.
template <class T>
MEMFORMER_INLINE StepScalars<T> step_scalars(Rule rule, const double* hyper, double factor,
                                             const BiasCorrections& corrections) {
  const double rate = hyper[0] * factor;
  const bool adam = corrects_bias(rule);
  StepScalars<T> scalars;
  scalars.rule = rule;
  scalars.rate = static_cast<T>(adam ? rate / corrections.first : rate);
  scalars.momentum = static_cast<T>(hyper[1]);
  scalars.new_first = static_cast<T>(1.0 - hyper[1]);
  scalars.second = static_cast<T>(hyper[2]);
  scalars.new_second = static_cast<T>(1.0 - hyper[2]);
  scalars.second_scale = static_cast<T>(adam ? corrections.second : 1.0);
  scalars.epsilon = static_cast<T>(hyper[3]);
  scalars.decay = static_cast<T>(rule == Rule::adamw ? 0.0 : hyper[4]);
  scalars.kept = static_cast<T>(rule == Rule::adamw ? 1.0 - rate * hyper[4] : 1.0);
  return scalars;
}

// The same for the t-th step that is taken, from 1.
template <class T>
MEMFORMER_INLINE StepScalars<T> step_scalars(Rule rule, const double* hyper, double factor, int64_t t) {
  const BiasCorrections none{1.0, 1.0};
  return step_scalars<T>(rule, hyper, factor, corrects_bias(rule) ? bias_corrections(hyper, t) : none);
}

// One step of a number, in place; `second` is read and written by Adam alone.
template <class S>
MEMFORMER_INLINE void step_number(const StepScalars<ValueOf<S>>& scalars, S grad, S& parameter, S& first, S& second) {
  grad += parameter * scalars.decay;
  if (corrects_bias(scalars.rule)) {
    first += (grad - first) * scalars.new_first;
    second = second * scalars.second + grad * grad * scalars.new_second;
    const S scale = square_root(second) / S(scalars.second_scale) + S(scalars.epsilon);
    parameter = parameter * scalars.kept - first / scale * scalars.rate;
  } else {
    first = first * scalars.momentum + grad;
    const S direction = scalars.rule == Rule::nesterov ? grad + first * scalars.momentum : first;
    parameter = parameter - direction * scalars.rate;
  }
}

// What to multiply gradients with so that their norm is at most `limit`.
MEMFORMER_INLINE double clip_scale(double squared_norm, double limit) {
  const double norm = sqrt(squared_norm);
  return norm > limit ? limit / norm : 1.0;
}

}  // namespace memformer::core
