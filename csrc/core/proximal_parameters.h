// The parameters of what a first-order method's steps end in, and where those of a layer lie.

#pragma once

#include "core/scalar.h"

namespace memformer::core {

// Parameters of proxes, or where their gradients add up: level, lower and upper one number a coordinate, (L, d), radius
// (L,); null where there is none. A radius goes with none of the others.
template <class T>
struct Proximal {
  T* level;
  T* lower;
  T* upper;
  T* radius;

  MEMFORMER_INLINE bool any() const { return level || lower || upper || radius; }
  // Those of one layer, whose coordinates are `step` numbers apart from the next layer's.
  MEMFORMER_INLINE Proximal layer(int l, int step) const {
    return {at(level, l * step), at(lower, l * step), at(upper, l * step), at(radius, l)};
  }

 private:
  static MEMFORMER_INLINE T* at(T* first, int number) { return first ? first + number : nullptr; }
};

}  // namespace memformer::core
