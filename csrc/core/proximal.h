// What the steps of a first-order method end in, and the way back: shrinkage and bounds, or a projection onto a ball.
//
//   w -> clamp(sign(w) max(|w| - t, 0), lower, upper)    t = max(level, 0)
//   w -> w min(1, rho / |w|)                             rho = max(radius, 0)
//
// of t |w|_1 over lower <= w <= upper, and of |w| <= rho. States are s = -w: shrinkage and balls are odd, bounds change
// places. At a kink the derivative is that of torch's softshrink and clamp; on the sphere of a ball it is that inside.
//
// S must also have comparisons that give masks, which `select` takes and & joins, and `square_root`. Nothing branches
// on a number. A parameter or a state that is NaN stays one. Operations: about 10 for each coordinate and parameter.

#pragma once

#include "core/elementary.h"
#include "core/proximal_parameters.h"
#include "core/scalar.h"

namespace memformer::core {

template <class T>
MEMFORMER_INLINE T select(bool chosen, T yes, T no) {
  return chosen ? yes : no;
}

// The larger and the lesser of two numbers; NaN where one of them is.
template <class S>
MEMFORMER_INLINE S larger(S a, S b) {
  return select(b == b, select(a < b, b, a), b);
}
template <class S>
MEMFORMER_INLINE S lesser(S a, S b) {
  return select(b == b, select(a > b, b, a), b);
}

template <class S>
MEMFORMER_INLINE S shrunk(S s, S level) {
  const S t = larger(level, S(0));
  return s - lesser(larger(s, -t), t);
}

// One coordinate after the prox of a layer; read(pointer) is a parameter as an S.
template <class S, class T, class Read>
MEMFORMER_INLINE S coordinate_prox(const Proximal<const T>& own, int c, S s, Read read) {
  if (own.level) s = shrunk(s, read(own.level + c));
  if (own.lower) s = lesser(s, -read(own.lower + c));
  if (own.upper) s = larger(s, -read(own.upper + c));
  return s;
}

// From the gradient of one coordinate after the prox that of the point it was taken of; add(pointer, value) takes the
// gradients of the parameters, which are those of w = -s.
template <class S, class T, class G, class Read, class Add>
MEMFORMER_INLINE S coordinate_pull_back(const Proximal<const T>& own, int c, S point, S ds, const Proximal<G>& grads,
                                        Read read, Add add) {
  const S zero(0);
  const S moved = own.level ? shrunk(point, read(own.level + c)) : point;
  if (own.upper) {
    const S upper = read(own.upper + c);
    const auto above = (own.lower ? lesser(moved, -read(own.lower + c)) : moved) < -upper;
    add(grads.upper + c, select(above, -ds, zero));
    ds = select(above, zero, ds);
  }
  if (own.lower) {
    const auto below = moved > -read(own.lower + c);
    add(grads.lower + c, select(below, -ds, zero));
    ds = select(below, zero, ds);
  }
  if (own.level) {
    const S level = read(own.level + c), t = larger(level, zero);
    ds = select((point <= t) & (-point <= t), zero, ds);
    const S against = select(point < zero, ds, select(point == point, -ds, point));  // -sign(s) ds
    add(grads.level + c, select(level < zero, zero, against));
  }
  return ds;
}

// The projection of a point with this sum of squares: `scale` times the point.
template <class S>
struct Projection {
  S scale;
  S inverse;  // 1 / |s| outside, 1 inside
  decltype(S() < S()) inside;

  MEMFORMER_INLINE Projection(S squares, S radius) {
    const S rho = larger(radius, S(0)), one(1);
    inside = squares <= rho * rho;
    inverse = one / square_root(select(inside, one, squares));
    scale = select(inside, one, rho * inverse);
  }

  // Gradients of a coordinate of the point (or, as V, of several) and of the radius, from `along`, the sum of point *
  // ds.
  template <class V>
  MEMFORMER_INLINE V pull_back(V point, V ds, S along) const {
    const S part = inverse * (inverse * along);
    return select(inside, ds, (ds - point * part) * scale);
  }
  MEMFORMER_INLINE S radius_grad(S radius, S along) const {
    return select(inside, S(0), select(radius < S(0), S(0), inverse * along));
  }
};

// The prox of one layer at the state s (d), in place.
template <class S, class Extent>
MEMFORMER_INLINE void prox(const Proximal<const ValueOf<S>>& own, Extent extent, S* s) {
  const int d = extent;
  if (own.radius) {
    S squares = s[0] * s[0];
    MEMFORMER_UNROLL
    for (int c = 1; c < d; ++c) squares += s[c] * s[c];
    const Projection<S> projection(squares, S(*own.radius));
    MEMFORMER_UNROLL
    for (int c = 0; c < d; ++c) s[c] = s[c] * projection.scale;
    return;
  }
  MEMFORMER_UNROLL
  for (int c = 0; c < d; ++c) {
    s[c] = coordinate_prox(own, c, s[c], [](const ValueOf<S>* parameter) { return S(*parameter); });
  }
}

// From the gradient ds of the state after the prox at `point` that of the point, in place; adds those of the layer's
// own parameters.
template <class S, class Extent>
MEMFORMER_INLINE void prox_backward(const Proximal<const ValueOf<S>>& own, Extent extent, const S* point, S* ds,
                                    const Proximal<S>& grads) {
  const int d = extent;
  if (own.radius) {
    const S radius(*own.radius);
    S squares = point[0] * point[0], along = point[0] * ds[0];
    MEMFORMER_UNROLL
    for (int c = 1; c < d; ++c) {
      squares += point[c] * point[c];
      along += point[c] * ds[c];
    }
    const Projection<S> projection(squares, radius);
    MEMFORMER_UNROLL
    for (int c = 0; c < d; ++c) ds[c] = projection.pull_back(point[c], ds[c], along);
    *grads.radius += projection.radius_grad(radius, along);
    return;
  }
  MEMFORMER_UNROLL
  for (int c = 0; c < d; ++c) {
    ds[c] = coordinate_pull_back(
        own, c, point[c], ds[c], grads, [](const ValueOf<S>* parameter) { return S(*parameter); },
        [](S* sum, S value) { *sum += value; });
  }
}

}  // namespace memformer::core
