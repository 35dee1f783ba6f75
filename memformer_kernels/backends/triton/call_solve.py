"""Calls of the vector recurrence: memory for a launch, the launch, and gradients out of its partial sums."""

from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor

from memformer_kernels.backends.triton import rules, sums
from memformer_kernels.backends.triton.coefficients import Coefficient
from memformer_kernels.backends.triton.gram import gram
from memformer_kernels.backends.triton.launch import architecture, launch, triton_type
from memformer_kernels.backends.triton.solve import solve_kernel
from memformer_kernels.backends.triton.solve_backward import solve_backward_kernel

QUERIES_AT_ONCE = 8


class Recurrence(NamedTuple):
    """z (B, N, D) with its contexts, or h (B, d, d), b and start (B, d); a (L, R, d, d); coefficients in full.

    matrix: mean context Gram matrices (B, D, D), contiguous, which are not made from z then.
    """

    a: Tensor
    rule: int
    gamma: Coefficient
    beta: Coefficient
    z: Tensor | None = None
    lengths: Tensor | None = None
    context: int = 0
    h: Tensor | None = None
    b: Tensor | None = None
    start: Tensor | None = None
    matrix: Tensor | None = None


class Gradients(NamedTuple):
    """Of z and matrix, or h, b and start; of a, gamma, beta in their arguments' shapes; the sum of squared errors."""

    z: Tensor | None
    matrix: Tensor | None
    h: Tensor | None
    b: Tensor | None
    start: Tensor | None
    a: Tensor
    gamma: Tensor | None
    beta: Tensor | None
    squares: Tensor


class _Launch(NamedTuple):
    """What both kernels are told: configuration, tensors, sizes and compile-time constants.

    For a quadratic, which has no tokens, h stands in for their pointer.
    """

    config: rules.Config
    batch: int
    width: int
    tensors: tuple[Tensor | None, ...]
    strides: tuple[int, ...]
    sizes: tuple[int, ...]
    constants: dict[str, Any]


def _prepare(recurrence: Recurrence, queries: int, outputs: int) -> _Launch:
    z, a = recurrence.z, recurrence.a
    first = recurrence.h if z is None else z
    assert first is not None
    batch, tokens, width = first.shape
    layers, kept, features, _ = a.shape
    config = rules.config(width, tokens, a.dtype, architecture(a.device))
    matrix = recurrence.h
    strides: tuple[int, ...] = (0, 0, 0)
    if z is not None:
        strides = z.stride()
        matrix = recurrence.matrix
        if matrix is None and rules.gram_apart(width):
            total = gram(z, recurrence.lengths, recurrence.context)
            count = recurrence.context if recurrence.lengths is None else recurrence.lengths[:, None, None]
            matrix = total / count
    return _Launch(
        config,
        batch,
        width,
        (
            first,
            matrix,
            recurrence.b,
            recurrence.start,
            recurrence.lengths,
            a,
            recurrence.gamma.values,
            recurrence.beta.values,
        ),
        strides,
        (batch, tokens, recurrence.context, width, features, layers, kept, queries, outputs),
        {
            "NETWORK": z is not None,
            "TOKENS": matrix is None,
            "RULE": recurrence.rule,
            "TASKS": config.tasks,
            "BLOCK": config.block,
            "QUERIES": QUERIES_AT_ONCE,
            "CHUNK": config.chunk,
            "ACC": triton_type(a.dtype),
            "PRECISION": rules.precision(a.dtype),
            **config.options,
        },
    )


def solve(recurrence: Recurrence, queries: int, outputs: int) -> Tensor:
    """Predictions (outputs, B, queries) of a network, or weights (outputs, B, d) of a quadratic."""
    prepared = _prepare(recurrence, queries, outputs)
    a, config = recurrence.a, prepared.config
    layers, kept = a.shape[:2]
    out = a.new_empty((outputs, prepared.batch, prepared.width if recurrence.z is None else queries))
    scratch_size = (layers * kept + 2 * layers + 1) * config.tasks * prepared.width
    programs = rules.programs(triton.cdiv(prepared.batch, config.tasks), scratch_size * a.itemsize)
    scratch = a.new_empty(programs * scratch_size)
    if out.numel():
        launch(
            solve_kernel,
            programs,
            *prepared.tensors,
            out,
            scratch,
            *prepared.strides,
            *prepared.sizes,
            scratch_size,
            **prepared.constants,
        )
    return out


def solve_backward(
    recurrence: Recurrence,
    error: Tensor | None,
    target: Tensor | None,
    queries: int,
    outputs: int,
    needs_tasks: bool,
    z_dtype: torch.dtype,
) -> tuple[Gradients, Tensor]:
    """Gradients from those of the results, `error`; or of the mean squared error to `target`, with its sum of squares.

    Returns the gradient of the predictions too, which for a loss is made here.
    """
    prepared = _prepare(recurrence, queries, outputs)
    a, config, z = recurrence.a, prepared.config, recurrence.z
    batch, width = prepared.batch, prepared.width
    layers, kept = a.shape[:2]
    if error is None:
        error = a.new_empty((1, batch, queries))
    z_grad = z.new_empty(z.shape, dtype=z_dtype) if needs_tasks and z is not None else None
    given = z is None or recurrence.matrix is not None
    matrix_grad = a.new_empty((batch, width, width)) if given else None
    b_grad = a.new_empty((batch, width)) if z is None else None
    start_grad = a.new_empty((batch, width)) if z is None else None
    coefficients = [x.values.numel() if x.values is not None else 0 for x in (recurrence.gamma, recurrence.beta)]
    sizes = [a.numel(), *coefficients, 1]
    partials = a.new_zeros((triton.cdiv(batch, config.lanes), sum(sizes)))
    vectors = (2 * layers * kept + 3 * layers + 1) * config.lanes * width
    scratch_size = vectors + (config.tasks * width * width if z_grad is not None else 0)
    programs = rules.programs(partials.shape[0], scratch_size * a.itemsize)
    scratch = a.new_empty(programs * scratch_size)
    if batch:
        launch(
            solve_backward_kernel,
            programs,
            *prepared.tensors,
            error,
            target,
            z_grad,
            matrix_grad,
            b_grad,
            start_grad,
            partials,
            scratch,
            *prepared.strides,
            *prepared.sizes,
            scratch_size,
            sum(sizes),
            max(error.numel(), 1),
            LOSS=target is not None,
            LANES=config.lanes,
            ROWS=config.rows,
            TILE=config.tile,
            REREAD=rules.rereads(width, architecture(a.device)),
            LANE_CHUNK=max(rules.DOT_MINIMUM, min(config.lanes, rules.TOKENS_AT_ONCE)),
            **prepared.constants,
        )
    a_grad, gamma_grad, beta_grad, squares = torch.split(sums.over_tasks(partials, config.lanes), sizes)
    return Gradients(
        z_grad,
        None if z is None else matrix_grad,
        matrix_grad if z is None else None,
        b_grad,
        start_grad,
        a_grad.view(a.shape),
        recurrence.gamma.gradient(gamma_grad),
        recurrence.beta.gradient(beta_grad),
        squares[0],
    ), error
