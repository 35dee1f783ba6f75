"""The CUDA backend on virtual devices: its objects linked anew, its operators called with tensors of the host."""
