// Operations of each lane by itself, as handlers: a function of one lane's values becomes one of all that run.
#pragma once

#include <tuple>
#include <utility>

#include "machine.h"

namespace virtual_gpu {

// out[lane] = f(in[lane]...) for the lanes of the mask. Registers are lines of the cache: a result may share its
// operand's, never a part of it, which is what the pragma tells the compiler.
template <class Result, class F, class... Inputs>
inline void map_lanes(u32 lanes, Result* out, F f, const Inputs*... in) {
  if (lanes == ALL_LANES) {
#pragma GCC ivdep
    for (int lane = 0; lane < WARP; ++lane) out[lane] = f(in[lane]...);
    return;
  }
#pragma GCC ivdep
  for (int lane = 0; lane < WARP; ++lane)
    out[lane] = lanes >> lane & 1 ? static_cast<Result>(f(in[lane]...)) : out[lane];
}

template <class Result, class F, class... Inputs>
struct Mapped {
  template <size_t... K>
  static void apply(Step& step, std::index_sequence<K...>) {
    map_lanes(step.lanes, step.values<Result>(0), F{}, static_cast<const Inputs*>(step.values<Inputs>(K + 1))...);
  }

  static Outcome run(Step& step) {
    apply(step, std::index_sequence_for<Inputs...>{});
    return Outcome::Next;
  }
};

template <class Result, class F, class... Inputs>
void add_plain(Registry& registry, const std::string& key) {
  registry[key] = {Mapped<Result, F, Inputs...>::run, Nature::Plain};
}

// The name of a type in PTX.
template <class T>
constexpr const char* NAME = nullptr;
template <>
inline constexpr const char* NAME<u8> = "u8";
template <>
inline constexpr const char* NAME<i8> = "s8";
template <>
inline constexpr const char* NAME<u16> = "u16";
template <>
inline constexpr const char* NAME<i16> = "s16";
template <>
inline constexpr const char* NAME<u32> = "u32";
template <>
inline constexpr const char* NAME<i32> = "s32";
template <>
inline constexpr const char* NAME<u64> = "u64";
template <>
inline constexpr const char* NAME<i64> = "s64";
template <>
inline constexpr const char* NAME<float> = "f32";
template <>
inline constexpr const char* NAME<double> = "f64";

template <class... T>
struct Types {};

using Integers = Types<u16, i16, u32, i32, u64, i64>;
using Floats = Types<float, double>;

// operation.type for each type, with one, two or three operands of it.
template <template <class> class F, class... T>
void add_unary(Registry& registry, const std::string& name, Types<T...>) {
  (add_plain<T, F<T>, T>(registry, name + "." + NAME<T>), ...);
}
template <template <class> class F, class... T>
void add_binary(Registry& registry, const std::string& name, Types<T...>) {
  (add_plain<T, F<T>, T, T>(registry, name + "." + NAME<T>), ...);
}
template <template <class> class F, class... T>
void add_ternary(Registry& registry, const std::string& name, Types<T...>) {
  (add_plain<T, F<T>, T, T, T>(registry, name + "." + NAME<T>), ...);
}

}  // namespace virtual_gpu
