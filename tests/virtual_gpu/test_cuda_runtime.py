"""The stand-in for the CUDA runtime: host code of nvcc runs, and what a driver refuses is refused with its error."""

import ctypes
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from virtual_gpu import Device
from virtual_gpu.cuda import Runtime, build, fatbinary
from virtual_gpu.cuda.limits import Error

pytestmark = pytest.mark.skipif(shutil.which("nvcc") is None, reason="there is no nvcc here")

SOURCE = Path(__file__).with_name("runtime_calls.cu")
HOPPER, AMPERE = 0, 1


class Calls:
    """The functions of runtime_calls.cu, and 32 numbers that the devices may touch."""

    def __init__(self, folder: Path) -> None:
        unit = folder / "calls.o"
        codes = "-gencode=arch=compute_80,code=compute_80"
        subprocess.run(["nvcc", "-std=c++17", codes, "-Xcompiler=-fPIC", "-c", SOURCE, "-o", unit], check=True)
        standing = build.stand_in(folder)
        self.unit = unit
        self.runtime = Runtime(standing.library, [Device(90, 2), Device(80, 2)])
        self.library = ctypes.CDLL(str(standing.link([unit], folder / "calls.so")))
        self.library.words.restype = ctypes.c_char_p
        self.numbers = np.zeros(32, np.int32)

    @property
    def at(self) -> ctypes.c_void_p:
        return ctypes.c_void_p(self.numbers.ctypes.data)


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Calls:
    return Calls(tmp_path_factory.mktemp("runtime"))


@pytest.fixture
def calls(built: Calls) -> Iterator[Calls]:
    built.numbers[:] = 0
    memory = [device.memory for device in built.runtime.devices]
    for one in memory:
        one.register(built.numbers.ctypes.data, built.numbers.nbytes, "numbers")
    yield built
    built.library.change_device(HOPPER)
    built.library.last_error()
    for one in memory:
        one.forget(built.numbers.ctypes.data)
    built.runtime.take_reports()


def test_a_kernel_runs_and_its_arguments_arrive(calls: Calls) -> None:
    with calls.runtime.calls():
        assert calls.library.plain(calls.at, 5) == 0
        assert calls.library.plain(calls.at, 2) == 0
    assert calls.numbers.tolist() == [7] * 32
    assert calls.runtime.take_reports() == []


def test_ptx_comes_out_of_objects_compressed_or_not(calls: Calls, tmp_path: Path) -> None:
    plain = tmp_path / "plain.o"
    codes = "-gencode=arch=compute_80,code=[compute_80,sm_80]"
    subprocess.run(["nvcc", "-std=c++17", "--no-compress", codes, "-c", SOURCE, "-o", plain], check=True)
    packed, loose = (list(fatbinary.in_file(path.read_bytes())) for path in (calls.unit, plain))
    assert [program.target for program in packed] == [80]
    assert packed == loose
    with pytest.raises(ValueError, match="no fat binary"):
        fatbinary.header_bytes(b"\x7fELF" + bytes(12))


def test_shared_memory_beyond_48_kb_must_be_allowed(calls: Calls) -> None:
    assert calls.library.with_shared(calls.at, 1, 32, 48 * 1024) == 0
    assert calls.library.with_shared(calls.at, 1, 32, 48 * 1024 + 4) == Error.INVALID_VALUE
    assert calls.library.allow(100_000) == 0
    assert calls.library.with_shared(calls.at, 1, 32, 100_000) == 0
    assert calls.library.with_shared(calls.at, 1, 32, 100_004) == Error.INVALID_VALUE
    assert calls.library.allow(227 * 1024) == 0
    assert calls.library.allow(227 * 1024 + 1) == Error.INVALID_VALUE
    assert calls.library.change_device(AMPERE) == 0
    assert calls.library.with_shared(calls.at, 1, 32, 60_000) == Error.INVALID_VALUE  # allowed on the other device
    assert calls.library.allow(164 * 1024) == Error.INVALID_VALUE
    assert {report.check for report in calls.runtime.take_reports()} == {"launch"}


@pytest.mark.parametrize(("grid", "block"), [(0, 32), (1, 0), (1, 1025)])
def test_grids_and_blocks_have_limits(calls: Calls, grid: int, block: int) -> None:
    assert calls.library.with_shared(calls.at, grid, block, 0) == Error.INVALID_CONFIGURATION


def test_clusters_fit_the_grid_and_the_device(calls: Calls) -> None:
    assert calls.library.in_clusters(calls.at, 4, 2) == 0
    assert calls.runtime.launched[-1].shape.cluster == (2, 1, 1)
    assert calls.library.in_clusters(calls.at, 3, 2) == Error.INVALID_CLUSTER
    assert calls.library.in_clusters(calls.at, 16, 16) == Error.INVALID_CLUSTER
    assert calls.library.change_device(AMPERE) == 0
    assert calls.library.in_clusters(calls.at, 4, 2) == Error.INVALID_CLUSTER


def test_blocks_that_meet_must_run_at_the_same_time(calls: Calls) -> None:
    assert calls.library.together(calls.at, 2, 0) == 0
    assert calls.library.together(calls.at, 65, 0) == Error.COOPERATIVE_TOO_LARGE
    assert calls.library.allow(200_000) == 0
    assert calls.library.together(calls.at, 2, 200_000) == 0
    assert calls.library.together(calls.at, 3, 200_000) == Error.COOPERATIVE_TOO_LARGE


def test_an_attribute_that_is_not_known_is_refused(calls: Calls) -> None:
    assert calls.library.with_priority(calls.at) == Error.NOT_SUPPORTED


def test_a_graph_keeps_the_arguments_and_the_order_of_its_edges(calls: Calls) -> None:
    for latest_first in (False, True):
        calls.numbers[:] = 1
        calls.runtime.latest_first(latest_first)
        assert calls.library.in_a_graph(calls.at, 10, 100, 1, 2) == 0
        assert calls.numbers.tolist() == [2 * (2 * (2 * (2 + 10) + 100) + 10) + 100] * 32


def test_nodes_without_an_edge_run_in_any_order(calls: Calls) -> None:
    found = []
    for latest_first in (False, True):
        calls.numbers[:] = 1
        calls.runtime.latest_first(latest_first)
        assert calls.library.in_a_graph(calls.at, 10, 100, 0, 1) == 0
        found.append(int(calls.numbers[0]))
    calls.runtime.latest_first(False)
    assert found == [2 * (2 + 10) + 100, 2 * (2 + 100) + 10]


def test_errors_are_told_once(calls: Calls) -> None:
    assert calls.library.with_shared(calls.at, 1, 1025, 0) == Error.INVALID_CONFIGURATION
    assert calls.library.last_error() == Error.INVALID_CONFIGURATION
    assert calls.library.last_error() == 0
    assert calls.library.plain(calls.at, 1) == 0
    assert calls.library.words(int(Error.INVALID_CONFIGURATION)) == b"invalid configuration argument"


def test_what_ends_a_launch_comes_out_and_the_device_is_lost_until_then(calls: Calls) -> None:
    def broken(*_: object) -> None:
        raise OSError("no code")

    def fail() -> None:
        calls.runtime.choose, choose = broken, calls.runtime.choose
        assert calls.library.plain(calls.at, 1) == Error.LAUNCH_FAILURE
        calls.runtime.choose = choose
        assert calls.library.plain(calls.at, 1) == Error.LAUNCH_FAILURE
        assert calls.library.last_error() == calls.library.last_error() == Error.LAUNCH_FAILURE

    with pytest.raises(OSError, match="no code"), calls.runtime.calls():
        fail()
    assert calls.library.plain(calls.at, 1) == 0


def test_copies_reach_memory_that_the_device_knows(calls: Calls) -> None:
    other = np.arange(32, dtype=np.int32)
    place = ctypes.c_void_p(other.ctypes.data)
    assert calls.library.copy_in(calls.at, place, 128) == 0
    assert calls.numbers.tolist() == other.tolist()
    assert calls.library.copy_in(place, calls.at, 128) == Error.INVALID_VALUE
    assert calls.library.copy_in(calls.at, place, 132) == Error.INVALID_VALUE
    calls.numbers[:] = 3
    assert calls.library.copy_out(place, calls.at, 128) == 0
    assert other.tolist() == [3] * 32


def test_numbers_that_were_not_written_do_not_leave_the_device(calls: Calls) -> None:
    fresh, other = np.zeros(32, np.int32), np.zeros(32, np.int32)
    memory = calls.runtime.devices[HOPPER].memory
    memory.register(fresh.ctypes.data, fresh.nbytes, "fresh", initialised=False)
    assert calls.library.copy_out(ctypes.c_void_p(other.ctypes.data), ctypes.c_void_p(fresh.ctypes.data), 128) == 0
    assert [report.check for report in calls.runtime.take_reports()] == ["uninitialised"]
    memory.forget(fresh.ctypes.data)


def test_devices_and_streams_are_known_by_number(calls: Calls) -> None:
    assert calls.library.multiprocessors(AMPERE) == 2
    assert calls.library.multiprocessors(2) == -1
    assert calls.library.change_device(2) != 0
    assert calls.library.wait_for(None) == 0
    assert calls.library.wait_for(ctypes.c_void_p(1)) == Error.INVALID_HANDLE
