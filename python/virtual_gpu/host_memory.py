"""Memory of torch tensors on the CPU, as the memory of a virtual GPU."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any
from unittest import mock

import numpy as np
import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef

from virtual_gpu import Device

_FACTORIES = ((torch, ("empty", "empty_like", "empty_strided")), (Tensor, ("new_empty", "new_empty_strided")))
"""What returns memory that nothing has written."""

MOST_PARTS = 1024
"""Of a view, each of which is registered by itself."""


@dataclass
class _Fresh:
    """A storage that a factory returned. version: of its tensors when the device was last told of what torch wrote."""

    storage: StorageWeakRef
    address: int
    nbytes: int
    version: int


class HostMemory:
    """Tells a device which memory kernels may touch: that of a launch's tensors, and what of it holds nothing yet."""

    def __init__(self, device: Device) -> None:
        self._memory = device.memory
        self._fresh: dict[int, _Fresh] = {}

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Tensors that `torch.empty` and its kin make inside are registered as uninitialised while they live."""
        with ExitStack() as stack:
            for owner, names in _FACTORIES:
                for name in names:
                    stack.enter_context(mock.patch.object(owner, name, self._noting(getattr(owner, name))))
            stack.callback(self._forget_all)
            yield

    def written(self, tensor: Tensor) -> bool:
        """Whether all that a tensor spans holds values: none of it was left out, or made from what nothing wrote."""
        address, nbytes = span(tensor)
        fresh = self._fresh_of(tensor)
        return fresh is None or self._memory.initialised(address, nbytes)

    @contextmanager
    def visible(self, tensors: Sequence[Tensor]) -> Iterator[None]:
        """Registers the elements of `tensors` for one launch, and not what lies between those of a view."""
        merged = _merged([part for tensor in tensors if self._fresh_of(tensor) is None for part in parts(tensor)])
        for first, last in merged:
            self._memory.register(first, last - first, "a tensor")
        try:
            yield
        finally:
            for first, _ in merged:
                self._memory.forget(first)

    def _noting(self, factory: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def make(*arguments: Any, **options: Any) -> Tensor:
            made = factory(*arguments, **options)
            # Of an inference tensor torch does not count the writes.
            counted = type(made) is Tensor and not made.is_inference()
            if counted and made.device.type == "cpu" and made.layout == torch.strided:
                self._add(made)
            return made

        return make

    def _add(self, tensor: Tensor) -> None:
        self._forget_dead()
        storage = tensor.untyped_storage()
        if storage.nbytes() and storage.data_ptr() not in self._fresh:
            reference = StorageWeakRef(storage)  # type: ignore[no-untyped-call]
            fresh = _Fresh(reference, storage.data_ptr(), storage.nbytes(), tensor._version)
            self._fresh[fresh.address] = fresh
            self._memory.register(fresh.address, fresh.nbytes, f"empty {tuple(tensor.shape)}", initialised=False)

    def _fresh_of(self, tensor: Tensor) -> _Fresh | None:
        """The registered storage that a tensor is in, if it is one.

        Torch counts its writes to a tensor and not where they went: after any the whole counts as written.
        """
        self._forget_dead()
        fresh = self._fresh.get(tensor.untyped_storage().data_ptr())
        if fresh is not None and tensor._version != fresh.version:
            fresh.version = tensor._version
            self._memory.wrote(fresh.address, fresh.nbytes)
        return fresh

    def _forget_dead(self) -> None:
        for fresh in [fresh for fresh in self._fresh.values() if fresh.storage.expired()]:  # type: ignore[no-untyped-call]
            self._forget(fresh)

    def _forget_all(self) -> None:
        for fresh in list(self._fresh.values()):
            self._forget(fresh)

    def _forget(self, fresh: _Fresh) -> None:
        self._memory.forget(fresh.address)
        del self._fresh[fresh.address]


def span(tensor: Tensor) -> tuple[int, int]:
    """Address and bytes from a tensor's first element to its last."""
    if tensor.numel() == 0:
        return tensor.data_ptr(), 0
    last = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    return tensor.data_ptr(), (last + 1) * tensor.element_size()


def parts(tensor: Tensor) -> list[tuple[int, int]]:
    """The first and last address of every run of elements side by side; of too many runs those of the whole span."""
    first, nbytes = span(tensor)
    run, offsets = tensor.element_size(), np.zeros(1, np.int64)
    for stride, size in sorted(zip(tensor.stride(), tensor.shape, strict=True)):
        step = stride * tensor.element_size()
        if step <= run and len(offsets) == 1:
            run += (size - 1) * step
        elif len(offsets) * size > MOST_PARTS:
            return [(first, first + nbytes)]
        else:
            offsets = (offsets + step * np.arange(size)[:, None]).ravel()
    return [(first + int(offset), first + int(offset) + run) for offset in offsets if nbytes]


def _merged(spans: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """The same bytes by spans that neither overlap nor touch."""
    merged: list[tuple[int, int]] = []
    for first, last in sorted(spans):
        if merged and first <= merged[-1][1]:
            merged[-1] = merged[-1][0], max(last, merged[-1][1])
        else:
            merged.append((first, last))
    return merged
