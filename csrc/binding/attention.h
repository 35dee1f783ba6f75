// A call of linear attention as the kernel takes it.

#pragma once

#include "binding/run.h"
#include "binding/sizes.h"
#include "binding/tensors.h"
#include "cpu/dispatch.h"

namespace memformer::binding {

struct AttentionArguments {
  const Tensor& q;            // (B, N, H, E)
  const Tensor& k;            // (B, keys, H, E)
  const Tensor& v;            // (B, keys, H, F)
  const MaybeTensor& rows;    // (B, N)
  const MaybeTensor& keys;    // (B, keys)
  const MaybeTensor& bounds;  // (S + 1,) int64, contiguous
  bool causal;
};

inline Heads heads_of(const Tensor& tensor) {
  Heads heads;
  heads.array = array_of(tensor);
  heads.array.stride[2] = tensor.stride(3);
  heads.stride = tensor.stride(2);
  return heads;
}

inline Heads heads_of(const MaybeTensor& tensor) { return tensor ? heads_of(*tensor) : Heads{}; }

template <class T>
Attention<T> attention_of(const AttentionArguments& given) {
  Attention<T> call{};
  call.sees = given.causal ? Sees::earlier : Sees::all;
  call.tasks = given.q.size(0);
  call.tokens = given.q.size(1);
  call.keys = given.k.size(1);
  call.heads = given.q.size(2);
  call.key_width = narrow(given.q.size(3), "q");
  call.value_width = narrow(given.v.size(3), "v");
  call.sequences = given.bounds ? given.bounds->size(0) - 1 : 1;
  call.bounds = given.bounds ? static_cast<const int64_t*>(given.bounds->data_ptr()) : nullptr;
  call.q = heads_of(given.q);
  call.k = heads_of(given.k);
  call.v = heads_of(given.v);
  call.row_weights = array_of(given.rows);
  call.key_weights = array_of(given.keys);
  return call;
}

}  // namespace memformer::binding
