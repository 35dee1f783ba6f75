"""Registered operations that do nothing: the package's schemas, autograd that saves the same tensors, kernels that only
allocate their results. What a call of one costs is the price of being an operation at all.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

import memformer_kernels
from memformer_kernels.torch_internals import schema_of

_SOURCE, _NAMESPACE = memformer_kernels.__name__, "memformer_benchmarks"
_LIBRARY: Any = torch.library.Library(_NAMESPACE, "DEF")  # type: ignore[no-untyped-call]


def _define(name: str, kernel: Callable[..., Any]) -> Any:
    """Registers `kernel` under the schema of the package's operation of that name."""
    schema = str(schema_of(getattr(getattr(torch.ops, _SOURCE), name).default))
    _LIBRARY.define(schema.removeprefix(f"{_SOURCE}::"))
    _LIBRARY.impl(name, kernel, "CompositeExplicitAutograd")
    return getattr(getattr(torch.ops, _NAMESPACE), name).default


def _predict(z: Tensor, q: Tensor, *arguments: Any) -> Tensor:
    queries, layers = arguments[-3:-1]
    return z.new_empty((q.shape[0] if layers else 1, z.shape[0], queries))


def _predict_backward(grad: Tensor, *arguments: Any) -> list[Tensor]:
    tensors, needs = arguments[:7], arguments[-1]
    return [torch.empty_like(tensor) for tensor, needed in zip(tensors, needs, strict=True) if needed]


def _loss(z: Tensor, *arguments: Any) -> list[Tensor]:
    tensors, needs = (z, *arguments[:7]), arguments[-2]
    return [
        z.new_empty(()),
        *(torch.empty_like(tensor) for tensor, needed in zip(tensors, needs, strict=True) if needed),
    ]


predict: Any = _define("predict", _predict)
predict_backward: Any = _define("predict_backward", _predict_backward)
loss: Any = _define("loss", _loss)


def _predict_setup(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    ctx.save_for_backward(*inputs[:7])
    ctx.options = inputs[7:]


def _predict_formula(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    needs = list(ctx.needs_input_grad[:7])
    made = iter(predict_backward(grad, *ctx.saved_tensors, *ctx.options, needs))
    return (*(next(made) if needed else None for needed in needs), *(None for _ in ctx.options))


def _loss_setup(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    ctx.save_for_backward(*inputs[:8])
    ctx.options, ctx.ready = inputs[8:], output[1:]


def _loss_formula(ctx: Any, grads: list[Tensor | None]) -> tuple[Any, ...]:
    made, needs = iter(ctx.ready), ctx.options[-2]
    assert len(ctx.saved_tensors) == 8  # reading them asks whether one has been changed
    return (*(next(made) if needed else None for needed in needs), *(None for _ in ctx.options))


torch.library.register_autograd(predict, _predict_formula, setup_context=_predict_setup, lib=_LIBRARY)
torch.library.register_autograd(loss, _loss_formula, setup_context=_loss_setup, lib=_LIBRARY)
