"""The mathematics of the PyTorch backend: closed forms, forward and hand-written backward, free of dispatch.

Read in this order: `context` (which tokens are labelled), `memory` (gamma and beta), the two recurrences `attention`
(general P and Q, state: a matrix) and `response` (features fixed, state: a vector), then `forms`, which reads tokens or
predictions out of a recurrence. Every function is plain differentiable PyTorch, so the backward formulas can themselves
be differentiated.
"""
