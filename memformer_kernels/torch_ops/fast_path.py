"""The short way of a plain eager call: autograd's node, or nobody at all, calls a native backend, not the dispatcher.

The dispatcher boxes a dozen arguments of a registered operation, calls back into Python, and only there meets the
native library's operator, another turn of the dispatcher. Where nobody but autograd listens the first turn has no
effect; what leaving it out saves is told in benchmarks/NOTES.md. Those who could listen are compilers, torch.func,
forward-mode AD, autocast, modes, tracers, profilers and subclasses of Tensor. With any of them a call takes the
registered operation.
"""

from collections.abc import Sequence
from types import NoneType
from typing import Any

import torch
from torch import Tensor

from memformer_kernels.torch_internals import undisturbed

_NATIVE = frozenset(("cpu", "cuda"))
"""Backends whose kernels are the dispatcher's operators themselves: negated views and the like are resolved there."""

_PLAIN = frozenset((Tensor, torch.nn.Parameter, NoneType, int, bool, str, tuple))


def applies(backend: str, arguments: Sequence[Any]) -> bool:
    """Whether nothing but autograd sees this call, and the kernel may be called directly. No compiler traces this."""
    plain = _PLAIN.issuperset(map(type, arguments)) or _plain_with_lists(arguments)
    return backend in _NATIVE and plain and undisturbed()


def _plain_with_lists(arguments: Sequence[Any]) -> bool:
    kinds = set(map(type, arguments))
    for argument in arguments:
        if type(argument) is list:
            kinds.update(map(type, argument))
    return kinds <= _PLAIN | {list}
