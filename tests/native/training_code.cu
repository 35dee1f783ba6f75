// The trainer's core as device code, one task or one parameter per thread: a step of workload W (d = 5, L = 4) whose
// tasks are drawn as sufficient statistics with the query integrated out, and Adam.

#include "core/bartlett.h"
#include "core/optimizer.h"
#include "core/response_gram.h"

using namespace memformer::core;

constexpr int threads = 128;
constexpr int features = 5;
using Weights = Fixed<features>;

struct Sink {
  static constexpr bool takes_outer_products = false;
  Cells<float, threads> sums;
  int gamma_start;
  __device__ __forceinline__ void a(int k, float value) { sums[k] += value; }
  __device__ __forceinline__ void gamma(int k, float value) { sums[gamma_start + k] += value; }
  __device__ __forceinline__ void beta(int, float) {}
};

extern "C" __global__ void __launch_bounds__(threads)
    statistics_step(FirstOrder<float> method, long seed, unsigned draw, int context, float* grads) {
  extern __shared__ float shared[];
  const unsigned task_index = blockIdx.x * threads + threadIdx.x;
  const Stream<float> stream{philox_keys(static_cast<uint64_t>(seed)), task_index, draw, 0};
  const StatisticsPlan plan{features, context, 0, false};
  float normals[20], chi[features], w[features];
  MEMFORMER_UNROLL
  for (int block = 0; block < 5; ++block) stream.normals(block, normals + 4 * block);
  Uniforms<float> uniforms(stream, blocks_of(plan.normals()));
  MEMFORMER_UNROLL
  for (int i = 0; i < features; ++i) chi[i] = uniforms.log_sum((context - i) / 2, [] {});
  SymmetricQuadratic<float, Weights> quadratic;
  sample_statistics(plan, Weights{}, normals, chi, 0.0f, static_cast<const float*>(nullptr),
                    static_cast<const float*>(nullptr), quadratic, w);
  float s[features] = {0, 0, 0, 0, 0};
  using Trace = ResponseTrace<float, Weights, threads>;
  const Trace trace{{shared + threadIdx.x}, method.layers, 1, {}};
  response_forward<false>(quadratic, method, s, trace);
  const int a_count = method.layers * features * features, count = a_count + method.layers * method.layers;
  Sink sink{{shared + Trace::size(method.layers, 1, features) * threads + threadIdx.x}, a_count};
  for (int k = 0; k < count; ++k) sink.sums[k] = 0;
  float ds[features];
  const auto outer = [&](int l, float* to) {
    if (l + 1 < method.layers) return;
    MEMFORMER_UNROLL
    for (int c = 0; c < features; ++c) to[c] += 2 * (s[c] + w[c]);
  };
  response_backward<false>(quadratic, method, trace, outer, sink, ds,
                           static_cast<SymmetricQuadratic<float, Weights>*>(nullptr));
  for (int k = 0; k < count; ++k) grads[static_cast<long>(task_index) * count + k] = sink.sums[k];
}

extern "C" __global__ void __launch_bounds__(threads)
    adam_step(memformer::Rule rule, const double* hyper, double factor, long t, const float* grad, float* parameters,
              float* first, float* second, int count) {
  const int k = blockIdx.x * threads + threadIdx.x;
  if (k >= count) return;
  const auto scalars = step_scalars<float>(rule, hyper, factor, t);
  step_number(scalars, grad[k], parameters[k], first[k], second[k]);
}
