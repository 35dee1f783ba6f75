"""The Triton kernels, a family a file with its launch: register_update, registers, attention, gram, columns, solve
(vectors) with its backward, and network (matrices) with layers, its backward, layer_gradients and state_gradients.

They share tiles (products), coefficients, sums over tasks, rules (which configuration runs) and launch. A kernel takes
tensors, strides and sizes in NamedTuples, and what is compiled in as one NamedTuple C. Nothing here is imported before
the Triton backend is asked for, so that the package works without Triton.
"""
