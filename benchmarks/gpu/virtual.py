"""Runs the hot kernels of both GPU backends on virtual GPUs.

Counters are of code that ran; times are predictions, which no hardware has confirmed. The virtual device has one or two
multiprocessors, and each gets as many tasks as fill it: predicted is a GPU all of whose multiprocessors get as many.
"""

from benchmarks.gpu.virtual_cases import Case
from benchmarks.gpu.virtual_cuda import library
from benchmarks.gpu.virtual_cuda.devices import AMPERE, SMALL
from benchmarks.gpu.virtual_cuda.virtual import Virtual, serving
from benchmarks.gpu.virtual_record import GPUS, Counted
from benchmarks.measure.sources import of_kernels
from virtual_gpu import Device, Launch, Report
from virtual_gpu.profile import uses
from virtual_gpu.triton import driver_of

_DEVICES = {90: SMALL, 80: AMPERE}


class Machines:
    """The virtual GPUs of this process: the CUDA library is linked and loaded when a case of it is first counted."""

    def __init__(self) -> None:
        self._virtual: Virtual | None = None

    def count(self, case: Case, architecture: int) -> Counted:
        """Runs a case.

        Raises:
            RuntimeError: what it needs is missing, or a check of the virtual GPU found something.
        """
        run = self._cuda if case.backend == "cuda" else _triton
        launches, reports, multiprocessors = run(case, architecture)
        if reports:
            raise RuntimeError(f"{case.backend}, {case.name}: {'; '.join(map(str, reports))}")
        kernels = tuple(uses(launches, GPUS[architecture], multiprocessors))
        sources = of_kernels(case.backend)
        return Counted(
            case.name, case.backend, architecture, case.unit, case.units, case.floor, multiprocessors, sources, kernels
        )

    def _cuda(self, case: Case, architecture: int) -> tuple[list[Launch], list[Report], int]:
        if self._virtual is None:
            reason = library.missing()
            if reason is not None:
                raise RuntimeError(f"the CUDA library cannot be linked anew: {reason}")
            self._virtual = Virtual(library.load())
        with serving(self._virtual) as virtual:
            index = _DEVICES[architecture]
            virtual.use(index)
            device = virtual.runtime.devices[index]
            device.traced_block = 0
            case.make()()
            launches = [launched.launch for launched in virtual.runtime.launched]
            return launches, virtual.take_reports(), device.multiprocessors


def _triton(case: Case, architecture: int) -> tuple[list[Launch], list[Report], int]:
    device = Device(architecture, multiprocessors=1)
    device.traced_block = 0
    call = case.make()
    with driver_of(device) as driver:
        call()
    return driver.launches, device.take_reports(), device.multiprocessors
