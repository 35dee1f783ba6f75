// Gram matrices of contexts whose tokens have weights, as their kernel takes them.

#pragma once

#include "core/calls.h"

namespace memformer {

// What of a context the forward makes: a long one of few tasks is cut into pieces, which take two calls.
enum class WeightedPart : int { whole, largest, sums };

// `matrix` = (n / W) sum over the context of w_i z_i z_i^T with W = sum w_i, n the number of the context's tokens, so
// that a network, which divides by n, works on weighted means; or the gradients of tokens and weights from that of
// `matrix`, which stands in its place then:
//
//   grad z_i = (n / W) w_i (dM + dM^T) z_i,    grad w_i = (n / W) (z_i^T dM z_i - <dM, M> / n)
//
// where M is `total`. The second is linear in no root of a weight, so that it is right at 0 too.
//
// A token of weight 0 is dropped by selection. In the gradient of its own weight, numbers of it whose squares overflow
// or that are none count as 0, and that gradient is 0 where it is no finite number itself. A task without weight has M
// = 0 and gradients 0.
//
// Sums are of weights over the largest, so that they neither overflow nor vanish. `largest` holds it for each task
// (never less than the smallest normal number), and `share` n / sum_i (w_i / largest), 0 without weight: the forward
// writes both, the backward reads them.
template <class T>
struct WeightedGram : Gram<T> {  // `tokens`: rows of `z` that a context may hold, all of which `grad_z` gets
  WeightedPart part;             // sums: `largest` is given, `matrix` and `share` are sums that nothing divides
  int others;                    // rows of `grad_weights` behind those of `grad_z`, which get zeros
  int whole;                     // n of the task that these are pieces of, or 0
  Array weights;                 // (B, N, 1), not negative
  Array grad_weights;            // (B, N, 1) or null; `grad_z` too may be null
  Array total;                   // (B, D, D) in the type T, of the backward
  Array largest;                 // (B, 1) in the type T
  Array share;                   // (B, 1) in the type T
};

}  // namespace memformer
