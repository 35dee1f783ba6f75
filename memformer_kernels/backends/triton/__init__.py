"""The Triton kernels, a family a file with its launch: register_update, registers, attention, gram; and with a backward
in a file of its own columns, solve (vectors) and network (matrices, with layers, layer_gradients, state_gradients).

They share tiles (products), coefficients, sums over tasks, rules (which configuration runs) and launch. A kernel takes
tensors, strides and sizes in NamedTuples, and what is compiled in as one NamedTuple C. Nothing here is imported before
the Triton backend is asked for, so that the package works without Triton.
"""
