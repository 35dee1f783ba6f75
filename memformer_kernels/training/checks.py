"""Checks of numbers and of tensors' memory that more than one file of this package makes."""

import math
from numbers import Real
from typing import Any

from torch import Tensor

from memformer_kernels.calls.checks import LARGEST_SIZE, check_size, dense, reject, reject_kind
from memformer_kernels.torch_internals import is_transformed


def check_number(name: str, value: object, least: float, below: float = math.inf, *, open_end: bool = False) -> float:
    """A finite real number from `least` (or above it, with `open_end`) up to but not including `below`."""
    if isinstance(value, bool) or not isinstance(value, Real):
        reject_kind(name, value, "a number")
    try:
        number = float(value)
    except OverflowError:
        reject(name, value, "a finite number")
    if not least <= number < below or (open_end and number == least):
        bound = "" if below == math.inf else f" and below {below:g}"
        reject(name, value, f"a finite number {'above' if open_end else 'of at least'} {least:g}{bound}")
    return number


def check_count(name: str, value: object, most: int, least: int = 1) -> int:
    """An int from `least` to `most`."""
    count = check_size(name, value, least)
    if count > most:
        reject(name, value, f"an int of at most {most}")
    return count


def keep_size(made: Any, name: str, most: int = LARGEST_SIZE, *, least: int = 1) -> None:
    """Checks a size of a frozen dataclass that is being made, and keeps it as a plain int."""
    object.__setattr__(made, name, check_count(name, getattr(made, name), most, least))


def keep_number(made: Any, name: str, least: float, below: float = math.inf, *, open_end: bool = False) -> None:
    """Checks a number of a frozen dataclass that is being made, and keeps it as a plain float."""
    object.__setattr__(made, name, check_number(name, getattr(made, name), least, below, open_end=open_end))


def check_memory(name: str, value: object) -> None:
    """That a tensor's entries are in its memory, which may have been resized under it."""
    if not isinstance(value, Tensor) or not dense(value) or without_data(value) or value.numel() == 0:
        return
    last = value.storage_offset() + sum((n - 1) * step for n, step in zip(value.shape, value.stride(), strict=True))
    held = value.untyped_storage().nbytes()
    if held < (last + 1) * value.itemsize:
        reject(name, f"{held} bytes", f"memory for all entries of a {value.dtype} tensor of shape {tuple(value.shape)}")


def without_data(tensor: Tensor) -> bool:
    """Whether a tensor stands for others: of a compiler, a transform of torch.func, or of sizes alone."""
    return type(tensor) is not Tensor or tensor.is_meta or is_transformed(tensor)
