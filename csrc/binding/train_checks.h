// What the trainer indexes with, checked before it becomes pointers and 32-bit numbers, for every device.
//
// The package has named the argument at fault by then, unless a tensor was changed in place since: nothing is left to
// it.

#pragma once

#include <algorithm>
#include <initializer_list>
#include <string>
#include <vector>

#include "binding/sizes.h"
#include "binding/train_arguments.h"

namespace memformer::binding {

using torch::headeronly::ScalarType;

// Memory that is read or written from a tensor's start, in order. A size of -1 is any; `beside` is on the same device.
inline void check_tensor(const char* name, const Tensor& tensor, ScalarType type, const std::vector<int64_t>& shape,
                         const Tensor& beside) {
  const auto sizes = tensor.sizes();
  const auto fits = [](int64_t wanted, int64_t size) { return wanted < 0 || wanted == size; };
  STD_TORCH_CHECK(std::equal(shape.begin(), shape.end(), sizes.begin(), sizes.end(), fits) && tensor.is_contiguous() &&
                      tensor.scalar_type() == type && tensor.is_cpu() == beside.is_cpu() &&
                      tensor.get_device_index() == beside.get_device_index(),
                  name, ": another shape, dtype, layout or device than the trainer was told");
}

// A product of sizes as an index: the numbers of a model, of a task's tokens, of a call's coefficients.
inline void check_indexed(const char* name, std::initializer_list<int64_t> sizes) {
  int64_t product = 1;
  for (const int64_t size : sizes) {
    STD_TORCH_CHECK(size >= 0 && (size == 0 || product <= most_numbers / size), name, ": expected at most ",
                    most_numbers);
    product *= size;
  }
}

inline std::vector<int64_t> shape_of(const Tensor& tensor) {
  const auto sizes = tensor.sizes();
  return {sizes.begin(), sizes.end()};
}

// q (M, L, H, d, d) or (M, L, H, D, D), p likewise, and coefficients (M, [L,] L, H, 1, D) whose axes may be 1.
inline void check_models(const TrainedParameters& given, int64_t features) {
  const ScalarType type = given.q.scalar_type();
  const std::vector<int64_t> matrices = shape_of(given.q);
  STD_TORCH_CHECK((type == ScalarType::Float || type == ScalarType::Double) && matrices.size() == 5 &&
                      *std::min_element(matrices.begin(), matrices.end()) > 0 && matrices[3] == matrices[4] &&
                      (matrices[4] == features || (given.p && matrices[4] == features + 1)),
                  "q: expected matrices (M, L, H, d, d), or (M, L, H, D, D) beside a p");
  check_tensor("q", given.q, type, matrices, given.q);
  if (given.p) check_tensor("p", *given.p, type, matrices, given.q);
  const int64_t models = matrices[0], layers = matrices[1], heads = matrices[2], width = features + 1;
  check_indexed("q", {models, 16});
  check_indexed("q", {layers, heads, matrices[3], matrices[4]});
  check_indexed("gamma", {layers, layers, heads, width});
  const auto check_coefficients = [&](const char* name, const Tensor& tensor, bool paired) {
    const std::vector<int64_t> full = paired ? std::vector<int64_t>{models, layers, layers, heads, 1, width}
                                             : std::vector<int64_t>{models, layers, heads, 1, width};
    std::vector<int64_t> shape = shape_of(tensor);
    for (std::size_t k = 1; k < shape.size() && k < full.size(); ++k) {
      if (shape[k] != 1) shape[k] = full[k];
    }
    STD_TORCH_CHECK(shape.size() == full.size(), name, ": expected coefficients of ", full.size(), " axes");
    shape[0] = models;
    check_tensor(name, tensor, type, shape, given.q);
  };
  if (given.gamma) check_coefficients("gamma", *given.gamma, given.gamma->dim() == 6);
  if (given.beta) check_coefficients("beta", *given.beta, false);
}

// The tasks of `draws` batches in a row, for models beside q.
inline void check_tasks(const TaskArguments& given, const Tensor& q, int64_t draws) {
  const ScalarType type = q.scalar_type();
  const int64_t models = q.size(0), width = given.features + 1;
  STD_TORCH_CHECK(
      given.features > 0 && given.tasks > 0 && given.queries >= 0 && given.context > 0 &&
          given.tokens >= given.context + given.queries - (given.sampler == "statistics" ? given.queries : 0),
      "expected features, tasks, a context and no more queries than tokens behind it");
  STD_TORCH_CHECK(!given.prefixes || (given.sampler != "statistics" && given.queries > 0 &&
                                      given.tokens == given.context + given.queries),
                  "expected queries behind the context and nothing else where they are prefixes");
  check_indexed("the numbers of a task", {given.tokens, width});
  check_indexed("the numbers of a task", {given.queries, width});
  check_tensor("seeds", given.seeds, ScalarType::Long, {models}, q);
  check_tensor("streams", given.streams, ScalarType::Long, {models}, q);
  for (const MaybeTensor* factor : {&given.weight_factor, &given.covariate_factor}) {
    if (*factor) check_tensor("factor", **factor, type, {models, given.features, given.features}, q);
  }
  if (given.sampler == "statistics" || given.sampler == "tokens") return;
  STD_TORCH_CHECK(given.sampler == "fixed" && given.z && given.target, "expected a known sampler, and its tasks");
  check_tensor("z", *given.z, type, {-1, given.tokens, width}, q);
  const int64_t held = given.z->size(0);
  check_tensor("target", *given.target, type, {held, given.queries}, q);
  if (!given.index) {
    STD_TORCH_CHECK(given.tasks <= held, "z: expected a task for each of the batch");
    return;
  }
  check_tensor("index", *given.index, ScalarType::Long, {-1, models, given.tasks}, q);
  STD_TORCH_CHECK(given.index->size(0) >= draws, "index: expected the tasks of every draw");
  if (!given.index->is_cpu()) return;
  const int64_t* const index = static_cast<const int64_t*>(given.index->data_ptr());
  STD_TORCH_CHECK(std::all_of(index, index + given.index->numel(), [&](int64_t k) { return k >= 0 && k < held; }),
                  "index: expected tasks of z");
}

// Batches that steps [step, step + steps) draw.
inline int64_t draws_of(int64_t step, int64_t steps, int64_t resample_every) {
  STD_TORCH_CHECK(step >= 0 && resample_every > 0, "expected a step of at least 0 and batches kept for at least 1");
  return steps > 0 ? (step + steps - 1) / resample_every - step / resample_every + 1 : 0;
}

// How models are changed in steps whose losses are (steps, M). Counters and losses are on the CPU, whatever the device.
inline void check_optimizer(const TrainedParameters& models, const OptimizerArguments& given, const Tensor& losses) {
  const std::vector<Tensor> parameters = present(models);
  const Tensor& q = models.q;
  const int64_t count = q.size(0);
  const auto check_each = [&](const char* name, const std::vector<Tensor>& tensors, ScalarType type) {
    STD_TORCH_CHECK(tensors.size() == parameters.size(), name, ": expected one for each parameter");
    for (std::size_t k = 0; k < tensors.size(); ++k) {
      check_tensor(name, tensors[k], type, shape_of(parameters[k]), q);
    }
  };
  check_each("first", given.first, q.scalar_type());
  if (given.rule == "adam" || given.rule == "adamw" || !given.second.empty()) {
    check_each("second", given.second, q.scalar_type());
  }
  if (!given.masks.empty()) check_each("masks", given.masks, ScalarType::Bool);
  STD_TORCH_CHECK(given.counter.is_cpu(), "counter: expected a tensor on the CPU");
  check_tensor("counter", given.counter, ScalarType::Long, {}, given.counter);
  check_tensor("skipped", given.skipped, ScalarType::Long, {count}, given.counter);
  check_tensor("hyper", given.hyper, ScalarType::Double, {count, 6}, q);
  check_tensor("losses", losses, ScalarType::Double, {-1, count}, given.counter);
  check_tensor("factors", given.factors, ScalarType::Double, {-1}, q);
  if (given.tied) {
    check_tensor("tied", *given.tied, ScalarType::Long, {count}, given.counter);
    const int64_t* const tied = static_cast<const int64_t*>(given.tied->data_ptr());
    STD_TORCH_CHECK(std::all_of(tied, tied + count, [&](int64_t k) { return k >= 0 && k <= q.size(1); }),
                    "tied: expected at most as many layers as there are");
    STD_TORCH_CHECK(!models.p || models.p->numel() == q.numel(), "p: expected q's shape where layers are tied");
  }
  STD_TORCH_CHECK(
      given.first_step >= 0 && given.begun() >= 0 && given.begun() + losses.size(0) <= given.factors.size(0),
      "factors: expected one for each step");
}

// The sums (M, blocks, P + 1) of blocks of tasks.
inline void check_sums(const TrainedParameters& models, const Tensor& sums) {
  int64_t numbers = 1;
  for (const Tensor& tensor : present(models)) numbers += tensor.numel() / models.q.size(0);
  check_tensor("sums", sums, ScalarType::Double, {models.q.size(0), -1, numbers}, models.q);
}

}  // namespace memformer::binding
