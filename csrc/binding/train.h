// The trainer's calls: tensors to a Training and its flat state, and the state back into its tensors.

#pragma once

#include <string>
#include <vector>

#include "binding/parameters.h"
#include "binding/run.h"
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

struct TaskArguments {
  const Tensor& seeds;
  const Tensor& streams;
  const std::string& sampler;
  int64_t features;
  int64_t tasks;
  int64_t context;
  int64_t queries;
  double noise;
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
  source.features = static_cast<int>(given.features);
  source.context = static_cast<int>(given.context);
  source.queries = static_cast<int>(given.queries);
  source.noise = static_cast<T>(given.noise);
  source.seeds = static_cast<const int64_t*>(given.seeds.data_ptr());
  source.streams = static_cast<const int64_t*>(given.streams.data_ptr());
  source.weight_factor = numbers(given.weight_factor);
  source.covariate_factor = numbers(given.covariate_factor);
  source.z = numbers(given.z);
  source.target = numbers(given.target);
  source.index = given.index ? static_cast<const int64_t*>(given.index->data_ptr()) : nullptr;
  return source;
}

template <class T>
class TrainCall {
 public:
  TrainCall(const TrainedParameters& given, const TaskSource<T>& source, int64_t step, int64_t resample_every)
      : parameters_(present(given)) {
    const int models = static_cast<int>(given.q.size(0)), side = static_cast<int>(given.q.size(4));
    TrainedNetwork<T>& network = training.network;
    network.response = !given.p;
    network.width = source.features + 1;
    network.block = given.p && side < network.width;
    network.layers = static_cast<int>(given.q.size(1));
    const int heads = static_cast<int>(given.q.size(2));
    network.kept = kept_heads(heads, given.gamma, given.beta);
    network.heads = network.response ? network.kept : heads;
    network.diagonal = !given.gamma || given.gamma->dim() == 5;
    link(given, heads, side);

    training.source = source;
    training.source.models = models;
    training.source.first_draw = step / resample_every;
    training.step = step;
    training.steps = 1;
    training.resample_every = resample_every;
    uint32_t threads = 1;
    TORCH_ERROR_CODE_CHECK(torch_get_num_threads(&threads));
    training.threads = static_cast<int>(threads);

    OptimizerState<T>& state = training.state;
    state.models = models;
    state.flat = flat_;
    state.flat_step = (flat_ + 15) / 16 * 16;
    numbers_.resize(static_cast<std::size_t>(4 * models) * state.flat_step);
    state.parameters = numbers_.data();
    pack(parameters_, state.parameters);
  }

  void optimizer(const OptimizerArguments& given) {
    OptimizerState<T>& state = training.state;
    state.rule = given.rule == "sgd"        ? Rule::sgd
                 : given.rule == "nesterov" ? Rule::nesterov
                 : given.rule == "adam"     ? Rule::adam
                                            : Rule::adamw;
    const std::size_t size = static_cast<std::size_t>(state.models) * state.flat_step;
    state.first = numbers_.data() + size;
    pack(given.first, state.first);
    if (!given.second.empty()) {
      state.second = numbers_.data() + 2 * size;
      pack(given.second, state.second);
    }
    T* const trained = numbers_.data() + 3 * size;
    each(parameters_, [&](std::size_t place, std::size_t tensor, std::size_t entry) {
      const bool all = given.masks.empty();
      trained[place] = all || static_cast<const bool*>(given.masks[tensor].data_ptr())[entry] ? T(1) : T(0);
    });
    state.trained = trained;
    state.skipped = static_cast<int64_t*>(given.skipped.data_ptr());
    state.max_skipped = given.max_skipped;
    state.hyper = static_cast<const double*>(given.hyper.data_ptr());
    training.factors = static_cast<const double*>(given.factors.data_ptr());
    if (given.clip == "matrix") {
      state.clip_ends = matrix_ends_.data();
      state.clip_groups = static_cast<int>(matrix_ends_.size());
    } else if (given.clip == "model") {
      state.clip_ends = &flat_;
      state.clip_groups = 1;
    }
  }

  // The state back into the tensors that it came from.
  void write(const OptimizerArguments& given) const {
    unpack(training.state.parameters, parameters_);
    unpack(training.state.first, given.first);
    if (!given.second.empty()) unpack(training.state.second, given.second);
  }

  Training<T> training{};

 private:
  static std::vector<Tensor> present(const TrainedParameters& given) {
    std::vector<Tensor> tensors{given.q};
    for (const MaybeTensor* tensor : {&given.p, &given.gamma, &given.beta}) {
      if (*tensor) tensors.push_back(**tensor);
    }
    return tensors;
  }

  // visit(place in the flat state, index of the tensor, entry of that tensor).
  template <class Visit>
  void each(const std::vector<Tensor>& tensors, Visit visit) const {
    const std::size_t models = static_cast<std::size_t>(training.state.models);
    std::size_t begin = 0;
    for (std::size_t k = 0; k < tensors.size(); ++k) {
      const std::size_t entries = static_cast<std::size_t>(tensors[k].numel()) / models;
      for (std::size_t model = 0; model < models; ++model) {
        const std::size_t place = model * static_cast<std::size_t>(training.state.flat_step) + begin;
        for (std::size_t entry = 0; entry < entries; ++entry) visit(place + entry, k, model * entries + entry);
      }
      begin += entries;
    }
  }

  void pack(const std::vector<Tensor>& tensors, T* flat) const {
    each(tensors, [&](std::size_t place, std::size_t tensor, std::size_t entry) {
      flat[place] = static_cast<const T*>(tensors[tensor].data_ptr())[entry];
    });
  }

  void unpack(const T* flat, const std::vector<Tensor>& tensors) const {
    each(tensors, [&](std::size_t place, std::size_t tensor, std::size_t entry) {
      static_cast<T*>(tensors[tensor].data_ptr())[entry] = flat[place];
    });
  }

  // Joins the dense form's numbers to the flat ones.
  void link(const TrainedParameters& given, int heads, int side) {
    TrainedNetwork<T>& network = training.network;
    const int layers = network.layers, kept = network.kept;
    const bool collapse = network.response && kept == 1;
    const int matrix = side * side;
    network.q_count = layers * (collapse ? 1 : heads) * matrix;
    for (int l = 0; l < layers; ++l) {
      for (int h = 0; h < heads; ++h) {
        const int dense = (l * (collapse ? 1 : heads) + (collapse ? 0 : h)) * matrix;
        for (int k = 0; k < matrix; ++k) join(dense + k, flat_ + (l * heads + h) * matrix + k);
        matrix_ends_.push_back(flat_ + (l * heads + h + 1) * matrix);
      }
    }
    flat_ += layers * heads * matrix;
    int begin = network.q_count;
    if (given.p) {
      network.p_count = layers * heads * matrix;
      for (int k = 0; k < network.p_count; ++k) join(begin + k, flat_ + k);
      for (int k = matrix; k <= network.p_count; k += matrix) matrix_ends_.push_back(flat_ + k);
      flat_ += network.p_count;
      begin += network.p_count;
    }
    if (given.gamma) network.gamma_count = link_coefficients(*given.gamma, !network.diagonal, begin);
    if (given.beta) network.beta_count = link_coefficients(*given.beta, false, begin + network.gamma_count);
    constant_.assign(static_cast<std::size_t>(network.dense()), T(0));
    network.constant = constant_.data();
    network.links = static_cast<int>(link_dense_.size());
    network.link_dense = link_dense_.data();
    network.link_flat = link_flat_.data();
  }

  void join(int dense, int flat) {
    link_dense_.push_back(dense);
    link_flat_.push_back(flat);
  }

  // Coefficients (M, [L,] L, R, 1, D), every axis of them its size or 1; the numbers of their dense form.
  int link_coefficients(const Tensor& given, bool paired, int begin) {
    const TrainedNetwork<T>& network = training.network;
    const int layers = network.layers, first_feature = network.response ? network.width - 1 : 0;
    const int features = network.width - first_feature, outer = paired ? layers : 1;
    // Axes [l, j, register, feature], aligned at the end; a missing or shared one has step 0.
    const int axes[4] = {paired ? 1 : -1, static_cast<int>(given.dim()) - 4, static_cast<int>(given.dim()) - 3,
                         static_cast<int>(given.dim()) - 1};
    int steps[4];
    for (int k = 0; k < 4; ++k) {
      const bool own = axes[k] >= 0 && given.size(axes[k]) > 1;
      steps[k] = own ? static_cast<int>(given.stride(axes[k])) : 0;
    }
    for (int l = 0; l < outer; ++l) {
      for (int j = 0; j < layers; ++j) {
        if (paired && j > l) continue;
        for (int r = 0; r < network.kept; ++r) {
          for (int c = 0; c < features; ++c) {
            const int dense = begin + ((l * layers + j) * network.kept + r) * features + c;
            join(dense, flat_ + l * steps[0] + j * steps[1] + r * steps[2] + (first_feature + c) * steps[3]);
          }
        }
      }
    }
    flat_ += static_cast<int>(given.numel() / given.size(0));
    matrix_ends_.push_back(flat_);
    return outer * layers * network.kept * features;
  }

  std::vector<Tensor> parameters_;
  std::vector<int> link_dense_, link_flat_, matrix_ends_;
  std::vector<T> constant_;
  std::vector<T> numbers_;  // parameters, first and second moments, and which are trained: (4, M, flat_step)
  int flat_ = 0;
};

}  // namespace memformer::binding
