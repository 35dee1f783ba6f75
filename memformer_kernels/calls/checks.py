"""What may be asked of any single argument, in words that every error shares.

Shapes and values that do not fit raise ValueError, wrong kinds raise TypeError; every message names the argument, what
came and what was expected.
"""

import math
import operator
from collections.abc import Mapping, Sequence
from typing import Literal, NoReturn, TypeVar, get_args

import torch
from torch import Tensor

HALF = (torch.bfloat16, torch.float16)
REAL = frozenset((torch.float32, torch.float64, *HALF))
_INTEGERS = frozenset((torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8))

LARGEST_SIZE = 2**63 - 1
"""What a tensor's size, or a counter of 64 bits, can be."""

LONGEST_VALUE = 200
"""Characters of a value in an error message."""

Word = TypeVar("Word", bound=str)

Backend = Literal["auto", "torch", "cpu", "cuda", "triton"]
Algorithm = Literal["auto", "gram", "token"]

BACKENDS: tuple[Backend, ...] = get_args(Backend)
ALGORITHMS: tuple[Algorithm, ...] = get_args(Algorithm)


def describe(value: object) -> str:
    """What came, for an error message."""
    if isinstance(value, Tensor):
        if value.is_nested:  # has no shape
            return f"a nested {value.dtype} tensor"
        layout = "" if value.layout == torch.strided else f"{value.layout} "
        return f"a {layout}{value.dtype} tensor of shape {tuple(value.shape)} on {value.device}"
    if isinstance(shape := getattr(value, "shape", None), tuple) and hasattr(value, "dtype"):
        return f"a {type(value).__module__}.{type(value).__qualname__} of {value.dtype} and shape {shape}"
    shown = repr(value)
    if isinstance(value, list | tuple | dict | set) and len(shown) > LONGEST_VALUE:
        return f"a {type(value).__name__} of length {len(value)}"
    return f"{shown if len(shown) <= LONGEST_VALUE else shown[:LONGEST_VALUE] + '...'} ({type(value).__name__})"


def reject(name: str, came: object, expected: str) -> NoReturn:
    """Raises the ValueError of an argument whose kind is right and whose shape or value is not."""
    raise ValueError(f"{name}: expected {expected}, got {describe(came)}")


def reject_kind(name: str, came: object, expected: str) -> NoReturn:
    """Raises the TypeError of an argument of the wrong kind."""
    raise TypeError(f"{name}: expected {expected}, got {describe(came)}")


def check_choice(name: str, value: object, choices: Sequence[Word]) -> Word:
    """A word out of a fixed few."""
    if not isinstance(value, str):
        reject_kind(name, value, f"one of {', '.join(choices)}")
    for choice in choices:
        if choice == value:
            return choice
    reject(name, value, f"one of {', '.join(choices)}")


def check_size(name: str, value: object, least: int = 1) -> int:
    """An int of at least `least` that a tensor's size may be."""
    size = check_integer(name, value)
    if not least <= size <= LARGEST_SIZE:
        reject(name, value, f"an int of at least {least}" if size < least else "an int below 2^63")
    return size


def check_room(sizes: Mapping[str, int], shape: Sequence[int], dtype: torch.dtype | None) -> None:
    """Raises where sizes, by their arguments' names, make a tensor of more bytes than PyTorch counts."""
    kind = torch.get_default_dtype() if dtype is None else dtype
    if math.prod(shape) * kind.itemsize > LARGEST_SIZE:
        name = max(sizes, key=lambda name: sizes[name])
        reject(name, sizes[name], f"sizes that make tensors of less than 2^63 bytes, and not {tuple(shape)} of {kind}")


def check_dtype(name: str, value: object) -> None:
    """A dtype that parameters may have, or None for torch's default."""
    if value is not None and not (isinstance(value, torch.dtype) and value in REAL):
        reject_kind(name, value, "torch.float32, float64, bfloat16 or float16, or None")


def check_flag(name: str, value: object) -> bool:
    """A bool."""
    if not isinstance(value, bool):
        reject_kind(name, value, "a bool")
    return value


def dense(tensor: Tensor) -> bool:
    """Whether a tensor has a shape and strides. A quantised one tells by its dtype."""
    return tensor.layout == torch.strided and not tensor.is_nested


def check_floating(name: str, value: object) -> Tensor:
    """A dense tensor of a real floating kind."""
    if not isinstance(value, Tensor) or value.dtype not in REAL or not dense(value):
        reject_kind(name, value, "a dense tensor of float32, float64, bfloat16 or float16")
    return value


def check_integers(name: str, value: Tensor) -> None:
    """A dense tensor of integers, but of no kind that PyTorch can neither compare nor sum."""
    if value.dtype not in _INTEGERS or not dense(value):
        reject_kind(name, value, "an int, or a dense tensor of int64, int32, int16, int8 or uint8")


def broadcasts(shape: Sequence[int], full: Sequence[int]) -> bool:
    """Whether a tensor of this shape can be broadcast to the full one.

    Sizes are compared one by one: under a compiler they may be symbols, which no `in` finds among others.
    """
    missing = len(full) - len(shape)
    return missing >= 0 and all(size == 1 or size == full[axis] for axis, size in enumerate(shape, missing))


def check_integer(name: str, value: object) -> int:
    """An int, of Python, of NumPy or a compiler's symbol, but no bool and no tensor."""
    if isinstance(value, bool | Tensor):
        reject_kind(name, value, "an int")
    if isinstance(value, int | torch.SymInt):
        return value  # type: ignore[return-value]
    try:
        return operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        reject_kind(name, value, "an int")


def autocasts(z: Tensor) -> bool:
    """Whether autocast will bring the floating arguments of z's device to one dtype."""
    kind = z.device.type
    return z.dtype != torch.float64 and torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind)


def check_device(name: str, tensor: Tensor, z: Tensor) -> None:
    if tensor.device != z.device:
        reject(name, tensor, f"a tensor on {z.device}, where the tasks are")


def check_like(name: str, tensor: Tensor, first: Tensor) -> Tensor:
    """A tensor that must have the first one's device and dtype; autocast brings the dtype."""
    if tensor.device != first.device:
        reject(name, tensor, f"a tensor on {first.device}, where the first argument is")
    if tensor.dtype == first.dtype:
        return tensor
    if torch.float64 in (tensor.dtype, first.dtype) or not autocasts(first):
        reject_kind(name, tensor, f"the first argument's dtype {first.dtype}")
    return tensor.to(first.dtype)


def same_in_all(layers: Tensor) -> bool:
    """Whether all slices along the first axis hold the same, NaN included."""
    first = layers[:1]
    return bool(((layers == first) | ((layers != layers) & (first != first))).all())
