"""CUDA kernels broken on purpose: each fault is found by its check."""

import functools
import re
from contextlib import suppress

import pytest

from benchmarks.gpu.virtual_cuda import code
from benchmarks.gpu.virtual_cuda.devices import HOPPER
from benchmarks.gpu.virtual_cuda.virtual import Virtual
from tests.virtual_cuda.broken import CALLS, FAULTS, Call, quadratics, solve
from tests.virtual_gpu.edits import edited, functions
from tests.virtual_gpu.faults import Fault, listed
from virtual_gpu import LaunchFailed
from virtual_gpu.cuda import Binary, Ptx

NOT_ALLOWED = Fault("an attribute for more shared memory not set", "QuadraticsKernel", 90, "launch")


def _found(virtual: Virtual, call: Call) -> set[str]:
    """The checks that report anything of a call, which may end early."""
    virtual.use(call.device)
    with suppress(LaunchFailed):
        call.run()
    return {report.check for report in virtual.take_reports()}


@pytest.mark.parametrize("name", CALLS)
def test_the_calls_are_clean_as_they_are(virtual: Virtual, name: str) -> None:
    assert _found(virtual, CALLS[name]) == set()
    assert virtual.runtime.launched


@pytest.mark.parametrize("name", FAULTS)
def test_faults_are_found(virtual: Virtual, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    fault, loaded = FAULTS[name], set()

    @functools.cache
    def broken(program: Ptx, kernel: str) -> Ptx:
        loaded.add(kernel)
        names = [kernel] if not fault.function else [one for one in functions(program.text) if fault.function in one]
        return Ptx(program.target, edited(program.text, names[0], fault.pattern, fault.wrong, fault.places))

    def choose(binary: Binary, kernel: str, device: int) -> Ptx | None:
        program = code.choose(binary, kernel, device)
        return program if program is None or not re.search(fault.kernel, kernel) else broken(program, kernel)

    monkeypatch.setattr(virtual.runtime, "choose", choose)
    assert fault.check in _found(virtual, CALLS[fault.call])
    assert len(loaded) == 1


def test_shared_memory_that_was_not_allowed(virtual: Virtual, monkeypatch: pytest.MonkeyPatch) -> None:
    """An attribute of a kernel that was set on another device, or never."""
    call = Call(lambda: solve(quadratics(32, 16).double()), HOPPER)
    assert _found(virtual, call) == set()
    monkeypatch.setattr(virtual.runtime, "_allowed", {})
    with pytest.raises(RuntimeError, match="invalid argument"):
        call.run()
    assert {report.check for report in virtual.take_reports()} == {NOT_ALLOWED.check}


def test_the_page_lists_these_faults() -> None:
    assert listed("CUDA") == [*(edit.fault(what) for what, edit in FAULTS.items()), NOT_ALLOWED]
