// Words that every part of the machine uses: integers, masks of lanes, bits of values.
#pragma once

#include <cstdint>
#include <cstring>

namespace virtual_gpu {

using i8 = int8_t;
using i16 = int16_t;
using i32 = int32_t;
using i64 = int64_t;
using u8 = uint8_t;
using u16 = uint16_t;
using u32 = uint32_t;
using u64 = uint64_t;
using u128 = unsigned __int128;
using i128 = __int128;

constexpr int WARP = 32;
constexpr u32 ALL_LANES = 0xffffffffu;

inline int first_lane(u32 lanes) { return __builtin_ctz(lanes); }
inline int count_lanes(u32 lanes) { return __builtin_popcount(lanes); }

// Calls `body` with each lane of the mask, in ascending order.
template <class Body>
inline void for_lanes(u32 lanes, Body body) {
  for (; lanes != 0; lanes &= lanes - 1) body(first_lane(lanes));
}

template <class To, class From>
inline To bits_as(From value) {
  static_assert(sizeof(To) == sizeof(From));
  To out;
  std::memcpy(&out, &value, sizeof out);
  return out;
}

}  // namespace virtual_gpu
