// The device of a call: made current, its numbers asked for once, its stream, and room for a kernel to work in.

#pragma once

#include <cuda_runtime_api.h>
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/ops.h>

#include <mutex>
#include <optional>

#include "binding/tensors.h"
#include "cuda/launch.h"

namespace memformer::binding {

// The runtime remembers a call's error until it is asked for: taken here, it is this call's and no later one's.
inline void check(cudaError_t error) {
  if (error != cudaSuccess) cudaGetLastError();
  STD_TORCH_CHECK(error == cudaSuccess, "CUDA: ", cudaGetErrorString(error));
}

// What `Launch` says of a device; the same for as long as the process lives.
inline const cuda::Launch& numbers_of_device(int index) {
  constexpr int most = 256;
  static std::once_flag asked[most];
  static cuda::Launch known[most];
  STD_TORCH_CHECK(index >= 0 && index < most, "no device ", index);
  std::call_once(asked[index], [index] {
    const auto number = [index](cudaDeviceAttr attribute) {
      int value = 0;
      check(cudaDeviceGetAttribute(&value, attribute, index));
      return value;
    };
    cuda::Launch& device = known[index];
    device.multiprocessors = number(cudaDevAttrMultiProcessorCount);
    device.shared_of_multiprocessor = number(cudaDevAttrMaxSharedMemoryPerMultiprocessor);
    device.shared_of_block = number(cudaDevAttrMaxSharedMemoryPerBlockOptin);
    device.capability = 10 * number(cudaDevAttrComputeCapabilityMajor) + number(cudaDevAttrComputeCapabilityMinor);
  });
  return known[index];
}

// Whether calls of this thread load their kernels and run none.
inline thread_local bool rehearses = false;

// Makes a tensor's device current while it lives, and runs kernels on torch's current stream of it.
class OnDevice {
 public:
  explicit OnDevice(const Tensor& tensor) : like_(tensor), guard_(tensor.get_device_index()) {
    const int index = tensor.get_device_index();
    // The runtime linked into this library keeps a current device of its own beside torch's.
    check(cudaSetDevice(index));
    launch_ = numbers_of_device(index);
    launch_.rehearsal = rehearses;
    TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(index, &launch_.stream));
  }

  const cuda::Launch& launch() const { return launch_; }

  // `bytes` is what the kernel asked for, `call` runs it and returns a cudaError_t.
  template <class Call>
  void run(int64_t bytes, Call call) {
    STD_TORCH_CHECK(bytes >= 0, "these sizes are beyond the CUDA kernels; backend='torch' serves them");
    // From torch's own memory, which the stream's next work may have again when this call has returned.
    std::optional<Tensor> scratch;
    if (bytes > 0) {
      const int64_t shape[] = {bytes};
      scratch = torch::stable::new_empty(like_, {shape, 1}, torch::headeronly::ScalarType::Byte);
      launch_.scratch = scratch->data_ptr();
      launch_.scratch_bytes = bytes;
    }
    check(static_cast<cudaError_t>(call(launch_)));
  }

 private:
  const Tensor& like_;
  torch::stable::accelerator::DeviceGuard guard_;
  cuda::Launch launch_;
};

inline void fill(const MaybeTensor& tensor, double value) {
  if (!tensor) return;
  Tensor target = *tensor;
  torch::stable::fill_(target, value);
}

}  // namespace memformer::binding
