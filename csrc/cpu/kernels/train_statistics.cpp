// Tasks drawn as sufficient statistics on the CPU: one task per lane, nothing read, d (d + 5) / 2 numbers written, in
// cache.
//
// Operations: those of core/bartlett.h. For d = 5, n = 20 and the query integrated out a group of floats takes 16
// Philox blocks of 100 vector instructions, 64 uniforms (5 each), 20 normals (30), 16 splits (8), 5 logarithms (25) and
// 200 multiply-adds: 3,000 vector instructions, and no fewer than the 1,600 of Philox.

#include "core/bartlett.h"

#include "cpu/tasks/run_network.h"
#include "cpu/tasks/stream.h"

namespace memformer::cpu::MEMFORMER_ISA {
namespace {

template <class T, class Extent>
void fill(const Draw<T>& draw, Extent extent, Tasks tasks, Lanes<T>* cells, Lanes<T>* scratch) {
  using S = Lanes<T>;
  const TaskSource<T>& source = draw.source;
  const TaskCells<T> at(source);
  const int d = extent;
  const core::StatisticsPlan plan{d, source.context, source.queries, source.noisy()};
  const T* const weight_factor = draw.factor(source.weight_factor);
  const T* const covariate_factor = draw.factor(source.covariate_factor);

  const auto stream = stream_of(draw, tasks);
  const S* const drawn = normals(stream, 0, plan.normals(), scratch);
  core::Uniforms<S> uniforms(stream, static_cast<uint32_t>(core::blocks_of(plan.normals())));
  S chi[Extent::limit];
  for (int i = 0; i < d; ++i) chi[i] = uniforms.log_sum((source.context - i) / 2, [] { checkpoint(); });

  core::SymmetricQuadratic<S, Extent> task;
  task.extent = extent;
  S w[Extent::limit];
  core::sample_statistics(plan, extent, drawn, chi, noise_of(source, stream), weight_factor, covariate_factor, task, w);
  for (int k = 0; k < core::packed_size(d); ++k) cells[k] = task.h[k];
  for (int c = 0; c < d; ++c) cells[core::packed_size(d) + c] = task.b[c];
  cells[core::packed_size(d + 1) - 1] = S(T(0));
  if (!source.queries) {
    for (int c = 0; c < d; ++c) cells[at.solution() + c] = w[c];
  }
  for (int query = 0; query < source.queries; ++query) {
    checkpoint_at_row(query);
    S* const row = cells + at.query(query);
    core::transform(extent, covariate_factor, drawn + plan.first_query() + query * d, row);
    S target = row[0] * w[0];
    for (int c = 1; c < d; ++c) target += row[c] * w[c];
    row[d] = S(T(0));
    row[d + 1] = target;
  }
  clear_unused(tasks, at.count(), cells);
}

template <class T>
void fill(const Draw<T>& draw, Tasks tasks, Lanes<T>* cells, Lanes<T>* scratch) {
  with_extent<T>(draw.source.features, [&](auto d) { fill(draw, d, tasks, cells, scratch); });
}

template <class T>
int scratch(const TaskSource<T>& source) {
  const int d = source.features;
  return normal_cells(core::StatisticsPlan{d, source.context, source.queries, source.noisy()}.normals());
}

}  // namespace

void fill_statistics(const Draw<float>& draw, Tasks tasks, Lanes<float>* cells, Lanes<float>* scratch) {
  fill(draw, tasks, cells, scratch);
}

void fill_statistics(const Draw<double>& draw, Tasks tasks, Lanes<double>* cells, Lanes<double>* scratch) {
  fill(draw, tasks, cells, scratch);
}

int statistics_scratch(const TaskSource<float>& source) { return scratch(source); }

int statistics_scratch(const TaskSource<double>& source) { return scratch(source); }

}  // namespace memformer::cpu::MEMFORMER_ISA
