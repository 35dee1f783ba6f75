"""Side-by-side measurements of memformer_kernels against honest PyTorch peers and against the hardware's limit.

workloads -> data -> formulations -> providers -> harness -> record -> table. `python -m benchmarks` prints one table,
`python -m benchmarks.gpu` is the one command for a machine with an NVIDIA GPU.
"""
