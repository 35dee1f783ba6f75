"""Checks of a training state's tensors, each for itself and as memory that is written in place."""

from collections.abc import Mapping, Sequence
from itertools import pairwise

import torch
from torch import Tensor

from memformer_kernels.calls.checks import dense, reject, reject_kind, same_in_all
from memformer_kernels.training.checks import without_data

AXES = {"q": (4,), "p": (4,), "gamma": (4, 5), "beta": (4,), "gate": (1, 2)}
"""How many axes a model's parameters have."""


def floating(name: str, value: object) -> Tensor:
    """A tensor of a dtype that models are trained in."""
    kinds = (torch.float32, torch.float64)
    if not isinstance(value, Tensor) or value.dtype not in kinds or not dense(value):
        reject_kind(name, value, "a dense tensor of float32 or float64")
    return value


def check_integers(name: str, value: object, models: int, most: int) -> None:
    """Integers from 0 to `most`, one for each model."""
    integers = _int64(name, value)
    fits = tuple(integers.shape) == (models,) and int(integers.min()) >= 0 and int(integers.max()) <= most
    if not fits or not integers.is_contiguous():
        came = integers.tolist() if integers.is_contiguous() else f"strides {integers.stride()}"
        reject(name, came, f"{models} integers from 0 to {most} without gaps, one for each model")


def check_like(name: str, value: object, q: Tensor) -> None:
    """A parameter other than q: its kind, its axes, and contiguity, since kernels write into it."""
    if not isinstance(value, Tensor) or value.dtype != q.dtype or value.device != q.device or not dense(value):
        reject_kind(name, value, f"a dense tensor of q's {q.dtype} on {q.device}")
    if value.ndim - 1 not in AXES[name] or value.shape[0] != q.shape[0]:
        reject(name, value, f"{' or '.join(str(a + 1) for a in AXES[name])} axes, the first of size M = {q.shape[0]}")
    if not value.is_contiguous():
        reject(name, f"strides {value.stride()}", "a contiguous tensor")


def check_shape(name: str, value: object, parameter: Tensor, dtype: torch.dtype) -> None:
    """What belongs to a parameter entry by entry: a moment or a mask."""
    if not isinstance(value, Tensor) or value.dtype != dtype or value.device != parameter.device or not dense(value):
        reject_kind(name, value, f"a dense {dtype} tensor on {parameter.device}")
    if value.shape != parameter.shape or not value.is_contiguous():
        reject(name, value, f"a contiguous tensor of its parameter's shape {tuple(parameter.shape)}")


def check_tied(group: str, held: Mapping[str, Tensor], tied: Sequence[int]) -> None:
    """That layers which share matrices, the first `tied` of each model, hold the same of a group of tensors."""
    for name, value in held.items():
        for model, layers in enumerate(tied):
            if not without_data(value) and not same_in_all(value[model, :layers]):
                came = f"layers of model {model} that differ"
                reject(f"{group}[{name!r}]", came, f"the same in its first {layers} layers, which are tied")


def check_written(name: str, value: object) -> None:
    """That steps may write to a tensor wherever they are taken."""
    if isinstance(value, Tensor) and value.is_inference():
        reject(name, value, "a tensor made outside of torch.inference_mode, since training writes to it")


def check_counter(value: object) -> None:
    """The tensor that counts steps."""
    counter = _int64("counter", value)
    if counter.shape != () or int(counter) < 0:
        reject("counter", counter.tolist(), "one integer of at least 0")


def _int64(name: str, value: object) -> Tensor:
    if not isinstance(value, Tensor) or value.dtype != torch.int64 or value.device.type != "cpu" or not dense(value):
        reject_kind(name, value, "a dense int64 tensor on the CPU")
    return value


def looks(seen: Sequence[object]) -> list[tuple[object, ...]]:
    """All that may change of a tensor without its becoming another, but for its entries."""
    return [
        (x.shape, x.stride(), x.dtype, x.device)
        + (() if without_data(x) else (x.data_ptr(), x.untyped_storage().nbytes()))
        for x in seen
        if isinstance(x, Tensor)
    ]


def check_apart(tensors: Mapping[str, Tensor]) -> None:
    """That no two contiguous tensors have a byte in common: training would write one through the other."""
    if any(map(without_data, tensors.values())):
        return
    spans = sorted((value.data_ptr(), value.data_ptr() + value.nbytes, name) for name, value in tensors.items())
    for (_, end, name), (begin, _, other) in pairwise(spans):
        if begin < end:
            reject(other, f"memory that it shares with {name}", "a tensor with memory of its own")
