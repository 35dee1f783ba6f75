"""Calls of the matrix recurrence: memory for a launch, the launch, and gradients out of its partial sums."""

from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor

from memformer_kernels.backends.triton import rules, sums
from memformer_kernels.backends.triton.coefficients import Coefficient
from memformer_kernels.backends.triton.launch import architecture, launch, triton_type
from memformer_kernels.backends.triton.network import network_kernel
from memformer_kernels.backends.triton.network_backward import network_backward_kernel

QUERIES_AT_ONCE = 8
_SQUARES = 10
"""D-by-D slots of a task beside those of the R products W."""


class Recurrence(NamedTuple):
    """z (B, N, D) with its contexts; dense q, p (L, H, D, D) and coefficients in full, in the working dtype.

    kept: R. past: registers (J, B, R, N, D) from before the first layer, contiguous, or None. p_grad: p is an argument.
    matrix: mean context Gram matrices (B, D, D) for Gram space, contiguous, which are not made from z then.
    """

    z: Tensor
    lengths: Tensor | None
    context: int
    space: str
    q: Tensor
    p: Tensor
    p_grad: bool
    rule: int
    gamma: Coefficient
    beta: Coefficient
    kept: int
    past: Tensor | None = None
    matrix: Tensor | None = None


class Gradients(NamedTuple):
    """Of z, matrix, past, dense q and p, gamma and beta (in their arguments' shapes); the sum of squared errors."""

    z: Tensor | None
    matrix: Tensor | None
    past: Tensor | None
    q: Tensor
    p: Tensor | None
    gamma: Tensor | None
    beta: Tensor | None
    squares: Tensor


class _Launch(NamedTuple):
    """What both kernels are told: configuration, tensors, sizes and compile-time constants.

    Where an argument is absent and a flag says so, z stands in for its pointer.
    """

    config: rules.Config
    rows: int
    tensors: tuple[Tensor | None, ...]
    strides: tuple[int, ...]
    sizes: tuple[int, ...]
    constants: dict[str, Any]


def _token_axis(coefficient: Coefficient) -> bool:
    return coefficient.values is not None and coefficient.values.shape[-2] != 1


def _prepare(recurrence: Recurrence, queries: int, outputs: int, stack: bool) -> _Launch:
    z, q, past = recurrence.z, recurrence.q, recurrence.past
    batch, tokens, width = z.shape
    rows = width if recurrence.space == "gram" else tokens
    config = rules.config(width, rows, q.dtype, architecture(q.device), matrices=True)
    depth = 0 if past is None else past.shape[0]
    layers, heads = q.shape[:2]
    valid_from = 0 if stack else tokens - queries
    return _Launch(
        config,
        rows,
        (
            z,
            recurrence.matrix,
            recurrence.lengths,
            z if past is None else past,
            q,
            recurrence.p,
            recurrence.gamma.values,
            recurrence.beta.values,
        ),
        (*z.stride(), 0 if past is None else past.stride(0)),
        (
            batch,
            tokens,
            recurrence.context,
            rows,
            width,
            layers,
            heads,
            recurrence.kept,
            depth,
            queries,
            outputs,
            valid_from,
        ),
        {
            "SPACE": recurrence.space,
            "STACK": stack,
            "RULE": recurrence.rule,
            "GAMMA_TOKENS": _token_axis(recurrence.gamma),
            "BETA_TOKENS": _token_axis(recurrence.beta),
            "PAST": past is not None,
            "TASKS": config.tasks,
            "BLOCK": config.block,
            "ROWS": config.rows,
            "QUERIES": QUERIES_AT_ONCE,
            "CHUNK": config.chunk,
            "ACC": triton_type(q.dtype),
            "PRECISION": rules.precision(q.dtype),
            **config.options,
        },
    )


def tokens(recurrence: Recurrence, register: bool) -> tuple[Tensor, Tensor | None]:
    """Z_L (B, N, D) in z's dtype, and with `register` the register (B, R, N, D) of a single layer."""
    z = recurrence.z
    out = torch.empty_like(z, memory_format=torch.contiguous_format)
    made = z.new_empty((z.shape[0], recurrence.kept, *z.shape[1:])) if register else None
    _forward(recurrence, 0, 1, out, made, stack=True)
    return out, made


def predictions(recurrence: Recurrence, queries: int, outputs: int) -> Tensor:
    """Predictions (outputs, B, queries), after every layer where `outputs` is L."""
    out = recurrence.q.new_empty((outputs, recurrence.z.shape[0], queries))
    _forward(recurrence, queries, outputs, out, None, stack=False)
    return out


def _forward(
    recurrence: Recurrence, queries: int, outputs: int, out: Tensor, register: Tensor | None, stack: bool
) -> None:
    prepared = _prepare(recurrence, queries, outputs, stack)
    config, q = prepared.config, recurrence.q
    batch, _, width = recurrence.z.shape
    layers = q.shape[0]
    states = layers + 1 if outputs > 1 else 1
    tall = (states + layers * recurrence.kept) * prepared.rows * width
    scratch_size = config.tasks * (tall + (_SQUARES + recurrence.kept) * width * width)
    programs = rules.programs(triton.cdiv(batch, config.tasks), scratch_size * q.itemsize)
    scratch = q.new_empty(programs * scratch_size)
    if out.numel():
        launch(
            network_kernel,
            programs,
            *prepared.tensors,
            out,
            register,
            scratch,
            *prepared.strides,
            *prepared.sizes,
            scratch_size,
            KEEP=outputs > 1,
            **prepared.constants,
        )


def tokens_backward(recurrence: Recurrence, grad: Tensor, register_grad: Tensor | None, need_z: bool) -> Gradients:
    """Gradients from that of Z_L, and for a single layer from that of its register; that of z has z's dtype."""
    return _backward(recurrence, 0, 1, need_z, recurrence.z.dtype, out_grads=(grad, register_grad))[0]


def predictions_backward(recurrence: Recurrence, error: Tensor, need_z: bool) -> Gradients:
    """Gradients from those of the predictions (outputs, B, queries)."""
    outputs, _, queries = error.shape
    return _backward(recurrence, queries, outputs, need_z, recurrence.z.dtype, error=error)[0]


def squared_errors(recurrence: Recurrence, target: Tensor, need_z: bool) -> tuple[Gradients, Tensor]:
    """Gradients of the mean squared error to target (B, queries), and that of the predictions, (1, B, queries)."""
    return _backward(recurrence, target.shape[1], 1, need_z, recurrence.q.dtype, target=target)


def _backward(
    recurrence: Recurrence,
    queries: int,
    outputs: int,
    need_z: bool,
    z_dtype: torch.dtype,
    error: Tensor | None = None,
    target: Tensor | None = None,
    out_grads: tuple[Tensor | None, Tensor | None] = (None, None),
) -> tuple[Gradients, Tensor]:
    stack = out_grads[0] is not None
    prepared = _prepare(recurrence, queries, outputs, stack)
    config, z, q, past = prepared.config, recurrence.z, recurrence.q, recurrence.past
    batch, _, width = z.shape
    layers, kept = q.shape[0], recurrence.kept
    if error is None:
        error = q.new_empty((1, batch, queries))
    z_grad = z.new_empty(z.shape, dtype=z_dtype) if need_z else None
    matrix_grad = None if recurrence.matrix is None else torch.empty_like(recurrence.matrix)
    past_grad = None if past is None else torch.empty_like(past)
    coefficients = [x.values.numel() if x.values is not None else 0 for x in (recurrence.gamma, recurrence.beta)]
    sizes = [q.numel(), q.numel() if recurrence.p_grad else 0, *coefficients, 1]
    partials = q.new_zeros((triton.cdiv(batch, config.lanes), sum(sizes)))
    tall = (2 * layers + 2 + layers * kept + kept) * prepared.rows * width
    scratch_size = config.tasks * (tall + (_SQUARES + kept) * width * width)
    programs = rules.programs(partials.shape[0], scratch_size * q.itemsize)
    scratch = q.new_empty(programs * scratch_size)
    if batch:
        launch(
            network_backward_kernel,
            programs,
            *prepared.tensors,
            error,
            target,
            z if out_grads[0] is None else out_grads[0],
            out_grads[1],
            z_grad,
            matrix_grad,
            z if past_grad is None else past_grad,
            partials,
            scratch,
            *prepared.strides,
            *prepared.sizes,
            scratch_size,
            sum(sizes),
            max(error.numel(), 1),
            LOSS=target is not None,
            P_GRAD=recurrence.p_grad,
            LANES=config.lanes,
            **prepared.constants,
        )
    q_grad, p_grad, gamma_grad, beta_grad, squares = torch.split(sums.over_tasks(partials, config.lanes), sizes)
    return Gradients(
        z_grad,
        matrix_grad,
        past_grad,
        q_grad.view(q.shape),
        p_grad.view(q.shape) if recurrence.p_grad else None,
        recurrence.gamma.gradient(gamma_grad),
        recurrence.beta.gradient(beta_grad),
        squares[0],
    ), error
