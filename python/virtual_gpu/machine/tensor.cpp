// mma and wgmma: the operands of the tensor cores' products, what of them is defined, and when they are made.

#include "mbarriers.h"
#include "mma.h"
#include "wgmma.h"

namespace virtual_gpu {
namespace {

void require_whole_warp(const Step& step) {
  if (step.lanes == ALL_LANES) return;
  step.report(Check::WarpMask, "lanes 0x%x alone run an instruction of the whole warp: block %u warp %u", step.lanes,
              step.block.index, step.warp.index);
}

// mma: registers of D, A, B and C.
template <int M, int K, class Input, class Accumulator>
Outcome multiply(Step& step) {
  using Product = WarpProduct<M, K, Input, Accumulator>;
  constexpr int d_count = Product::c_registers, a_count = Product::a_registers, b_count = Product::b_registers;
  require_whole_warp(step);
  Word<Accumulator>* d[d_count];
  const Word<Input>*a[a_count], *b[b_count];
  const Word<Accumulator>* c[d_count];
  u32 d_known[d_count], a_known[a_count], b_known[b_count], c_known[d_count];
  for (int k = 0; k < d_count; ++k) d[k] = step.values<Word<Accumulator>>(k);
  int next = d_count;
  for (int k = 0; k < a_count; ++k, ++next) {
    a[k] = step.values<Word<Input>>(next);
    a_known[k] = step.defined(next);
  }
  for (int k = 0; k < b_count; ++k, ++next) {
    b[k] = step.values<Word<Input>>(next);
    b_known[k] = step.defined(next);
  }
  for (int k = 0; k < d_count; ++k, ++next) {
    c[k] = step.values<Word<Accumulator>>(next);
    c_known[k] = step.defined(next);
  }
  Product::run(d, a, b, c);
  Product::defined(d_known, a_known, b_known, c_known);
  for (int k = 0; k < d_count; ++k) step.define(k, d_known[k]);
  ++step.machine.counters.tensor_operations;
  return Outcome::Next;
}

// Flags of a wgmma, as ptx/warp.py sets them.
enum : u16 { NEGATE_A = 1, NEGATE_B = 2, TRANSPOSED_A = 4, TRANSPOSED_B = 8, A_IN_REGISTERS = 16 };
// What a pending product does with a register.
enum : u8 { IS_ACCUMULATOR = 1, IS_FACTOR = 2 };

constexpr int ROWS = 16, A_REGISTERS = 4, CHUNK = 16, WARPS_OF_GROUP = 4, WIDEST = 256;

void mark_registers(const Step& step, u8 accumulators, u8 factors) {
  const int results = step.instruction.results;
  auto& pending = step.warp.pending_registers;
  for (int k = 0; k < results; ++k) pending[step.operand(k).slot] = accumulators;
  if (!(step.instruction.flags & A_IN_REGISTERS)) return;
  for (int k = 0; k < A_REGISTERS; ++k) pending[step.operand(results + k).slot] = factors;
}

// The reading of a matrix's chunks from shared memory: compared with writes, as the asynchronous proxy does it.
class ChunkReader {
 public:
  ChunkReader(const Step& step, const PendingProduct& product)
      : step_(step),
        observer_{step.machine,
                  *step.block.group,
                  step.warp.agent,
                  step.block.index,
                  step.warp.index,
                  step.warp.clock,
                  0,
                  product.known.data(),
                  product.proxy_known.data(),
                  product.place,
                  false,
                  true,
                  NOBODY,
                  0,
                  0} {}

  const char* operator()(u32 address) {
    static const char nothing[CHUNK] = {};
    const u32 offset = address & SHARED_OFFSET;
    if (offset + CHUNK > step_.block.shared_bytes) {
      step_.report(Check::OutOfBounds, "a matrix at 0x%x of %u bytes of shared memory: block %u warp %u", offset,
                   step_.block.shared_bytes, step_.block.index, step_.warp.index);
      return nothing;
    }
    for (u32 word = offset / 4; step_.machine.checks.races && word < (offset + CHUNK) / 4; ++word) {
      read_shared(observer_, step_.block, word, 15, 0);
    }
    return step_.block.shared.get() + offset;
  }

 private:
  const Step& step_;
  Observer observer_;
};

// Which rows of M or N of a matrix in shared memory hold values all along K.
template <class Input>
void find_defined_rows(const Block& block, const MatrixDescriptor& matrix, int first_row, int rows, bool transposed,
                       bool* defined) {
  constexpr u32 size = std::is_same_v<Input, TFloat32> ? 4 : 2;
  constexpr int of_chunk = CHUNK / size, depth = 2 * of_chunk;
  for (int row = 0; row < rows; ++row) defined[row] = true;
  const int outer = transposed ? rows / of_chunk : rows, inner = transposed ? depth : 2;
  for (int u = 0; u < outer; ++u) {
    for (int v = 0; v < inner; ++v) {
      const u32 at = matrix.address(u + (transposed ? first_row / of_chunk : first_row), v, transposed) & SHARED_OFFSET;
      if (at + CHUNK > block.shared_bytes) continue;
      for (int i = 0; i < of_chunk; ++i) {
        const u32 place = at + static_cast<u32>(i) * size;
        const u8 bytes = byte_mask(place % 4, size);
        const bool known = (block.words[place / 4].defined & bytes) == bytes;
        defined[transposed ? u * of_chunk + i : u] &= known;
      }
    }
  }
}

// What of D is defined: halves lie two in a register, floats one.
template <class Accumulator>
void define_products(const Step& step, int columns, const bool* rows, const bool* of_columns, bool accumulates) {
  constexpr int count = Packing<Accumulator>::count, of_row = 2 / count, of_tile = 2 * of_row;
  for (int i = 0; i < columns / 8 * of_tile; ++i) {
    const int tile = i / of_tile, row = 8 * (i % of_tile / of_row), column = 8 * tile + i % of_row;
    u32 known = 0;
    for (int lane = 0; lane < WARP; ++lane) {
      bool all = rows[row + lane / 4];
      for (int part = 0; part < count; ++part) all &= of_columns[column + 2 * (lane % 4) + part];
      known |= static_cast<u32>(all) << lane;
    }
    step.define(i, accumulates ? known & step.defined(i) : known);
  }
}

template <class Input, class Accumulator>
void perform(const Step& step, const PendingProduct& product) {
  const u16 flags = step.instruction.flags;
  const int columns = static_cast<int>(step.instruction.immediates[0]);
  const int warp = static_cast<int>(step.warp.index) % WARPS_OF_GROUP;
  const GroupProduct shape{columns, (flags & TRANSPOSED_A) != 0, (flags & TRANSPOSED_B) != 0,
                           ((flags & NEGATE_A) != 0) != ((flags & NEGATE_B) != 0), product.accumulate != 0};
  Word<Accumulator>* d[WIDEST / 2];
  for (int k = 0; k < step.instruction.results; ++k) d[k] = step.values<Word<Accumulator>>(k);
  const u32* a[A_REGISTERS];
  const bool in_registers = flags & A_IN_REGISTERS;
  bool rows[ROWS], of_columns[WIDEST];
  if (in_registers) {
    for (bool& row : rows) row = true;
    for (int k = 0; k < A_REGISTERS; ++k) {
      a[k] = product.left_registers.data() + k * WARP;
      for (int lane = 0; lane < WARP; ++lane) rows[lane / 4 + 8 * (k % 2)] &= product.left_defined[k] >> lane & 1;
    }
  } else {
    find_defined_rows<Input>(step.block, MatrixDescriptor(product.left), warp * ROWS, ROWS, shape.a_transposed, rows);
  }
  find_defined_rows<Input>(step.block, MatrixDescriptor(product.right), 0, columns, shape.b_transposed, of_columns);
  run_group_product<Input, Accumulator>(shape, warp, d, in_registers ? a : nullptr, product.left, product.right,
                                        ChunkReader(step, product));
  define_products<Accumulator>(step, columns, rows, of_columns, shape.accumulates);
  ++step.machine.counters.tensor_operations;
}

// Operands: D, A as four registers or a descriptor, the descriptor of B, whether D is added to.
template <class Input, class Accumulator>
Outcome issue(Step& step) {
  require_whole_warp(step);
  const bool in_registers = step.instruction.flags & A_IN_REGISTERS;
  const int left = step.instruction.results, right = left + (in_registers ? A_REGISTERS : 1);
  step.require(right, "a matrix's descriptor");
  step.require(right + 1, "whether a product accumulates");
  PendingProduct made{};
  made.perform = perform<Input, Accumulator>;
  made.place = step.place;
  made.group = step.warp.product_groups;
  made.right = step.value(right, 0);
  made.accumulate = step.predicate(right + 1) & 1;
  if (in_registers) {
    for (int k = 0; k < A_REGISTERS; ++k) {
      const u32* values = step.values<u32>(left + k);
      made.left_registers.insert(made.left_registers.end(), values, values + WARP);
      made.left_defined[k] = step.defined(left + k);
    }
  } else {
    step.require(left, "a matrix's descriptor");
    made.left = step.value(left, 0);
  }
  made.known = step.warp.known;
  made.known[step.warp.agent] = step.warp.clock | LANE_MASK;
  made.proxy_known = step.warp.proxy_known;
  // What the warp writes from now on is not meant for the product.
  step.warp.clock = step.machine.next_time();
  mark_registers(step, IS_ACCUMULATOR, IS_FACTOR);
  step.warp.products.push_back(std::move(made));
  return Outcome::Next;
}

Outcome commit(Step& step) {
  ++step.warp.product_groups;
  return Outcome::Next;
}

// Performs the products of all groups but the last few, in their order.
Outcome wait(Step& step) {
  auto& products = step.warp.products;
  const i32 done = step.warp.product_groups - static_cast<i32>(step.instruction.immediates[0]);
  size_t count = 0;
  for (; count < products.size() && products[count].group < done; ++count) {
    const PendingProduct& product = products[count];
    const Step issued{step.machine, step.block,    step.warp, step.machine.program->code[product.place],
                      ALL_LANES,    product.place, step.path};
    mark_registers(issued, 0, 0);
    product.perform(issued, product);
  }
  products.erase(products.begin(), products.begin() + static_cast<i64>(count));
  for (const PendingProduct& product : products) {
    mark_registers({step.machine, step.block, step.warp, step.machine.program->code[product.place], ALL_LANES,
                    product.place, step.path},
                   IS_ACCUMULATOR, IS_FACTOR);
  }
  return Outcome::Next;
}

Outcome fence(Step&) { return Outcome::Next; }

void add(Registry& registry, const std::string& key, Handler run) { registry[key] = {run, Nature::CollectiveOfAll}; }

}  // namespace

void check_pending_registers(const Step& step) {
  const Instruction& instruction = step.instruction;
  // Products of one group may follow each other on the same accumulators.
  if (instruction.nature == Nature::CollectiveOfAll && instruction.immediates[1] != 0) return;
  for (int k = 0; k < instruction.count; ++k) {
    if (step.operand(k).kind != Kind::Register) continue;
    const u8 use = step.warp.pending_registers[step.operand(k).slot];
    if (use == IS_ACCUMULATOR || (use == IS_FACTOR && k < instruction.results)) {
      step.report(Check::PendingRegister,
                  "a register %s before the wgmma that %s it has been waited for: block %u warp %u",
                  k < instruction.results ? "is written" : "is read", use == IS_ACCUMULATOR ? "writes" : "reads",
                  step.block.index, step.warp.index);
    }
  }
}

void add_tensor_cores(Registry& registry) {
  add(registry, "mma.m16n8k4.f32.tf32.tf32.f32", multiply<16, 4, TFloat32, float>);
  add(registry, "mma.m16n8k8.f32.tf32.tf32.f32", multiply<16, 8, TFloat32, float>);
  add(registry, "mma.m16n8k8.f32.f16.f16.f32", multiply<16, 8, Float16, float>);
  add(registry, "mma.m16n8k16.f32.f16.f16.f32", multiply<16, 16, Float16, float>);
  add(registry, "mma.m16n8k8.f16.f16.f16.f16", multiply<16, 8, Float16, Float16>);
  add(registry, "mma.m16n8k16.f16.f16.f16.f16", multiply<16, 16, Float16, Float16>);
  add(registry, "mma.m16n8k8.f32.bf16.bf16.f32", multiply<16, 8, BFloat16, float>);
  add(registry, "mma.m16n8k16.f32.bf16.bf16.f32", multiply<16, 16, BFloat16, float>);
  add(registry, "mma.m8n8k4.f64.f64.f64.f64", multiply<8, 4, double, double>);
  add(registry, "mma.m16n8k4.f64.f64.f64.f64", multiply<16, 4, double, double>);
  add(registry, "mma.m16n8k8.f64.f64.f64.f64", multiply<16, 8, double, double>);
  add(registry, "mma.m16n8k16.f64.f64.f64.f64", multiply<16, 16, double, double>);
  add(registry, "wgmma.f32.f16.f16", issue<Float16, float>);
  add(registry, "wgmma.f16.f16.f16", issue<Float16, Float16>);
  add(registry, "wgmma.f32.bf16.bf16", issue<BFloat16, float>);
  add(registry, "wgmma.f32.tf32.tf32", issue<TFloat32, float>);
  add(registry, "wgmma.commit", commit);
  add(registry, "wgmma.wait", wait);
  add(registry, "wgmma.fence", fence);
}

}  // namespace virtual_gpu
