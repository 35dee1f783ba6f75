"""Measurements of memformer_kernels in one run with honest PyTorch peers and against the hardware's limit.

`peers` compute the same functions, `measure` runs and times, `reports` keeps, prints and draws what was found, and
`gpu` does so on GPUs; each imports from those before it alone. `python -m benchmarks` prints one table,
`python -m benchmarks.gpu` is the one command for a machine with an NVIDIA GPU.
"""
