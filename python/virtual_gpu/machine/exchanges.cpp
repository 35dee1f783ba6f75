// Values between the lanes of a warp: shuffles, votes, matches, reductions.

#include <algorithm>

#include "lanes.h"

namespace virtual_gpu {
namespace {

enum class Shuffle { Up, Down, Butterfly, Index };

// Results: the value, and whether its source lies in the lane's segment. Operands: the value, a distance, a clamp and a
// segment's mask in one, the lanes.
template <Shuffle Mode>
Outcome shuffle(Step& step) {
  step.require(3, "a shuffle's distance");
  const u32 *distances = step.values<u32>(3), *limits = step.values<u32>(4), *in = step.values<u32>(2);
  i32 from[WARP], within[WARP];
  for (i32 lane = 0; lane < WARP; ++lane) {
    const i32 distance = distances[lane] & 31, clamp = limits[lane] & 31, segment = limits[lane] >> 8 & 31;
    const i32 last = (lane & segment) | (clamp & ~segment), first = lane & segment;
    i32 source;
    switch (Mode) {
      case Shuffle::Up: source = lane - distance; break;
      case Shuffle::Down: source = lane + distance; break;
      case Shuffle::Butterfly: source = lane ^ distance; break;
      default: source = first | (distance & ~segment); break;
    }
    within[lane] = Mode == Shuffle::Up ? source >= last : source <= last;
    from[lane] = within[lane] ? source : lane;
  }
  u32 made[WARP], inside = 0, known = 0, absent = 0;
  const u32 lanes = step.lanes, defined = step.defined(2);
  for (int lane = 0; lane < WARP; ++lane) {
    made[lane] = in[from[lane]];
    inside |= static_cast<u32>(within[lane]) << lane;
    known |= (defined >> from[lane] & 1) << lane;
    absent |= (~lanes >> from[lane] & 1) << lane;
  }
  absent &= lanes;
  if (absent != 0) {
    const int lane = first_lane(absent);
    step.report(Check::InactiveLane, "lane %d reads lane %d, which does not take part: block %u warp %u", lane,
                from[lane], step.block.index, step.warp.index);
  }
  if (step.given(0)) {
    u32* out = step.values<u32>(0);
    for (int lane = 0; lane < WARP; ++lane) out[lane] = lanes >> lane & 1 ? made[lane] : out[lane];
  }
  step.define(0, known);
  step.set_predicate(1, inside);
  step.define(1, ALL_LANES);
  return Outcome::Next;
}

enum class Vote { All, Any, Uniform, Ballot };

template <Vote Mode>
Outcome vote(Step& step) {
  const u32 yes = step.predicate(1) & step.lanes;
  const bool complete = (step.lanes & ~step.defined(1)) == 0;
  const bool all = yes == step.lanes;
  switch (Mode) {
    case Vote::All: step.set_predicate(0, all ? ALL_LANES : 0); break;
    case Vote::Any: step.set_predicate(0, yes != 0 ? ALL_LANES : 0); break;
    case Vote::Uniform: step.set_predicate(0, all || yes == 0 ? ALL_LANES : 0); break;
    case Vote::Ballot: for_lanes(step.lanes, [&](int lane) { step.values<u32>(0)[lane] = yes; }); break;
  }
  step.define(0, complete ? ALL_LANES : 0);
  return Outcome::Next;
}

template <bool All>
Outcome match(Step& step) {
  u64 value[WARP];
  for (int lane = 0; lane < WARP; ++lane) value[lane] = step.value(2, lane);
  const u64 first = value[first_lane(step.lanes)];
  u32 alike[WARP], same_as_first = 0;
  for_lanes(step.lanes, [&](int lane) {
    alike[lane] = 0;
    for_lanes(step.lanes, [&](int other) { alike[lane] |= static_cast<u32>(value[other] == value[lane]) << other; });
    same_as_first |= static_cast<u32>(value[lane] == first) << lane;
  });
  const bool all = same_as_first == step.lanes;
  const auto matched = [&](int lane) { return All ? (all ? step.lanes : 0) : alike[lane]; };
  if (step.given(0)) for_lanes(step.lanes, [&](int lane) { step.values<u32>(0)[lane] = matched(lane); });
  const u32 known = (step.lanes & ~step.defined(2)) == 0 ? ALL_LANES : 0;
  step.define(0, known);
  step.set_predicate(1, all ? ALL_LANES : 0);
  step.define(1, known);
  return Outcome::Next;
}

template <class T, class F>
Outcome reduce(Step& step) {
  const T* in = step.values<T>(1);
  T total = in[first_lane(step.lanes)];
  for_lanes(step.lanes & (step.lanes - 1), [&](int lane) { total = F{}(total, in[lane]); });
  for_lanes(step.lanes, [&](int lane) { step.values<T>(0)[lane] = total; });
  step.define(0, (step.lanes & ~step.defined(1)) == 0 ? ALL_LANES : 0);
  return Outcome::Next;
}

Outcome active(Step& step) {
  for_lanes(step.lanes, [&](int lane) { step.values<u32>(0)[lane] = step.lanes; });
  step.define(0, ALL_LANES);
  return Outcome::Next;
}

Outcome elect(Step& step) {
  const u32 first = static_cast<u32>(first_lane(step.lanes));
  if (step.given(0)) for_lanes(step.lanes, [&](int lane) { step.values<u32>(0)[lane] = first; });
  step.define(0, ALL_LANES);
  step.set_predicate(1, 1u << first);
  step.define(1, ALL_LANES);
  return Outcome::Next;
}

template <class T>
struct Sum {
  T operator()(T a, T b) const { return static_cast<T>(static_cast<u32>(a) + static_cast<u32>(b)); }
};
template <class T>
struct Least {
  T operator()(T a, T b) const { return std::min(a, b); }
};
template <class T>
struct Most {
  T operator()(T a, T b) const { return std::max(a, b); }
};
struct And {
  u32 operator()(u32 a, u32 b) const { return a & b; }
};
struct Or {
  u32 operator()(u32 a, u32 b) const { return a | b; }
};
struct Xor {
  u32 operator()(u32 a, u32 b) const { return a ^ b; }
};

void add(Registry& registry, const std::string& key, Handler run) { registry[key] = {run, Nature::CollectiveOfMask}; }

template <class T>
void add_reductions(Registry& registry) {
  const std::string type = NAME<T>;
  add(registry, "redux.add." + type, reduce<T, Sum<T>>);
  add(registry, "redux.min." + type, reduce<T, Least<T>>);
  add(registry, "redux.max." + type, reduce<T, Most<T>>);
}

}  // namespace

void add_exchanges(Registry& registry) {
  add(registry, "shfl.up", shuffle<Shuffle::Up>);
  add(registry, "shfl.down", shuffle<Shuffle::Down>);
  add(registry, "shfl.bfly", shuffle<Shuffle::Butterfly>);
  add(registry, "shfl.idx", shuffle<Shuffle::Index>);
  add(registry, "vote.all", vote<Vote::All>);
  add(registry, "vote.any", vote<Vote::Any>);
  add(registry, "vote.uni", vote<Vote::Uniform>);
  add(registry, "vote.ballot", vote<Vote::Ballot>);
  add(registry, "match.any", match<false>);
  add(registry, "match.all", match<true>);
  add_reductions<u32>(registry);
  add_reductions<i32>(registry);
  add(registry, "redux.and.u32", reduce<u32, And>);
  add(registry, "redux.or.u32", reduce<u32, Or>);
  add(registry, "redux.xor.u32", reduce<u32, Xor>);
  add(registry, "elect", elect);
  registry["activemask"] = {active, Nature::Own};
}

}  // namespace virtual_gpu
