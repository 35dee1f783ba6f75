// Workload W (d = 5, n = 20) with the core as device code, one task per thread: the trace and the sums of gradients lie
// in shared memory, [cell][thread]; everything else must fit in registers.

#include "core/gram.h"
#include "core/response_gram.h"
#include "core/response_tokens.h"

using namespace memformer::core;

constexpr int threads = 128;
using Weights = Fixed<5>;
constexpr int features = 5, width = 6, context = 20, rows = 21;

struct Sink {
  static constexpr bool takes_outer_products = false;
  Cells<float, threads> sums;
  int gamma_start;
  __device__ __forceinline__ void a(int k, float value) { sums[k] += value; }
  __device__ __forceinline__ void gamma(int k, float value) { sums[gamma_start + k] += value; }
  __device__ __forceinline__ void beta(int, float) {}
};

extern "C" __global__ void __launch_bounds__(threads)
    gram_loss(const float* z, const float* target, FirstOrder<float> method, float* grads, long tasks) {
  extern __shared__ float shared[];
  const long task = static_cast<long>(blockIdx.x) * threads + threadIdx.x;
  if (task >= tasks) return;
  const float* const tokens = z + task * rows * width;
  float matrix[packed_size(width)];
  block_gram(Cells<const float>{tokens}, context, Fixed<width>{}, matrix);
  SymmetricQuadratic<float, Weights> quadratic;
  for (int k = 0; k < packed_size(features); ++k) quadratic.h[k] = matrix[k] * (1.0f / context);
  for (int c = 0; c < features; ++c) quadratic.b[c] = matrix[packed_size(features) + c] * (1.0f / context);
  float s[features] = {0, 0, 0, 0, 0};
  using Trace = ResponseTrace<float, Weights, threads>;
  const Trace trace{{shared + threadIdx.x}, method.layers, 1, {}};
  response_forward<false>(quadratic, method, s, trace);
  const float* const query = tokens + context * width;
  float response = query[features];
  for (int c = 0; c < features; ++c) response += query[c] * s[c];
  const float e = response + target[task];
  const int a_count = method.layers * features * features, count = a_count + method.layers * method.layers;
  Sink sink{{shared + Trace::size(method.layers, 1, features) * threads + threadIdx.x}, a_count};
  for (int k = 0; k < count; ++k) sink.sums[k] = 0;
  const auto outer = [&](int l, float* ds) {
    if (l + 1 < method.layers) return;
    for (int c = 0; c < features; ++c) ds[c] += e * query[c];
  };
  response_backward<false>(quadratic, method, trace, outer, sink, s,
                           static_cast<SymmetricQuadratic<float, Weights>*>(nullptr));
  for (int k = 0; k < count; ++k) grads[task * count + k] = sink.sums[k];
}

extern "C" __global__ void __launch_bounds__(threads)
    token_loss(const float* z, const float* target, TokenMethod<float> method, float* grads, long tasks) {
  extern __shared__ float shared[];
  const long index = static_cast<long>(blockIdx.x) * threads + threadIdx.x;
  if (index >= tasks) return;
  const Cells<float, threads> tile{shared + threadIdx.x};
  for (int k = 0; k < rows * width; ++k) tile[k] = z[index * rows * width + k];
  const TokenTask<float, Weights, threads> task{{tile.data}, {},    rows,    context,
                                                context,     false, context, 1.0f / context};
  using Trace = TokenTrace<float, Weights, threads>;
  const Trace trace{tile.at(rows * width), method.layers, 1, rows, {}};
  token_forward(task, method, trace, [](int) {});
  const float e = trace.state(method.layers)[rows - 1] + target[index];
  const Cells<float, threads> ds = tile.at(rows * width + Trace::size(method.layers, 1, rows, features));
  const int a_count = method.layers * features * features,
            count = a_count + method.layers * method.layers * method.gamma_rows;
  Sink sink{ds.at(rows), a_count};
  for (int k = 0; k < count; ++k) sink.sums[k] = 0;
  const auto outer = [&](int l, Cells<float, threads> to) {
    if (l + 1 == method.layers) to[rows - 1] += e;
  };
  token_backward(task, method, trace, outer, sink, ds, Cells<float, threads>{nullptr});
  for (int k = 0; k < count; ++k) grads[index * count + k] = sink.sums[k];
}
