"""Public functions on virtual devices: inside `serving`, tensors of the host count as a GPU's."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from unittest import mock

from benchmarks.gpu.virtual_cuda import code
from benchmarks.gpu.virtual_cuda.devices import HOPPER, device
from benchmarks.gpu.virtual_cuda.operators import Operators
from memformer_kernels import availability, library
from memformer_kernels.backends import BACKENDS
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
def serving(virtual: Virtual) -> Iterator[Virtual]:
    """Virtual devices under memformer_kernels, whose backend "cuda" takes tensors of the host, in this process."""
    operators = library.operators
    with ExitStack() as stack:
        stack.enter_context(mock.patch.object(availability, "VIRTUAL", True))
        stack.enter_context(mock.patch.dict(availability._faults, cuda=None))
        stack.enter_context(mock.patch.object(availability, "_look_for_cuda_fault", return_value=None))
        stack.enter_context(
            mock.patch.object(
                library, "operators", lambda name: virtual.operators if name == "cuda" else operators(name)
            )
        )
        _forget_operators()
        stack.callback(_forget_operators)
        virtual.use()
        virtual.take_reports()
        virtual.runtime.launched.clear()
        yield virtual


def _forget_operators() -> None:
    """The backend keeps those it has found."""
    vars(BACKENDS["cuda"]).pop("_operators", None)
