"""The CUDA backend on virtual devices: its objects linked again, its operators called with tensors of the host."""
