"""Checks and plans, made once for all calls that look alike.

Checks and plans look at kinds, shapes, dtypes, devices and options, never at values: calls that agree in these agree in
the outcome, and a dictionary answers the second of them in half the time. What fails is not remembered, nor a ragged
call, whose outcome holds a tensor, nor what happens where a transform, a mode or autocast is active: autocast allows
more, and in a trace sizes are no plain numbers.
"""

import functools
from collections.abc import Callable
from operator import attrgetter
from types import NoneType
from typing import Any

import torch
from torch import Tensor

from memformer_kernels import availability
from memformer_kernels.calls.arguments import Call
from memformer_kernels.torch_internals import undisturbed

LIMIT = 1024
"""Outcomes remembered for a function before it starts again: programs have few shapes, sweeps over sizes many."""

_TENSORS = frozenset((Tensor, torch.nn.Parameter))
_KINDS = _TENSORS | {NoneType, bool, int, str}
"""Kinds of arguments whose looks say all. What a subclass of Tensor reports may change, so none is remembered."""

_look = attrgetter("shape", "dtype", "device", "layout")


def remembered(plan: Callable[..., Call]) -> Callable[..., Call]:
    """`plan`, a function that checks its arguments and plans for them, called once for arguments that look alike."""
    known: dict[tuple[Any, ...], Call] = {}

    @functools.wraps(plan)
    def recall(*arguments: Any) -> Call:
        if torch.compiler.is_compiling():
            return plan(*arguments)
        kinds = tuple(map(type, arguments))
        try:
            looks = [_look(x) if kind in _TENSORS else x for kind, x in zip(kinds, arguments, strict=True)]
            key = (kinds, availability.known(), *looks)
            found = known.get(key)
        except (TypeError, RuntimeError):  # a symbolic size, an option that is none, a nested tensor without a shape
            return plan(*arguments)
        if found is not None:
            return found
        made = plan(*arguments)
        if made.lengths is None and _KINDS.issuperset(kinds) and undisturbed():
            if len(known) >= LIMIT:
                known.clear()
            known[key] = made
        return made

    return recall
