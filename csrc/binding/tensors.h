// Tensors as the kernels see them: pointers, strides, storage; and their entries, for the small ones.

#pragma once

#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/Exception.h>

#include <optional>

#include "core/calls.h"
#include "core/half.h"

namespace memformer::binding {

using torch::stable::Tensor;
using MaybeTensor = std::optional<Tensor>;

inline Storage storage_of(const Tensor& tensor) {
  using torch::headeronly::ScalarType;
  switch (tensor.scalar_type()) {
    case ScalarType::Float: return Storage::float32;
    case ScalarType::Double: return Storage::float64;
    case ScalarType::BFloat16: return Storage::bfloat16;
    case ScalarType::Half: return Storage::float16;
    default: STD_TORCH_CHECK(false, "expected a tensor of float32, float64, bfloat16 or float16");
  }
}

// The tensor's first three axes, as far as it has them.
inline Array array_of(const Tensor& tensor) {
  Array array;
  array.data = tensor.data_ptr();
  array.storage = storage_of(tensor);
  const auto strides = tensor.strides();
  const int64_t axes = static_cast<int64_t>(strides.size());
  for (int64_t k = 0; k < axes && k < 3; ++k) array.stride[k] = strides[k];
  return array;
}

inline Array array_of(const MaybeTensor& tensor) { return tensor ? array_of(*tensor) : Array{}; }

// The registers (B, R, N, D) of a layer.
inline Registers registers_of(const Tensor& tensor) {
  Registers registers;
  registers.array = array_of(tensor);
  registers.stride = tensor.stride(1);
  registers.array.stride[1] = tensor.stride(2);
  registers.array.stride[2] = tensor.stride(3);
  return registers;
}

// A small tensor broadcast to a shape that its own is aligned to at the end: reads and writes by index. The tensor
// outlives it. A call has a handful of these and a hundred entries, which cost as much as a task or two: what does not
// depend on the entry is found once.
class Entries {
 public:
  static constexpr int most_axes = 5;

  explicit Entries(const Tensor& tensor) : data_(tensor.data_ptr()), storage_(storage_of(tensor)) {
    const auto sizes = tensor.sizes(), strides = tensor.strides();
    const int axes = static_cast<int>(sizes.size());
    for (int k = 0; k < axes; ++k) {
      count_ *= sizes[k];
      if (sizes[k] != 1) step_[most_axes - axes + k] = strides[k];
    }
  }

  int64_t count() const { return count_; }

  // Offset of the entry at an index of the broadcast shape, given innermost axis last.
  template <int Axes>
  int64_t offset(const int64_t (&index)[Axes]) const {
    int64_t at = 0;
    for (int k = 0; k < Axes; ++k) at += index[k] * step_[most_axes - Axes + k];
    return at;
  }

  // From one entry to the next along the innermost axis.
  int64_t step() const { return step_[most_axes - 1]; }

  double read(int64_t offset) const {
    double value = 0.0;
    read(offset, 1, &value);
    return value;
  }

  // Adds `count` entries along the innermost axis, from the one at `offset` on, to `sums`.
  void read(int64_t offset, int count, double* sums) const {
    const auto add = [&](auto* data, auto widen) {
      for (int k = 0; k < count; ++k) sums[k] += widen(data[offset + k * step()]);
    };
    const auto as_it_is = [](auto value) { return static_cast<double>(value); };
    switch (storage_) {
      case Storage::float64: return add(static_cast<const double*>(data_), as_it_is);
      case Storage::bfloat16: return add(static_cast<const uint16_t*>(data_), core::from_bfloat16);
      case Storage::float16: return add(static_cast<const uint16_t*>(data_), core::from_float16);
      default: return add(static_cast<const float*>(data_), as_it_is);
    }
  }

  // `count` entries from an offset on of a tensor without gaps.
  void write(int64_t offset, int64_t count, const double* values) const {
    const auto put = [&](auto* data, auto narrow) {
      for (int64_t k = 0; k < count; ++k) data[offset + k] = narrow(values[k]);
    };
    switch (storage_) {
      case Storage::float64: return put(static_cast<double*>(data_), [](double value) { return value; });
      case Storage::bfloat16:
        return put(static_cast<uint16_t*>(data_),
                   [](double value) { return core::to_bfloat16(static_cast<float>(value)); });
      case Storage::float16:
        return put(static_cast<uint16_t*>(data_),
                   [](double value) { return core::to_float16(static_cast<float>(value)); });
      default: return put(static_cast<float*>(data_), [](double value) { return static_cast<float>(value); });
    }
  }

 private:
  void* data_;
  Storage storage_;
  int64_t count_ = 1;
  int64_t step_[most_axes] = {};  // 0 where entries are shared along an axis
};

}  // namespace memformer::binding
