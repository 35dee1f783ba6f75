// The machine's tensor cores over arrays of registers, 32 lanes each, for test_tensor.py.

#include <array>
#include <cstddef>
#include <string_view>

#include "virtual_gpu/machine/mma.h"
#include "virtual_gpu/machine/wgmma.h"

using namespace virtual_gpu;

namespace {

template <class Word, size_t Count>
std::array<Word*, Count> rows(Word* words, size_t width = warp_lanes) {
  std::array<Word*, Count> result;
  for (size_t i = 0; i < Count; ++i) result[i] = words + width * i;
  return result;
}

template <class Product, class Input, class Accumulator>
bool run(void* d, void* a, void* b, void* c) {
  using In = Word<Input>;
  using Out = Word<Accumulator>;
  Product::run(rows<Out, Product::c_registers>(static_cast<Out*>(d)).data(),
               rows<In, Product::a_registers>(static_cast<In*>(a)).data(),
               rows<In, Product::b_registers>(static_cast<In*>(b)).data(),
               rows<Out, Product::c_registers>(static_cast<Out*>(c)).data());
  return true;
}

template <class Visit>
bool with_product(std::string_view name, Visit&& visit) {
#define SHAPE(M, K, INPUT, ACCUMULATOR, NAME) \
  if (name == NAME) return visit.template operator()<WarpProduct<M, K, INPUT, ACCUMULATOR>, INPUT, ACCUMULATOR>();
  SHAPE(16, 4, TFloat32, float, "m16n8k4.f32.tf32")
  SHAPE(16, 8, TFloat32, float, "m16n8k8.f32.tf32")
  SHAPE(16, 8, Float16, float, "m16n8k8.f32.f16")
  SHAPE(16, 16, Float16, float, "m16n8k16.f32.f16")
  SHAPE(16, 8, Float16, Float16, "m16n8k8.f16.f16")
  SHAPE(16, 16, Float16, Float16, "m16n8k16.f16.f16")
  SHAPE(16, 8, BFloat16, float, "m16n8k8.f32.bf16")
  SHAPE(16, 16, BFloat16, float, "m16n8k16.f32.bf16")
  SHAPE(8, 4, double, double, "m8n8k4.f64.f64")
  SHAPE(16, 4, double, double, "m16n8k4.f64.f64")
  SHAPE(16, 8, double, double, "m16n8k8.f64.f64")
  SHAPE(16, 16, double, double, "m16n8k16.f64.f64")
#undef SHAPE
  return false;
}

template <class Input, class Accumulator>
bool run_group(const GroupProduct& product, uint32_t* d, const uint32_t* a, uint64_t a_matrix, uint64_t b_matrix,
               const uint8_t* shared) {
  constexpr int tile_registers = 4 / Packing<Accumulator>::count;
  for (int warp = 0; warp < 4; ++warp) {
    const size_t registers = static_cast<size_t>(product.columns / 8 * tile_registers);
    const auto results = rows<uint32_t, 128>(d + warp * registers * warp_lanes);
    const auto factors = rows<const uint32_t, 4>(a + warp * 4 * warp_lanes);
    run_group_product<Input, Accumulator>(product, warp, results.data(), a_matrix ? nullptr : factors.data(), a_matrix,
                                          b_matrix, [&](uint32_t address) { return shared + address; });
  }
  return true;
}

}  // namespace

extern "C" {

bool warp_product(const char* name, void* d, void* a, void* b, void* c) {
  return with_product(name, [&]<class Product, class Input, class Accumulator>() {
    return run<Product, Input, Accumulator>(d, a, b, c);
  });
}
bool defined_lanes(const char* name, uint32_t* d, const uint32_t* a, const uint32_t* b, const uint32_t* c) {
  return with_product(name, [&]<class Product, class, class>() { return Product::defined(d, a, b, c), true; });
}
// flags: 1 A transposed, 2 B transposed, 4 negated, 8 accumulates. a_matrix: 0 where A is in registers.
bool group_product(const char* name, int columns, int flags, uint32_t* d, const uint32_t* a, uint64_t a_matrix,
                   uint64_t b_matrix, const uint8_t* shared) {
  const GroupProduct product{columns, (flags & 1) != 0, (flags & 2) != 0, (flags & 4) != 0, (flags & 8) != 0};
  const std::string_view types = name;
  if (types == "f32.tf32") return run_group<TFloat32, float>(product, d, a, a_matrix, b_matrix, shared);
  if (types == "f32.bf16") return run_group<BFloat16, float>(product, d, a, a_matrix, b_matrix, shared);
  if (types == "f32.f16") return run_group<Float16, float>(product, d, a, a_matrix, b_matrix, shared);
  if (types == "f16.f16") return run_group<Float16, Float16>(product, d, a, a_matrix, b_matrix, shared);
  return false;
}
}
