"""Runs the hot kernels of both GPU backends on virtual GPUs.

Counters are of code that ran; times are predictions, which no hardware has confirmed. The virtual device has one or two
multiprocessors, and each gets as many tasks as fill it: predicted is a GPU all of whose multiprocessors get as many.
"""

from benchmarks.gpu.virtual_cases import Case
from benchmarks.gpu.virtual_cuda import library
from benchmarks.gpu.virtual_cuda.devices import AMPERE, SMALL, WHOLE, WHOLE_AMPERE
from benchmarks.gpu.virtual_cuda.virtual import Virtual, serving
from benchmarks.gpu.virtual_record import GPUS, Counted
from benchmarks.measure.sources import of_kernels
from virtual_gpu import Device, Launch, Report
from virtual_gpu.profile import Use, longer_by, uses
from virtual_gpu.triton import driver_of

_DEVICES = {90: SMALL, 80: AMPERE}
_WHOLE = {90: WHOLE, 80: WHOLE_AMPERE}


class Machines:
    """The virtual GPUs of this process: the CUDA library is linked and loaded when a case of it is first counted."""

    def __init__(self) -> None:
        self._virtual: Virtual | None = None

    def count(self, case: Case, architecture: int) -> Counted:
        """Runs a case.

        Raises:
            RuntimeError: what it needs is missing, or a check of the virtual GPU found something.
        """
        kernels, multiprocessors = self._uses(case, architecture)
        if case.beyond is not None:
            kernels = longer_by(kernels, self._uses(case._replace(make=case.beyond), architecture)[0])
        sources = of_kernels(case.backend)
        return Counted(
            name=case.name,
            backend=case.backend,
            architecture=architecture,
            unit=case.unit,
            units=case.units,
            floor=case.floor,
            multiprocessors=multiprocessors,
            sources=sources,
            kernels=tuple(kernels),
        )

    def _uses(self, case: Case, architecture: int) -> tuple[list[Use], int]:
        run = self._cuda if case.backend == "cuda" else _triton
        launches, reports, multiprocessors = run(case, architecture)
        if reports:
            raise RuntimeError(f"{case.backend}, {case.name}: {'; '.join(map(str, reports))}")
        return uses(launches, GPUS[architecture], multiprocessors), multiprocessors

    def _cuda(self, case: Case, architecture: int) -> tuple[list[Launch], list[Report], int]:
        if self._virtual is None:
            reason = library.missing()
            if reason is not None:
                raise RuntimeError(f"the CUDA library cannot be linked again: {reason}")
            self._virtual = Virtual(library.load())
        with serving(self._virtual) as virtual:
            index = (_WHOLE if case.whole else _DEVICES)[architecture]
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
