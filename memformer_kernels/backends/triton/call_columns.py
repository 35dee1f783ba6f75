"""Calls of the response column's recurrence: memory for a launch, the launch, and gradients out of its partial sums."""

from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor

from memformer_kernels.backends.triton import rules, sums
from memformer_kernels.backends.triton.coefficients import Coefficient
from memformer_kernels.backends.triton.columns import columns_backward_kernel, columns_kernel
from memformer_kernels.backends.triton.launch import launch, triton_type


class Recurrence(NamedTuple):
    """z (B, N, D) with its contexts, a (L, R, d, d), and coefficients in full with one column, the response's."""

    z: Tensor
    lengths: Tensor | None
    context: int
    a: Tensor
    rule: int
    gamma: Coefficient
    beta: Coefficient
    config: rules.Config


class Gradients(NamedTuple):
    """Of z, a, gamma and beta, in their arguments' shapes; the sum of squared errors."""

    z: Tensor | None
    a: Tensor
    gamma: Tensor | None
    beta: Tensor | None
    squares: Tensor


def _token_axis(coefficient: Coefficient) -> bool:
    return coefficient.values is not None and coefficient.values.shape[-2] != 1


def _arguments(recurrence: Recurrence, queries: int, outputs: int) -> tuple[list[Any], list[Any], dict[str, Any]]:
    """Tensors, sizes and constants of both kernels."""
    z, a, config = recurrence.z, recurrence.a, recurrence.config
    batch, tokens, _ = z.shape
    layers, kept, features, _ = a.shape
    sizes = [batch, tokens, recurrence.context, features, layers, kept, queries, outputs, tokens - queries]
    constants = {
        "RULE": recurrence.rule,
        "GAMMA_TOKENS": _token_axis(recurrence.gamma),
        "BETA_TOKENS": _token_axis(recurrence.beta),
        "TASKS": config.tasks,
        "ROWS": config.rows,
        "BLOCK": config.block,
        "ACC": triton_type(a.dtype),
        **config.options,
    }
    tensors = [z, recurrence.lengths, a, recurrence.gamma.values, recurrence.beta.values]
    return tensors, [*z.stride(), *sizes], constants


def predictions(recurrence: Recurrence, queries: int, outputs: int) -> Tensor:
    """Predictions (outputs, B, queries), after every layer where `outputs` is L."""
    a, config = recurrence.a, recurrence.config
    batch, tokens, _ = recurrence.z.shape
    layers, kept, features, _ = a.shape
    out = a.new_empty((outputs, batch, queries))
    scratch_size = config.tasks * ((layers + 1 + layers * kept) * tokens + layers * features)
    programs = rules.programs(triton.cdiv(batch, config.tasks), scratch_size * a.itemsize)
    scratch = a.new_empty(programs * scratch_size)
    tensors, sizes, constants = _arguments(recurrence, queries, outputs)
    if out.numel():
        launch(columns_kernel, programs, *tensors, out, scratch, *sizes, scratch_size, **constants)
    return out


def predictions_backward(
    recurrence: Recurrence,
    error: Tensor | None,
    target: Tensor | None,
    queries: int,
    outputs: int,
    need_z: bool,
    z_dtype: torch.dtype,
) -> tuple[Gradients, Tensor]:
    """Gradients from those of the predictions, `error`, or of the mean squared error to `target`.

    Returns the gradient of the predictions too, which for a loss is made here.
    """
    z, a, config = recurrence.z, recurrence.a, recurrence.config
    batch, tokens, _ = z.shape
    layers, kept, features, _ = a.shape
    if error is None:
        error = a.new_empty((1, batch, queries))
    z_grad = z.new_empty(z.shape, dtype=z_dtype) if need_z else None
    coefficients = [x.values.numel() if x.values is not None else 0 for x in (recurrence.gamma, recurrence.beta)]
    parts = [a.numel(), *coefficients, 1]
    partials = a.new_zeros((triton.cdiv(batch, config.lanes), sum(parts)))
    scratch_size = config.tasks * ((2 * layers + 1 + layers * kept + kept) * tokens + layers * features)
    programs = rules.programs(partials.shape[0], scratch_size * a.itemsize)
    scratch = a.new_empty(programs * scratch_size)
    tensors, sizes, constants = _arguments(recurrence, queries, outputs)
    if batch:
        launch(
            columns_backward_kernel,
            programs,
            *tensors,
            error,
            target,
            z_grad,
            partials,
            scratch,
            *sizes,
            scratch_size,
            sum(parts),
            max(error.numel(), 1),
            LOSS=target is not None,
            LANES=config.lanes,
            **constants,
        )
    a_grad, gamma_grad, beta_grad, squares = torch.split(sums.over_tasks(partials, config.lanes), parts)
    gradients = Gradients(
        z_grad,
        a_grad.view(a.shape),
        recurrence.gamma.gradient(gamma_grad),
        recurrence.beta.gradient(beta_grad),
        squares[0],
    )
    return gradients, error
