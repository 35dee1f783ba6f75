// Parameters of a call: from the caller's strided tensors to the dense form that kernels work with, and gradients back.
//
// Reading is the block's work: thread t reads entries t, t + threads, ... A dense entry is one entry of the caller's
// tensor, or the sum over its heads where a network's heads are one. A gradient's entry is the sum of those of the
// dense form that read it. Sums are double, in the order of the dense form.

#pragma once

#include "core/half.h"
#include "cuda/launch.h"
#include "cuda/machine/execution.cuh"

namespace memformer::cuda {

// Double is stored where it is worked in, and nowhere else.
template <class T>
MEMFORMER_DEVICE T read_number(const void* data, Storage storage, int64_t offset) {
  if (storage == Storage::float32) return static_cast<T>(static_cast<const float*>(data)[offset]);
  if constexpr (sizeof(T) == 8) {
    if (storage == Storage::float64) return static_cast<const double*>(data)[offset];
  }
  const uint16_t bits = static_cast<const uint16_t*>(data)[offset];
  return static_cast<T>(storage == Storage::bfloat16 ? core::from_bfloat16(bits) : core::from_float16(bits));
}

template <class T>
MEMFORMER_DEVICE void write_number(void* data, Storage storage, int64_t offset, T value) {
  if (storage == Storage::float32) {
    static_cast<float*>(data)[offset] = static_cast<float>(value);
    return;
  }
  if constexpr (sizeof(T) == 8) {
    if (storage == Storage::float64) {
      static_cast<double*>(data)[offset] = value;
      return;
    }
  }
  const float single = static_cast<float>(value);
  static_cast<uint16_t*>(data)[offset] =
      storage == Storage::bfloat16 ? core::to_bfloat16(single) : core::to_float16(single);
}

// The same for an entry of a tensor of tasks, in its own storage.
template <class T>
MEMFORMER_DEVICE T read_number(const Array& array, int64_t offset) {
  return read_number<T>(array.data, array.storage, offset);
}
template <class T>
MEMFORMER_DEVICE void write_number(const Array& array, int64_t offset, T value) {
  write_number(array.data, array.storage, offset, value);
}

// The place of a dense entry in the caller's tensor, axis by axis; -1 on an axis where it has none.
struct Place {
  int at[5];
};

MEMFORMER_DEVICE Place dense_place(const Parameter& parameter, int index) {
  Place place;
  for (int axis = 4; axis >= 0; --axis) {
    const int size = parameter.size[axis];
    place.at[axis] = index % size;
    index /= size;
  }
  return place;
}

// One axis of that: from the dense form's index to the caller's.
MEMFORMER_DEVICE int given_index(const Parameter& parameter, int axis, int dense) {
  if (parameter.given[axis] == 1) return 0;
  if (parameter.matrix) return axis < 3 || dense < parameter.given[axis] ? dense : -1;
  if (axis == 3) return dense < parameter.context ? dense : parameter.first_query + dense - parameter.context;
  return axis == 4 ? parameter.first_column + dense : dense;
}

// The dense entry `index`.
template <class T>
MEMFORMER_DEVICE T parameter_entry(const Parameter& parameter, int index) {
  const Place place = dense_place(parameter, index);
  if (parameter.lower && place.at[1] > place.at[0]) return T(0);
  if (parameter.matrix && (place.at[3] >= parameter.given[3] || place.at[4] >= parameter.given[4])) {
    const int last = parameter.size[3] - 1;
    return place.at[3] == last && place.at[4] == last ? static_cast<T>(parameter.corner) : T(0);
  }
  int64_t offset = 0;
  for (int axis = 0; axis < 5; ++axis) offset += given_index(parameter, axis, place.at[axis]) * parameter.stride[axis];
  if (parameter.size[2] == 1 && parameter.given[2] > 1) {
    double sum = 0.0;
#pragma unroll 1
    for (int head = 0; head < parameter.given[2]; ++head) {
      sum += read_number<double>(parameter.data, parameter.storage, offset + head * parameter.stride[2]);
    }
    return static_cast<T>(sum);
  }
  return read_number<T>(parameter.data, parameter.storage, offset);
}

// The whole dense form, groups of `group` entries `pitch` apart: all threads of the block, before a barrier. A call, so
// that kernels hold this code once.
template <class T, class Block>
MEMFORMER_CALL void load_parameter(const Block& block, const Parameter& parameter, T* to, int group, int pitch) {
  const int count = static_cast<int>(parameter.count());
#pragma unroll 1
  for (int k = block.thread(); k < count; k += Block::threads) {
    to[k / group * pitch + k % group] = parameter_entry<T>(parameter, k);
  }
}

template <class T, class Block>
MEMFORMER_DEVICE void load_parameter(const Block& block, const Parameter& parameter, T* to) {
  load_parameter(block, parameter, to, 1, 1);
}

// First dense index and count along one axis of the entries that read the caller's index `at` there.
struct Reach {
  int first;
  int count;
};

MEMFORMER_DEVICE Reach dense_reach(const Parameter& parameter, int axis, int at) {
  const int size = parameter.size[axis];
  if (parameter.matrix && axis >= 3) return {at, 1};
  if (parameter.given[axis] == 1) return {0, size};
  if (axis == 2 && size == 1) return {0, 1};
  if (axis < 3) return {at, 1};
  if (axis == 4) {
    const int dense = at - parameter.first_column;
    return {dense, dense >= 0 && dense < size ? 1 : 0};
  }
  if (at < parameter.context) return {at, 1};
  return {parameter.context + at - parameter.first_query, at >= parameter.first_query ? 1 : 0};
}

// The gradient of the caller's entry `index`, from the sums of the dense form.
MEMFORMER_DEVICE double parameter_grad(const Parameter& parameter, const double* sums, int index) {
  Reach reach[5];
  for (int axis = 4; axis >= 0; --axis) {
    reach[axis] = dense_reach(parameter, axis, index % parameter.given[axis]);
    index /= parameter.given[axis];
  }
  double sum = 0.0;
#pragma unroll 1
  for (int a = reach[0].first; a < reach[0].first + reach[0].count; ++a) {
#pragma unroll 1
    for (int b = reach[1].first; b < reach[1].first + reach[1].count; ++b) {
      if (parameter.lower && b > a) continue;
#pragma unroll 1
      for (int c = reach[2].first; c < reach[2].first + reach[2].count; ++c) {
#pragma unroll 1
        for (int r = reach[3].first; r < reach[3].first + reach[3].count; ++r) {
#pragma unroll 1
          for (int k = reach[4].first; k < reach[4].first + reach[4].count; ++k) {
            const int64_t head = (static_cast<int64_t>(a) * parameter.size[1] + b) * parameter.size[2] + c;
            sum += sums[(head * parameter.size[3] + r) * parameter.size[4] + k];
          }
        }
      }
    }
  }
  return sum;
}

}  // namespace memformer::cuda
