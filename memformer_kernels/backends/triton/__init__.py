"""The Triton kernels, a file per idea: tiles (what all share), rules (which configuration runs), gram, solve (vectors),
network (matrices), sums over tasks; call_* give them memory and launch them.

Nothing here is imported before the Triton backend is asked for, so that the package works without Triton.
"""
