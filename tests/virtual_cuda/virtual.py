"""Virtual devices under memformer_kernels: its backend "cuda" then takes tensors of the host."""

import functools
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from memformer_kernels import build, library
from memformer_kernels.backends import BACKENDS
from tests.virtual_cuda import code
from tests.virtual_cuda import library as linked
from tests.virtual_cuda.devices import HOPPER, device
from tests.virtual_cuda.operators import Operators
from virtual_gpu import Report
from virtual_gpu.cuda import Runtime


class Virtual:
    """The virtual devices of this process, and the one that tensors lie on."""

    def __init__(self, runtime: Runtime) -> None:
        self.runtime = runtime
        self.runtime.choose = code.choose
        self.operators = Operators(runtime)

    def use(self, index: int = HOPPER, order: int = 0) -> None:
        """Puts tensors on a device, by number; order: of warps and blocks, as `virtual_gpu.Device` takes it."""
        self.runtime.devices[index] = device(index, order)
        self.runtime.latest_first(order == 1)
        self.runtime.place_tensors(index)
        self.operators.device = index

    def kernels(self) -> set[str]:
        """Names of the kernels that have run."""
        return {launched.launch.kernel.name for launched in self.runtime.launched}

    def take_reports(self) -> list[Report]:
        """What was found since the last time."""
        found = [*self.runtime.take_reports(), *self.operators.unwritten]
        self.operators.unwritten.clear()
        return found


@contextmanager
def clean_devices() -> Iterator[Virtual]:
    """Virtual devices, new ones, while a test lasts: AssertionError where a kernel made a report or left a result
    unwritten. Skips the test where the library cannot be linked anew."""
    reason = linked.missing()
    if reason is not None:
        pytest.skip(reason)
    virtual, operators = _devices(), library.operators
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(build, "VIRTUAL", True)
        patch.setitem(build._AVAILABLE, "cuda", True)
        patch.setattr(build, "_look_for_cuda_fault", lambda index: None)
        patch.setattr(library, "operators", lambda name: virtual.operators if name == "cuda" else operators(name))
        patch.delitem(vars(BACKENDS["cuda"]), "_operators", raising=False)
        virtual.use()
        virtual.take_reports()
        virtual.runtime.launched.clear()
        yield virtual
        vars(BACKENDS["cuda"]).pop("_operators", None)
        assert virtual.take_reports() == []


@functools.cache
def _devices() -> Virtual:
    return Virtual(linked.load())
