// What libraries on PyTorch's stable ABI ask of it about a CUDA device, for tensors of the host.
//
// A library is linked with --wrap for these names: its calls come here, the others go to PyTorch. Tensors count as ones
// of a virtual device; what a library allocates through PyTorch is memory of that device while its handle lives.

#include <cuda_runtime_api.h>
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/c/shim.h>

#include <cstring>
#include <map>
#include <mutex>

#include "runtime.h"

extern "C" AOTITorchError aoti_torch_aten_fill__Scalar(AtenTensorHandle, double);

namespace virtual_gpu {
namespace {

// Where tensors are said to lie, and PyTorch's current device.
int device_of_tensors = 0;
thread_local int torch_device = 0;

struct Span {
  void* address = nullptr;
  uint64_t bytes = 0;
};

// Of a tensor without gaps.
Span span_of(AtenTensorHandle tensor) {
  Span span;
  int64_t count = 0;
  int32_t dtype = 0;
  aoti_torch_get_data_ptr(tensor, &span.address);
  aoti_torch_get_numel(tensor, &count);
  aoti_torch_get_dtype(tensor, &dtype);
  span.bytes = static_cast<uint64_t>(count) * aoti_torch_dtype_element_size(dtype);
  return span;
}

struct Allocations {
  std::mutex lock;
  std::map<AtenTensorHandle, std::pair<int, void*>> of_handles;
};

Allocations& allocations() {
  static Allocations made;
  return made;
}

}  // namespace
}  // namespace virtual_gpu

using virtual_gpu::machine;

extern "C" {

void virtual_cuda_place_tensors(int device) { virtual_gpu::device_of_tensors = device; }

// One stream a device, which is not the default one: a launch that goes elsewhere shows.
void* virtual_cuda_torch_stream(int device) {
  static char streams[256];
  return streams + device;
}

AOTITorchError __wrap_aoti_torch_get_device_index(AtenTensorHandle, int32_t* index) {
  *index = virtual_gpu::device_of_tensors;
  return AOTI_TORCH_SUCCESS;
}

AOTITorchError __wrap_aoti_torch_create_device_guard(int32_t device, DeviceGuardHandle* guard) {
  *guard = reinterpret_cast<DeviceGuardHandle>(new int(virtual_gpu::torch_device));
  virtual_gpu::torch_device = device;
  return AOTI_TORCH_SUCCESS;
}

AOTITorchError __wrap_aoti_torch_delete_device_guard(DeviceGuardHandle guard) {
  const int* const before = reinterpret_cast<int*>(guard);
  virtual_gpu::torch_device = *before;
  delete before;
  return AOTI_TORCH_SUCCESS;
}

AOTITorchError aoti_torch_get_current_cuda_stream(int32_t device, void** stream) {
  *stream = virtual_cuda_torch_stream(device);
  return AOTI_TORCH_SUCCESS;
}

AOTITorchError __wrap_torch_call_dispatcher(const char* name, const char* overload, StableIValue* stack,
                                            uint64_t version) {
  const AOTITorchError error = torch_call_dispatcher(name, overload, stack, version);
  if (error != AOTI_TORCH_SUCCESS || std::strcmp(name, "aten::new_empty") != 0) return error;
  AtenTensorHandle made;
  std::memcpy(&made, stack, sizeof made);
  const virtual_gpu::Span span = virtual_gpu::span_of(made);
  const int device = virtual_gpu::torch_device;
  machine().allocated(device, span.address, span.bytes);
  virtual_gpu::Allocations& known = virtual_gpu::allocations();
  const std::lock_guard<std::mutex> held(known.lock);
  known.of_handles[made] = {device, span.address};
  return error;
}

AOTITorchError __wrap_aoti_torch_delete_tensor_object(AtenTensorHandle tensor) {
  std::pair<int, void*> freed{0, nullptr};
  {
    virtual_gpu::Allocations& known = virtual_gpu::allocations();
    const std::lock_guard<std::mutex> held(known.lock);
    const auto found = known.of_handles.find(tensor);
    if (found != known.of_handles.end()) {
      freed = found->second;
      known.of_handles.erase(found);
    }
  }
  if (freed.second) machine().freed(freed.first, freed.second);
  return aoti_torch_delete_tensor_object(tensor);
}

AOTITorchError __wrap_aoti_torch_aten_fill__Scalar(AtenTensorHandle tensor, double value) {
  const AOTITorchError error = aoti_torch_aten_fill__Scalar(tensor, value);
  const virtual_gpu::Span span = virtual_gpu::span_of(tensor);
  if (span.bytes > 0) machine().wrote(virtual_gpu::device_of_tensors, span.address, span.bytes);
  return error;
}

}  // extern "C"
