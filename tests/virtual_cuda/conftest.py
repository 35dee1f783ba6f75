"""Public functions on virtual devices: where a test asks for `virtual`, tensors of the host count as a GPU's.

A test passes only if its kernels made no report and every result was written.
"""

from collections.abc import Iterator

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


@pytest.fixture(scope="session")
def _virtual() -> Virtual:
    reason = linked.missing()
    if reason is not None:
        pytest.skip(reason)
    return Virtual(linked.load())


@pytest.fixture
def virtual(_virtual: Virtual, monkeypatch: pytest.MonkeyPatch) -> Iterator[Virtual]:
    """Virtual devices under memformer_kernels, whose backend "cuda" takes tensors of the host."""
    operators = library.operators
    monkeypatch.setattr(build, "VIRTUAL", True)
    monkeypatch.setitem(build._AVAILABLE, "cuda", True)
    monkeypatch.setattr(build, "_look_for_cuda_fault", lambda index: None)
    monkeypatch.setattr(library, "operators", lambda name: _virtual.operators if name == "cuda" else operators(name))
    monkeypatch.delitem(vars(BACKENDS["cuda"]), "_operators", raising=False)
    _virtual.use()
    _virtual.take_reports()
    _virtual.runtime.launched.clear()
    yield _virtual
    vars(BACKENDS["cuda"]).pop("_operators", None)
    assert _virtual.take_reports() == []
