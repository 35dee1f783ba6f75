// The trainer on CUDA: tensors to a call. Beside models and tasks, seeds, streams, hyper and factors lie on the device
// too. Losses and skipped steps come back when all steps are done; what is waited for is only that.

#include <torch/csrc/stable/library.h>

#include <string>
#include <vector>

#include "binding/cuda/device.h"
#include "binding/links.h"
#include "binding/train_checks.h"
#include "cuda/train.h"

namespace memformer::binding {
namespace {

cuda::TrainMode mode_of(const std::string& launches) {
  return launches == "persistent" ? cuda::TrainMode::persistent
         : launches == "replay"   ? cuda::TrainMode::replay
                                  : cuda::TrainMode::automatic;
}

template <class Number>
Number* numbers_of(const Tensor& tensor) {
  return static_cast<Number*>(tensor.data_ptr());
}

void train_steps(const Tensor& q, const MaybeTensor& p, const MaybeTensor& gamma, const MaybeTensor& beta,
                 const std::vector<Tensor>& first, const std::vector<Tensor>& second, const std::vector<Tensor>& masks,
                 const Tensor& skipped, const std::string& rule, const Tensor& hyper, const std::string& clip,
                 const Tensor& factors, int64_t max_skipped, int64_t first_step, const Tensor& counter,
                 const MaybeTensor& tied, int64_t resample_every, const Tensor& seeds, const Tensor& streams,
                 const std::string& sampler, int64_t features, int64_t tasks, int64_t tokens, int64_t context,
                 int64_t queries, bool prefixes, double noise, double most_noise, const MaybeTensor& weight_factor,
                 const MaybeTensor& covariate_factor, const MaybeTensor& z, const MaybeTensor& target,
                 const MaybeTensor& index, const std::string& launches, double, const Tensor& losses) {
  STD_TORCH_CHECK(!p && storage_of(q) == Storage::float32 && features <= cuda::most_trained_features,
                  "the CUDA trainer serves response-only models in float32 with at most ", cuda::most_trained_features,
                  " features");
  STD_TORCH_CHECK(!prefixes, "the CUDA trainer serves one context a task");
  STD_TORCH_CHECK(noise == most_noise, "the CUDA trainer draws tasks of one noise");
  STD_TORCH_CHECK(!tied, "the CUDA trainer serves layers with matrices of their own");
  if (losses.size(0) == 0) return;
  const OptimizerArguments optimizer{first, second,  masks,       skipped,    rule,    hyper,
                                     clip,  factors, max_skipped, first_step, counter, tied};
  const TrainedParameters given{q, p, gamma, beta};
  const TaskArguments source{seeds,   streams,  sampler, features,   tasks,         tokens,           context,
                             queries, prefixes, noise,   most_noise, weight_factor, covariate_factor, z,
                             target,  index};
  check_models(given, features);
  check_optimizer(given, optimizer, losses);
  check_tasks(source, q, draws_of(first_step, optimizer.begun() + losses.size(0), resample_every));
  const Links<float> links(given, narrow(features, "features"));
  cuda::Train call;
  call.network = links.network;
  call.source = task_source<float>(source);
  call.source.models = narrow(q.size(0), "q");
  call.source.first_draw = first_step / resample_every;
  const std::vector<Tensor> tensors = present(given);
  call.tensor_count = static_cast<int>(tensors.size());
  for (std::size_t k = 0; k < tensors.size(); ++k) {
    cuda::TrainedTensor& made = call.tensors[k];
    made.parameters = numbers_of<float>(tensors[k]);
    made.first = numbers_of<float>(first[k]);
    made.second = second.empty() ? nullptr : numbers_of<float>(second[k]);
    made.trained = masks.empty() ? nullptr : numbers_of<const bool>(masks[k]);
    made.count = narrow(tensors[k].numel() / q.size(0), "parameters");
  }
  call.flat = links.flat;
  call.rule = rule_of(rule);
  if (clip == "matrix") {
    call.clip_ends = links.matrix_ends.data();
    call.clip_groups = narrow(static_cast<int64_t>(links.matrix_ends.size()), "q");
  } else if (clip == "model") {
    call.clip_ends = &links.flat;
    call.clip_groups = 1;
  }
  call.max_skipped = max_skipped;
  call.hyper = numbers_of<const double>(hyper);
  call.factors = optimizer.next_factor();
  call.step = *optimizer.counted();
  call.steps = narrow(losses.size(0), "losses");
  call.resample_every = resample_every;
  const cuda::TrainMode mode = mode_of(launches);
  OnDevice device(q);
  const auto stream = static_cast<cudaStream_t>(device.launch().stream);
  const int64_t numbers[] = {losses.numel() + skipped.numel()};
  const Tensor found = torch::stable::new_empty(q, {numbers, 1}, torch::headeronly::ScalarType::Double);
  call.losses = numbers_of<double>(found);
  call.skipped = reinterpret_cast<int64_t*>(call.losses + losses.numel());
  const auto loss_bytes = static_cast<std::size_t>(losses.numel()) * sizeof(double);
  const auto skipped_bytes = static_cast<std::size_t>(skipped.numel()) * sizeof(int64_t);
  check(cudaMemcpyAsync(call.skipped, skipped.data_ptr(), skipped_bytes, cudaMemcpyHostToDevice, stream));
  device.run(cuda::train_scratch(call, mode, device.launch()),
             [&](const cuda::Launch& launch) { return cuda::train(call, mode, launch); });
  check(cudaMemcpyAsync(losses.data_ptr(), call.losses, loss_bytes, cudaMemcpyDeviceToHost, stream));
  check(cudaMemcpyAsync(skipped.data_ptr(), call.skipped, skipped_bytes, cudaMemcpyDeviceToHost, stream));
  check(cudaStreamSynchronize(stream));
  *optimizer.counted() += call.steps;
}

}  // namespace
}  // namespace memformer::binding

STABLE_TORCH_LIBRARY_IMPL(memformer_native, CUDA, m) {
  m.impl("train_steps", TORCH_BOX(&memformer::binding::train_steps));
}
