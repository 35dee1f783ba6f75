"""Peers of memformer_kernels: the same functions in plain PyTorch and JAX. They know nothing of the benchmarks."""
