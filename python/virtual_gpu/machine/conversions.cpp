// cvt: between integers, floats, halves and tf32. Registers may be wider than the type that they hold.

#include <limits>

#include "halves.h"
#include "lanes.h"

namespace virtual_gpu {
namespace {

// How a type lies in a register's lane, and what a conversion sees of it.
template <class T>
struct Held {
  using Bits = T;
  using Value = T;
  static Value read(u64 bits) {
    Bits out;
    std::memcpy(&out, &bits, sizeof out);
    return out;
  }
  static u64 written(Value value) {
    if constexpr (std::is_floating_point_v<T>) {
      u64 out = 0;
      std::memcpy(&out, &value, sizeof value);
      return out;
    } else {
      return static_cast<u64>(static_cast<i64>(value));
    }
  }
};
template <class Half>
struct HeldHalf {
  using Value = float;
  static Value read(u64 bits) { return widen<Half>(static_cast<u16>(bits)); }
};

// Whether the host converts in the lanes' own types: both registers are exactly as wide as what they hold.
template <class To, class From>
bool plain(const Step& step) {
  return step.operand(0).width == sizeof(To) && step.operand(1).width == sizeof(From);
}

// Converts each lane, whatever the widths: `f` takes the origin's bits and gives the result's.
template <class F>
Outcome convert_lanes(Step& step, F f) {
  for_lanes(step.lanes, [&](int lane) { step.set_value(0, lane, f(step.value(1, lane))); });
  return Outcome::Next;
}

template <class To, class From>
struct Cast {
  To operator()(From value) const { return static_cast<To>(value); }
};

// To a type that holds the value, or the nearest one of it in the mode of the host's control register.
template <class To, class From>
Outcome cast(Step& step) {
  if (plain<To, From>(step)) return Mapped<To, Cast<To, From>, From>::run(step);
  return convert_lanes(step, [](u64 bits) { return Held<To>::written(static_cast<To>(Held<From>::read(bits))); });
}

template <class To, class From>
Outcome clamp(Step& step) {
  return convert_lanes(step, [](u64 bits) {
    const i128 value = Held<From>::read(bits);
    const i128 least = std::numeric_limits<To>::min(), most = std::numeric_limits<To>::max();
    return Held<To>::written(static_cast<To>(value < least ? least : value > most ? most : value));
  });
}

template <class To, class Origin, Round Mode>
Outcome to_whole(Step& step) {
  return convert_lanes(step, [](u64 bits) { return Held<To>::written(to_integer<To>(Origin::read(bits), Mode)); });
}

template <class T, Round Mode>
Outcome round_to_whole(Step& step) {
  return convert_lanes(step, [](u64 bits) { return Held<T>::written(to_integral(Held<T>::read(bits), Mode)); });
}

// The rounding that the control register asks for.
Round rounding(const Step& step) {
  switch (step.instruction.control & 0x6000) {
    case 0x2000: return Round::down;
    case 0x4000: return Round::up;
    case 0x6000: return Round::toward_zero;
    default: return Round::nearest_even;
  }
}

// A float's upper bits, rounded to nearest without the lowest `Dropped`: what narrow() gives, in a few operations.
template <int Dropped, Round Mode>
u32 upper_bits(float value) {
  const u32 bits = bits_as<u32>(value), half = 1u << (Dropped - 1);
  const u32 up = Mode == Round::nearest_away ? half : half - 1 + (bits >> Dropped & 1);
  const bool is_nan = (bits & 0x7fffffff) > 0x7f800000;
  return is_nan ? 0x7fffffffu >> Dropped : (bits + up) >> Dropped;
}

u16 nearest_bfloat(float value) { return static_cast<u16>(upper_bits<16, Round::nearest_even>(value)); }

template <class Half, class Origin>
Outcome to_half_register(Step& step) {
  const Round mode = rounding(step);
  if constexpr (std::is_same_v<Half, BFloat16> && std::is_same_v<Origin, Held<float>>) {
    if (mode == Round::nearest_even && plain<u16, float>(step)) {
      map_lanes(step.lanes, step.values<u16>(0), nearest_bfloat, static_cast<const float*>(step.values<float>(1)));
      return Outcome::Next;
    }
  }
  return convert_lanes(step, [mode](u64 bits) {
    if constexpr (std::is_integral_v<typename Origin::Value>) {
      return to_half<Half>(integer_to_odd(Origin::read(bits)), mode);
    } else {
      return to_half<Half>(Origin::read(bits), mode);
    }
  });
}

template <class To, class Half>
Outcome from_half(Step& step) {
  if (plain<To, u16>(step)) {
    map_lanes(
        step.lanes, step.values<To>(0), [](u16 bits) { return static_cast<To>(widen<Half>(bits)); },
        static_cast<const u16*>(step.values<u16>(1)));
    return Outcome::Next;
  }
  return convert_lanes(step, [](u64 bits) { return Held<To>::written(HeldHalf<Half>::read(bits)); });
}

template <Round Mode>
Outcome to_tensor_float(Step& step) {
  map_lanes(
      step.lanes, step.values<u32>(0), [](float value) { return upper_bits<13, Mode>(value) << 13; },
      static_cast<const float*>(step.values<float>(1)));
  return Outcome::Next;
}

// Two floats to two halves: the first operand is the upper.
template <class Half>
Outcome pack_halves(Step& step) {
  const Round mode = rounding(step);
  const float *upper = step.values<float>(1), *lower = step.values<float>(2);
  if (std::is_same_v<Half, BFloat16> && mode == Round::nearest_even) {
    const auto both = [](float u, float l) { return static_cast<u32>(nearest_bfloat(u)) << 16 | nearest_bfloat(l); };
    map_lanes(step.lanes, step.values<u32>(0), both, upper, lower);
    return Outcome::Next;
  }
  const auto both = [mode](float u, float l) {
    return static_cast<u32>(to_half<Half>(u, mode)) << 16 | to_half<Half>(l, mode);
  };
  map_lanes(step.lanes, step.values<u32>(0), both, upper, lower);
  return Outcome::Next;
}

void add(Registry& registry, const std::string& key, Handler run) { registry["cvt." + key] = {run, Nature::Plain}; }

template <class To, class... From>
void add_casts(Registry& registry, Types<From...>) {
  (add(registry, std::string(NAME<To>) + "." + NAME<From>, cast<To, From>), ...);
}
template <class To, class... From>
void add_clamps(Registry& registry, Types<From...>) {
  (add(registry, std::string("sat.") + NAME<To> + "." + NAME<From>, clamp<To, From>), ...);
}

template <class To, class Origin>
void add_whole(Registry& registry, const std::string& origin) {
  const std::string types = std::string(NAME<To>) + "." + origin;
  add(registry, "rni." + types, to_whole<To, Origin, Round::nearest_even>);
  add(registry, "rzi." + types, to_whole<To, Origin, Round::toward_zero>);
  add(registry, "rmi." + types, to_whole<To, Origin, Round::down>);
  add(registry, "rpi." + types, to_whole<To, Origin, Round::up>);
}

template <class T>
void add_rounding(Registry& registry) {
  const std::string types = std::string(NAME<T>) + "." + NAME<T>;
  add(registry, types, cast<T, T>);
  add(registry, "rni." + types, round_to_whole<T, Round::nearest_even>);
  add(registry, "rzi." + types, round_to_whole<T, Round::toward_zero>);
  add(registry, "rmi." + types, round_to_whole<T, Round::down>);
  add(registry, "rpi." + types, round_to_whole<T, Round::up>);
}

using Whole = Types<u8, i8, u16, i16, u32, i32, u64, i64>;

template <class... To>
void add_to_integers(Registry& registry, Types<To...>) {
  (add_casts<To>(registry, Whole{}), ...);
  (add_clamps<To>(registry, Whole{}), ...);
  (add_whole<To, Held<float>>(registry, "f32"), ...);
  (add_whole<To, Held<double>>(registry, "f64"), ...);
  (add_whole<To, HeldHalf<Float16>>(registry, "f16"), ...);
  (add_whole<To, HeldHalf<BFloat16>>(registry, "bf16"), ...);
}

template <class Half, class... From>
void add_halves_from(Registry& registry, const std::string& half, Types<From...>) {
  (add(registry, half + "." + NAME<From>, to_half_register<Half, Held<From>>), ...);
}

template <class Half>
void add_halves(Registry& registry, const std::string& half) {
  add_halves_from<Half>(registry, half, Whole{});
  add_halves_from<Half>(registry, half, Floats{});
  add(registry, half + ".f16", to_half_register<Half, HeldHalf<Float16>>);
  add(registry, half + ".bf16", to_half_register<Half, HeldHalf<BFloat16>>);
  add(registry, "f32." + half, from_half<float, Half>);
  add(registry, "f64." + half, from_half<double, Half>);
  add(registry, "pack." + half + "x2", pack_halves<Half>);
}

}  // namespace

void add_conversions(Registry& registry) {
  add_to_integers(registry, Whole{});
  add_casts<float>(registry, Whole{});
  add_casts<double>(registry, Whole{});
  add_casts<float>(registry, Types<double>{});
  add_casts<double>(registry, Types<float>{});
  add_rounding<float>(registry);
  add_rounding<double>(registry);
  add_halves<Float16>(registry, "f16");
  add_halves<BFloat16>(registry, "bf16");
  add(registry, "tf32.f32", to_tensor_float<Round::nearest_even>);
  add(registry, "rna.tf32.f32", to_tensor_float<Round::nearest_away>);
}

}  // namespace virtual_gpu
