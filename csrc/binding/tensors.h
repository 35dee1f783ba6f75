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

// A small tensor broadcast to a shape that its own is aligned to at the end: reads and writes by index. The tensor outlives
// it.
class Entries {
 public:
  explicit Entries(const Tensor& tensor)
      : data_(tensor.data_ptr()), storage_(storage_of(tensor)), sizes_(tensor.sizes()), strides_(tensor.strides()) {}

  int64_t axes() const { return static_cast<int64_t>(sizes_.size()); }
  int64_t count() const {
    int64_t entries = 1;
    for (int64_t size : sizes_) entries *= size;
    return entries;
  }

  // Offset of the entry at an index of the broadcast shape, given innermost axis last.
  template <int Axes>
  int64_t offset(const int64_t (&index)[Axes]) const {
    int64_t at = 0;
    for (int64_t k = 1; k <= axes(); ++k) {
      if (sizes_[axes() - k] != 1) at += index[Axes - k] * strides_[axes() - k];
    }
    return at;
  }

  double read(int64_t offset) const {
    switch (storage_) {
      case Storage::float64: return static_cast<const double*>(data_)[offset];
      case Storage::bfloat16: return core::from_bfloat16(static_cast<const uint16_t*>(data_)[offset]);
      case Storage::float16: return core::from_float16(static_cast<const uint16_t*>(data_)[offset]);
      default: return static_cast<const float*>(data_)[offset];
    }
  }

  // to[k] += the entries of a row of the last axis, from an offset on.
  void add_row(int64_t offset, int64_t count, double* to) const {
    const int64_t step = strides_[axes() - 1];
    if (storage_ == Storage::float32) {
      const float* const from = static_cast<const float*>(data_) + offset;
      for (int64_t k = 0; k < count; ++k) to[k] += from[k * step];
      return;
    }
    for (int64_t k = 0; k < count; ++k) to[k] += read(offset + k * step);
  }

  // The way back of a row, of a tensor without gaps.
  void write_row(int64_t offset, int64_t count, const double* values) const {
    if (storage_ == Storage::float32) {
      float* const to = static_cast<float*>(data_) + offset;
      for (int64_t k = 0; k < count; ++k) to[k] = static_cast<float>(values[k]);
      return;
    }
    for (int64_t k = 0; k < count; ++k) write(offset + k, values[k]);
  }

  void write(int64_t offset, double value) const {
    switch (storage_) {
      case Storage::float64: static_cast<double*>(data_)[offset] = value; return;
      case Storage::bfloat16: static_cast<uint16_t*>(data_)[offset] = core::to_bfloat16(static_cast<float>(value)); return;
      case Storage::float16: static_cast<uint16_t*>(data_)[offset] = core::to_float16(static_cast<float>(value)); return;
      default: static_cast<float*>(data_)[offset] = static_cast<float>(value);
    }
  }

 private:
  void* data_;
  Storage storage_;
  torch::headeronly::IntHeaderOnlyArrayRef sizes_, strides_;
};

}  // namespace memformer::binding
