// A network's group of tasks on all of its tasks, and the sizes that kernels are compiled for.
//
// Sizes that experiments use most are compiled for themselves, in float and where vectors are wide, which makes them
// faster: short loops unroll and stay in registers. One instance serves all others.

#pragma once

#include <type_traits>

#include "core/attention.h"
#include "core/extent.h"
#include "core/matrix.h"
#include "cpu/tasks/parts.h"

namespace memformer::cpu::MEMFORMER_ISA {

template <class T>
constexpr bool compiles_sizes = sizeof(T) == 4 && MEMFORMER_VECTOR_BYTES > 16;

template <class T, class Group>
inline void run_network(const Network<T>& network, const Group& group, ParallelFor parallel) {
  const int sums = network.pass == Pass::forward ? 0 : group.sums();
  over_parts<T>(network.tasks, sums, group.scratch_cells(), network.totals, parallel, group);
}

// Calls body with the extent of d features.
template <class T, class Body>
inline void with_extent(int d, Body body) {
  if constexpr (compiles_sizes<T>) {
    switch (d) {
      case 2: return body(core::Fixed<2>{});
      case 3: return body(core::Fixed<3>{});
      case 4: return body(core::Fixed<4>{});
      case 5: return body(core::Fixed<5>{});
      case 6: return body(core::Fixed<6>{});
      case 8: return body(core::Fixed<8>{});
    }
  }
  body(core::UpTo<16>{d});
}

// Calls body with the extent of the features of a response-only network.
template <class T, class Body>
inline void with_features(const Network<T>& network, Body body) {
  with_extent<T>(network.width - 1, body);
}

// Calls body with whether a response-only network has the memory of LFOM: one register a layer, gamma in full, no beta,
// and what else the kernel asks for. Sizes that are compiled for themselves have that form compiled for itself too.
template <class Extent, class T, class Body>
inline void with_lfom(const Network<T>& network, bool more, Body body) {
  if constexpr (core::is_fixed<Extent>) {
    if (more && network.kept == 1 && network.gamma && !network.diagonal && !network.beta) return body(std::true_type{});
  }
  body(std::false_type{});
}

// Calls body with the shape of any other network: blocks of d x d, or dense matrices of D x D.
template <class T, class Body>
inline void with_shape(bool block, int width, Body body) {
  if constexpr (compiles_sizes<T>) {
    if (block) {
      switch (width) {
        case 4: return body(core::Shape<true, core::Fixed<3>>{});
        case 5: return body(core::Shape<true, core::Fixed<4>>{});
        case 6: return body(core::Shape<true, core::Fixed<5>>{});
        case 7: return body(core::Shape<true, core::Fixed<6>>{});
        case 9: return body(core::Shape<true, core::Fixed<8>>{});
      }
    } else if (width == 6) {
      return body(core::Shape<false, core::Fixed<6>>{});
    }
  }
  if (block) return body(core::Shape<true, core::UpTo<16>>{{width - 1}});
  body(core::Shape<false, core::UpTo<16>>{{width}});
}

template <class T, class Body>
inline void with_shape(const Network<T>& network, Body body) {
  with_shape<T>(network.block, network.width, body);
}

}  // namespace memformer::cpu::MEMFORMER_ISA
