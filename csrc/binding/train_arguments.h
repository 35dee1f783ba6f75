// The trainer's arguments as they come, the same for every device.

#pragma once

#include <string>
#include <vector>

#include "binding/arguments.h"
#include "core/training.h"

namespace memformer::binding {

// A model's parameters (M, ...), in the shapes of the public contract behind the models' axis, gates folded in.
// Contiguous.
struct TrainedParameters {
  const Tensor& q;
  const MaybeTensor& p;
  const MaybeTensor& gamma;
  const MaybeTensor& beta;
};

// The tensors that a model has, in the order of its flat numbers.
inline std::vector<Tensor> present(const TrainedParameters& given) {
  std::vector<Tensor> tensors{given.q};
  for (const MaybeTensor* tensor : {&given.p, &given.gamma, &given.beta}) {
    if (*tensor) tensors.push_back(**tensor);
  }
  return tensors;
}

struct TaskArguments {
  const Tensor& seeds;
  const Tensor& streams;
  const std::string& sampler;
  int64_t features;
  int64_t tasks;
  int64_t tokens;
  int64_t context;
  int64_t queries;
  bool prefixes;
  double noise;  // each task's own lies between this and
  double most_noise;
  const MaybeTensor& weight_factor;
  const MaybeTensor& covariate_factor;
  const MaybeTensor& z;
  const MaybeTensor& target;
  const MaybeTensor& index;
};

struct OptimizerArguments {
  const std::vector<Tensor>& first;
  const std::vector<Tensor>& second;
  const std::vector<Tensor>& masks;
  const Tensor& skipped;
  const std::string& rule;
  const Tensor& hyper;
  const std::string& clip;
  const Tensor& factors;
  int64_t max_skipped;
  int64_t first_step;     // that of factors[0]
  const Tensor& counter;  // (), int64 on the CPU: steps done
  const MaybeTensor& tied;

  int64_t* counted() const { return static_cast<int64_t*>(counter.data_ptr()); }
  // Steps that were taken with these arguments before, and the factor of the next one.
  int64_t begun() const { return *counted() - first_step; }
  const double* next_factor() const { return static_cast<const double*>(factors.data_ptr()) + begun(); }
};

template <class T>
TaskSource<T> task_source(const TaskArguments& given) {
  TaskSource<T> source{};
  source.sampler = given.sampler == "statistics" ? Sampler::statistics
                   : given.sampler == "tokens"   ? Sampler::tokens
                                                 : Sampler::given;
  const auto numbers = [](const MaybeTensor& tensor) {
    return tensor ? static_cast<const T*>(tensor->data_ptr()) : nullptr;
  };
  source.models = 1;
  source.tasks = given.tasks;
  source.features = narrow(given.features, "features");
  source.tokens = narrow(given.tokens, "tokens");
  source.context = narrow(given.context, "context");
  source.queries = narrow(given.queries, "queries");
  source.prefixes = given.prefixes;
  source.noise = static_cast<T>(given.noise);
  source.noise_spread = static_cast<T>(given.most_noise - given.noise);
  source.seeds = static_cast<const int64_t*>(given.seeds.data_ptr());
  source.streams = static_cast<const int64_t*>(given.streams.data_ptr());
  source.weight_factor = numbers(given.weight_factor);
  source.covariate_factor = numbers(given.covariate_factor);
  source.z = numbers(given.z);
  source.target = numbers(given.target);
  source.index = given.index ? static_cast<const int64_t*>(given.index->data_ptr()) : nullptr;
  return source;
}

inline Rule rule_of(const std::string& name) {
  return name == "sgd" ? Rule::sgd : name == "nesterov" ? Rule::nesterov : name == "adam" ? Rule::adam : Rule::adamw;
}

}  // namespace memformer::binding
