// Stands in for torch's CUDA library when linking, so that the torch a build sees need not have CUDA. It holds what is
// used of that library, by name only, and is never shipped.

extern "C" void aoti_torch_get_current_cuda_stream() {}
