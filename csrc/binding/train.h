// The trainer's calls: tensors to a Training and its flat state, and the state back into its tensors.
//
// Kernels work on copies. What a caller sees of the state changes in `write` alone, all of it: a call that ends before,
// by whatever is thrown, has taken no step.

#pragma once

#include <algorithm>
#include <vector>

#include "binding/links.h"
#include "binding/run.h"

namespace memformer::binding {

template <class T>
class TrainCall {
 public:
  // Step `step`; the given tasks' order begins with that of step `first_step`.
  TrainCall(const TrainedParameters& given, const TaskSource<T>& source, int64_t step, int64_t first_step,
            int64_t resample_every)
      : parameters_(present(given)), links_(given, source.features) {
    const int models = narrow(given.q.size(0), "q");
    training.network = links_.network;
    training.source = source;
    training.source.models = models;
    training.source.first_draw = first_step / resample_every;
    training.step = step;
    training.steps = 1;
    training.resample_every = resample_every;
    uint32_t threads = 1;
    TORCH_ERROR_CODE_CHECK(torch_get_num_threads(&threads));
    training.threads = narrow(threads, "threads");

    OptimizerState<T>& state = training.state;
    state.models = models;
    state.flat = links_.flat;
    state.flat_step = (links_.flat + 15) / 16 * 16;
    numbers_.resize(static_cast<std::size_t>(4 * models) * state.flat_step);
    state.parameters = numbers_.data();
    pack(parameters_, state.parameters);
  }

  void optimizer(const OptimizerArguments& given) {
    OptimizerState<T>& state = training.state;
    state.rule = rule_of(given.rule);
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
    const auto* const skipped = static_cast<const int64_t*>(given.skipped.data_ptr());
    skipped_.assign(skipped, skipped + state.models);
    state.skipped = skipped_.data();
    state.max_skipped = given.max_skipped;
    if (given.tied) {
      const Tensor& q = parameters_[0];
      state.tied = static_cast<const int64_t*>(given.tied->data_ptr());
      state.projections = links_.network.response ? 1 : 2;
      state.layer_flat = narrow(q.numel() / (q.size(0) * q.size(1)), "q");
    }
    state.hyper = static_cast<const double*>(given.hyper.data_ptr());
    training.factors = given.next_factor();
    if (given.clip == "matrix") {
      state.clip_ends = links_.matrix_ends.data();
      state.clip_groups = narrow(static_cast<int64_t>(links_.matrix_ends.size()), "q");
    } else if (given.clip == "model") {
      state.clip_ends = &links_.flat;
      state.clip_groups = 1;
    }
  }

  // The state after `taken` steps back into the tensors that it came from.
  void write(const OptimizerArguments& given, int64_t taken) const {
    unpack(training.state.parameters, parameters_);
    unpack(training.state.first, given.first);
    if (!given.second.empty()) unpack(training.state.second, given.second);
    std::copy(skipped_.begin(), skipped_.end(), static_cast<int64_t*>(given.skipped.data_ptr()));
    *given.counted() += taken;
  }

  Training<T> training{};

 private:
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

  std::vector<Tensor> parameters_;
  Links<T> links_;
  std::vector<T> numbers_;  // parameters, first and second moments, and which are trained: (4, M, flat_step)
  std::vector<int64_t> skipped_;
};

}  // namespace memformer::binding
