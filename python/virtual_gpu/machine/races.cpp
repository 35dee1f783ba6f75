#include "races.h"

namespace virtual_gpu {
namespace {

struct Other {
  u32 group, agent, lane;
  i32 place;
};

const char* lane_of(u32 lane) { return lane == SEVERAL_LANES ? "several lanes" : "a lane"; }

void report_race(const Observer& me, bool shared, const char* kind, u64 address, u32 lane, Other other, bool repeats) {
  const Check check = repeats ? Check::ReplicatedStore : shared ? Check::RaceShared : Check::RaceGlobal;
  const char* relation = other.group != me.group.index        ? "another block"
                         : other.agent + 1 == me.group.agents ? "an asynchronous copy"
                         : other.agent != me.issuer           ? "another warp"
                                                              : "another lane of the warp";
  const auto& code = me.machine.program->code;
  const bool known = other.place >= 0 && static_cast<size_t>(other.place) < code.size();
  me.machine.report(
      check, me.place, "%s of %s memory at 0x%llx: block %u warp %u lane %u against %s (%s %u) at @%d:%d@", kind,
      shared ? "shared" : "global", static_cast<unsigned long long>(address), me.block, me.warp, lane, relation,
      lane_of(other.lane), other.lane, known ? code[other.place].file : 0, known ? code[other.place].line : 0);
}

// Whether an access by that agent of this group, with that stamp, may happen at the same time as the observer's.
bool unordered(const Observer& me, u32 agent, u32 stamp, u32 lane) {
  if (agent == me.issuer) return stamp > me.issued || (stamp > me.together && (stamp & LANE_MASK) != lane);
  return stamp > me.known[agent];
}

void check_copies(const Observer& me, const SharedWord& word, bool writes, u64 address) {
  if (me.asynchronous) return;
  if (word.flags & COPY_UNDER_WAY) {
    me.machine.report(Check::CopyNotAwaited, me.place,
                      "%s of shared memory at 0x%llx, where a copy is under way: block %u warp %u",
                      writes ? "a write" : "a read", static_cast<unsigned long long>(address), me.block, me.warp);
  } else if (writes && (word.flags & READ_UNDER_WAY)) {
    me.machine.report(Check::CopyNotAwaited, me.place,
                      "a write of shared memory at 0x%llx, which a copy has yet to read: block %u warp %u",
                      static_cast<unsigned long long>(address), me.block, me.warp);
  }
}

// An asynchronous operation sees generic writes only through a fence of the proxies.
void check_proxy(const Observer& me, const SharedWord& word, u64 address) {
  if (!me.asynchronous || word.write == 0 || (word.flags & WRITTEN_BY_COPY)) return;
  if (word.write <= me.proxy_known[word.writer]) return;
  const Instruction& writer = me.machine.program->code[word.write_place];
  me.machine.report(
      Check::ProxyFence, me.place,
      "shared memory at 0x%llx, written at @%d:%d@ without fence.proxy.async before this: block %u warp %u",
      static_cast<unsigned long long>(address), writer.file, writer.line, me.block, me.warp);
}

// Whether a write and the one before it, perhaps by a lane of the same instruction, write the same bits.
template <class Word>
bool writes_alike(const Observer& me, const Word& word, Sameness same) {
  const bool of_this = word.writer == me.agent && word.write_place == me.place && time_of(word.write) == me.clock;
  return of_this ? same.after : same.before;
}

void check_against_write(const Observer& me, const SharedWord& word, u8 bytes, u32 lane, u64 address, const char* kind,
                         bool alike) {
  if (word.write <= me.floor || !(word.written_bytes & bytes)) return;
  if (me.atomic && (word.flags & WRITTEN_ATOMICALLY)) return;
  if (unordered(me, word.writer, word.write, lane)) {
    report_race(me, true, kind, address, lane, {me.group.index, word.writer, word.write & LANE_MASK, word.write_place},
                alike);
  }
}

}  // namespace

void check_shared_read(const Observer& me, const SharedWord& word, u32 index, u8 bytes, u32 lane) {
  const u64 address = static_cast<u64>(index) * 4;
  check_copies(me, word, false, address);
  check_proxy(me, word, address);
  check_against_write(me, word, bytes, lane, address, "a read after a write", false);
}

void check_shared_write(const Observer& me, const Block& owner, const SharedWord& word, u32 index, u8 bytes, u32 lane,
                        Sameness same) {
  const u64 address = static_cast<u64>(index) * 4;
  check_copies(me, word, true, address);
  check_proxy(me, word, address);
  check_against_write(me, word, bytes, lane, address, "a write after a write", writes_alike(me, word, same));
  if (word.read <= me.floor || !(word.read_bytes & bytes)) return;
  if (me.atomic && !(word.flags & READ_PLAINLY)) return;
  const u32* reads = &owner.reads[static_cast<size_t>(index) * me.group.agents];
  for (u32 agent = 0; agent < me.group.agents; ++agent) {
    if (reads[agent] <= me.floor || !unordered(me, agent, reads[agent], lane)) continue;
    report_race(me, true, "a write after a read", address, lane,
                {me.group.index, agent, reads[agent] & LANE_MASK, word.read_place}, same.before);
  }
}

namespace {

bool unordered_global(const Observer& me, u32 group, u32 agent, u32 stamp, u32 lane) {
  if (stamp <= me.machine.launched) return false;
  if (group == me.group.index) return unordered(me, agent, stamp, lane);
  return group >= me.group.known.size() || stamp > me.group.known[group];
}

}  // namespace

void read_global(const Observer& me, GlobalWord& word, u64 address, u8 bytes, u32 lane) {
  if ((word.written_bytes & bytes) && !(me.atomic && (word.flags & WRITTEN_ATOMICALLY)) &&
      unordered_global(me, word.write_group, word.writer, word.write, lane)) {
    report_race(me, false, "a read after a write", address, lane,
                {word.write_group, word.writer, word.write & LANE_MASK, word.write_place}, false);
  }
  const bool stale = word.read[0] <= me.machine.launched;
  word.read_bytes = stale ? bytes : word.read_bytes & bytes;
  const u8 plain = stale ? 0 : word.flags & READ_PLAINLY;
  word.flags = static_cast<u8>((word.flags & ~READ_PLAINLY) | (me.atomic ? plain : u8{READ_PLAINLY}));
  const bool mine = !stale && word.read_group[0] == me.group.index && word.reader[0] == me.agent;
  if (!mine) {
    word.read[1] = word.read[0];
    word.read_group[1] = word.read_group[0];
    word.reader[1] = word.reader[0];
  }
  const bool again = mine && word.read[0] > me.together && (word.read[0] & LANE_MASK) != lane;
  word.read[0] = me.clock | (again ? SEVERAL_LANES : lane);
  word.read_group[0] = me.group.index;
  word.reader[0] = static_cast<u16>(me.agent);
  word.read_place = me.place;
}

void write_global(const Observer& me, GlobalWord& word, u64 address, u8 bytes, u32 lane, Sameness same) {
  if ((word.written_bytes & bytes) && !(me.atomic && (word.flags & WRITTEN_ATOMICALLY)) &&
      unordered_global(me, word.write_group, word.writer, word.write, lane)) {
    report_race(me, false, "a write after a write", address, lane,
                {word.write_group, word.writer, word.write & LANE_MASK, word.write_place},
                writes_alike(me, word, same));
  }
  const bool atomic_alone = me.atomic && !(word.flags & READ_PLAINLY);
  for (int k = 0; k < 2 && !atomic_alone; ++k) {
    if ((word.read_bytes & bytes) && unordered_global(me, word.read_group[k], word.reader[k], word.read[k], lane)) {
      report_race(me, false, "a write after a read", address, lane,
                  {word.read_group[k], word.reader[k], word.read[k] & LANE_MASK, word.read_place}, same.before);
    }
  }
  word.write = me.clock | lane;
  word.write_group = me.group.index;
  word.writer = static_cast<u16>(me.agent);
  word.write_place = me.place;
  word.written_bytes = bytes;
  word.read[0] = word.read[1] = 0;
  word.flags = me.atomic ? WRITTEN_ATOMICALLY : 0;
}

}  // namespace virtual_gpu
