"""The CUDA library's operators, called with tensors of the host that lie on a virtual device while a call lasts."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from memformer_kernels.torch_internals import cuda_kernels, schema_of
from virtual_gpu import Report
from virtual_gpu.cuda import Runtime

_OF_THE_HOST = frozenset({"skipped", "counter", "losses"})
"""Arguments of train_steps that stay on the CPU whatever device trains (csrc/binding/cuda/train.cpp)."""


class Span(NamedTuple):
    """Memory from a tensor's first to its last number, and whether a call reads it, writes it, or both."""

    begin: int
    end: int
    name: str
    read: bool
    written: bool


class Operators:
    """`torch.ops.memformer_native` as the CUDA library implements it, past the dispatcher's choice by device.

    A call's kernels may touch what its arguments span and what it allocates itself, nothing else; results hold nothing
    at first, and each must have been written when the call is over.
    """

    def __init__(self, runtime: Runtime) -> None:
        self.device = 0
        self.called: set[str] = set()
        self.unwritten: list[Report] = []
        self._runtime = runtime

    def __getattr__(self, name: str) -> Any:
        operator = getattr(torch.ops.memformer_native, name).default
        return SimpleNamespace(default=lambda *arguments: self._call(name, operator, arguments))

    def _call(self, name: str, operator: Any, arguments: Sequence[Any]) -> None:
        if name == "rehearse_on_cuda":  # has no tensors, hence no device to be chosen by
            operator(*arguments)
            return
        spans = _merged(_spans(name, schema_of(operator).arguments, arguments))
        self.called.add(name)
        with self._known(name, spans), self._runtime.calls():
            operator.redispatch(cuda_kernels, *arguments)

    @contextmanager
    def _known(self, operator: str, spans: list[Span]) -> Iterator[None]:
        memory = self._runtime.devices[self.device].memory
        for span in spans:
            size = span.end - span.begin
            memory.register(span.begin, size, span.name, initialised=span.read, writable=span.written)
        try:
            yield
            for span in spans:
                if not memory.initialised(span.begin, span.end - span.begin):
                    self.unwritten.append(Report("uninitialised", 1, operator, "", f"{span.name} was not written"))
        finally:
            for span in spans:
                memory.forget(span.begin)


def _spans(operator: str, schema: Sequence[Any], arguments: Sequence[Any]) -> Iterator[Span]:
    trains = operator == "train_steps"
    for argument, value in zip(schema, arguments, strict=True):
        written = argument.alias_info is not None and argument.alias_info.is_write
        if trains and argument.name in _OF_THE_HOST:
            continue
        for tensor in value if isinstance(value, list | tuple) else [value]:
            if isinstance(tensor, Tensor) and tensor.numel() > 0:
                last = sum((size - 1) * step for size, step in zip(tensor.shape, tensor.stride(), strict=True))
                begin = tensor.data_ptr()
                end = begin + (last + 1) * tensor.element_size()
                yield Span(begin, end, argument.name, trains or not written, written)


def _merged(spans: Iterator[Span]) -> list[Span]:
    """Spans that overlap, as those of a tensor and its view, as one."""
    made: list[Span] = []
    for span in sorted(spans):
        if made and span.begin < made[-1].end:
            before = made.pop()
            name = before.name if before.name == span.name else f"{before.name}, {span.name}"
            read, written = before.read or span.read, before.written or span.written
            made.append(Span(before.begin, max(before.end, span.end), name, read, written))
        else:
            made.append(span)
    return made
