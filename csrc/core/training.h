// What the binding hands to the trainer of any device: the tasks, the models and the optimiser, as pointers and
// numbers.
//
// Models of an ensemble share the network's shape, the sampler and the optimiser's rule; each has parameters, a seed, a
// stream and hyperparameters of its own. A model's parameters are one array of `flat` numbers: q, p, gamma, beta as
// their tensors hold them. Kernels read the dense form of core/calls.h: dense[k] = constant[k] + the sum of the flat
// numbers that links join to k (heads that collapse, coefficients that are shared).

#pragma once

#include <cstdint>

#include "core/coefficients.h"

namespace memformer {

enum class Sampler : int {
  statistics,  // core/bartlett.h: the tasks' sufficient statistics
  tokens,      // Gaussian tokens
  given        // tasks of a fixed set
};

// Where every task's numbers come from. Factors (M, d, d), or null for the identity.
template <class T>
struct TaskSource {
  Sampler sampler;
  int models;                 // M
  int64_t tasks;              // B of a step
  int features;               // d
  int tokens;                 // N, of which the first `context` are labelled and the last `queries` asked
  int context;                // n
  int queries;                // 0: the query is integrated out
  bool prefixes;              // every query is labelled, and an example of those behind it
  T noise;                    // sigma of the context's responses,
  T noise_spread;             // or, unless 0, sigma of each task: noise + u noise_spread, u uniform
  const int64_t* seeds;       // (M,)
  const int64_t* streams;     // (M,)
  const T* weight_factor;     // w = W g
  const T* covariate_factor;  // x = C g
  const T* z;                 // (T, N, D), given
  const T* target;            // (T, queries)
  const int64_t* index;       // (draws, M, B): the tasks of a draw, or null for the first B
  int64_t first_draw;         // of `index`

  MEMFORMER_INLINE bool noisy() const { return noise != T(0) || noise_spread != T(0); }
};

template <class T>
struct TrainedNetwork {
  bool response;  // response-only: no P
  bool block;     // P = [[Bm, 0], [0, 1]] and Q = [[A, 0], [0, 0]]
  bool diagonal;
  int width;  // D
  int layers;
  int heads;
  int kept;
  int q_count;  // numbers of the dense form: q, p, gamma, beta one after another; 0 for those that are absent
  int p_count;
  int gamma_count;
  int beta_count;
  int links;
  const int* link_dense;
  const int* link_flat;
  const T* constant;  // (q_count + p_count + gamma_count + beta_count)

  int dense() const { return q_count + p_count + gamma_count + beta_count; }

  // Those of this network, in Gram space, where its gamma and beta lie.
  MEMFORMER_INLINE core::Coefficients<T> coefficients(const T* gamma, const T* beta) const {
    return {layers, kept, diagonal, 1, 1, gamma_count ? gamma : nullptr, beta_count ? beta : nullptr};
  }
};

enum class Rule : int { sgd, nesterov, adam, adamw };

// The optimiser of M models. Arrays of T are (M, flat), `flat_step` numbers apart: a multiple of 16, zeros behind
// `flat`.
template <class T>
struct OptimizerState {
  Rule rule;
  int models;
  int flat;
  int flat_step;
  int clip_groups;       // norms are clipped in groups of flat numbers: none, each matrix, or all together
  const int* clip_ends;  // where each group ends
  int64_t max_skipped;   // a model with as many skipped steps stops; -1: never
  const double* hyper;   // (M, 6): learning rate, momentum or beta1, beta2, eps, weight decay, clip norm
  const T* trained;      // 1, or 0 for numbers that stay as they are
  T* parameters;
  T* first;
  T* second;         // or null: SGD
  int64_t* skipped;  // (M,)
  // How many of a model's first layers share q and p (M,), or null: none do. Their numbers and moments are the same,
  // and their gradient is one, the sum of theirs.
  const int64_t* tied;
  int projections;  // 1: q, or 2: q and p; each has `layers` times `layer_flat` numbers, from the first on
  int layer_flat;
};

// Steps [step, step + steps), or as many of them as `seconds` leave time for, at least one.
template <class T>
struct Training {
  TrainedNetwork<T> network;
  TaskSource<T> source;
  OptimizerState<T> state;
  int threads;  // that the caller's library runs
  int64_t step;
  int64_t steps;
  double seconds;
  int64_t resample_every;
  const double* factors;  // (steps,) of the learning rate
  double* losses;         // (steps, M)
};

// Of one step, the sums over blocks of 1024 tasks: (M, blocks, flat + 1), the gradients of the sum of squared errors
// and then that sum.
struct BlockSums {
  int64_t first_block;
  int64_t blocks;
  const bool* active;  // (M,): models to work on; the others get zeros
  double* sums;
};

// Numbers of a stream, of tasks 0, 1, ...: (tasks, 4 blocks).
enum class Numbers : int { words, uniforms, normals };

template <class T>
struct RandomNumbers {
  Numbers kind;
  int64_t seed;
  int64_t stream;
  int64_t draw;
  int64_t tasks;
  int64_t blocks;
  double* numbers;
};

}  // namespace memformer
