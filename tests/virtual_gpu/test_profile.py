"""What a call's kernels did beside the model's time, on kernels whose figures follow from their text."""

import importlib.util
import struct
from dataclasses import replace
from importlib.machinery import ModuleSpec
from pathlib import Path

import numpy as np
import pytest

from virtual_gpu import Device, Launch, Module
from virtual_gpu.courses import courses
from virtual_gpu.hardware import H200, find_ptxas, registers_of
from virtual_gpu.profile import longer_by, uses
from virtual_gpu.schedule import predict

pytestmark = pytest.mark.skipif(find_ptxas() is None, reason="no ptxas to allocate registers")

TEXT = """.version 8.0
.target sm_90
.address_size 64
.visible .entry copies(.param .u64 p) {
  .reg .b64 %a<4>; .reg .b32 %r<4>; .reg .f32 %x;
  ld.param.u64 %a1, [p];
  mov.u32 %r1, %tid.x; mov.u32 %r2, %ctaid.x; mov.u32 %r3, %ntid.x; mad.lo.u32 %r1, %r2, %r3, %r1;
  mul.wide.u32 %a2, %r1, 4; add.s64 %a1, %a1, %a2;
  ld.global.f32 %x, [%a1];
  add.f32 %x, %x, %x;
  st.global.f32 [%a1], %x;
  ret;
}
.visible .entry nothing(.param .u64 p) { ret; }
"""
BLOCKS, THREADS = 64, 256


def launches(device: Device, *names: str) -> list[Launch]:
    room = np.zeros(BLOCKS * THREADS + 32, np.float32)
    numbers = room[-room.ctypes.data % 128 // 4 :][: BLOCKS * THREADS]
    device.memory.register(numbers.ctypes.data, numbers.nbytes, "numbers")
    kernels = Module.of(TEXT).kernels
    arguments = struct.pack("<Q", numbers.ctypes.data)
    made = [device.launch(kernels[name], BLOCKS, THREADS, arguments) for name in names]
    assert device.take_reports() == []
    return made


def traced() -> Device:
    device = Device(90, multiprocessors=1)
    device.traced_block = 0
    return device


def test_a_kernels_counters_are_added_and_its_time_is_that_of_all_multiprocessors() -> None:
    copies, nothing = uses(launches(traced(), "copies", "nothing", "copies"), H200)
    assert (copies.kernel, copies.launches, copies.blocks, copies.threads) == ("copies", 2, BLOCKS, THREADS)
    assert copies.counters.global_bytes_read == copies.counters.global_bytes_written == 2 * 4 * BLOCKS * THREADS
    # What a block reads and writes again lies in a cache.
    assert copies.device_bytes == 2 * 4 * BLOCKS * THREADS
    assert copies.counters.floating_point == 2 * BLOCKS * THREADS // 32
    assert (nothing.kernel, nothing.device_bytes, nothing.launches) == ("nothing", 0, 1)
    moved = copies.device_bytes * H200.multiprocessors
    assert copies.prediction.bound == "memory"
    assert 1.0 <= copies.prediction.seconds / (moved / H200.copied) < 1.5
    assert copies.prediction.seconds > 10 * nothing.prediction.seconds


def test_more_virtual_multiprocessors_are_more_of_the_gpus() -> None:
    made = launches(traced(), "copies")
    one, two = (uses(made, H200, multiprocessors=count)[0].prediction.seconds for count in (1, 2))
    assert two == pytest.approx(one / 2, rel=0.3)


def test_a_launch_without_a_trace_is_refused() -> None:
    with pytest.raises(ValueError, match="traced_block"):
        uses(launches(Device(90, multiprocessors=1), "copies"), H200)


def test_a_resources_share_is_of_the_time_of_all_launches() -> None:
    made = launches(traced(), "copies")
    short = replace(made[0], grid=(1, 1, 1))
    alone, few, both = (uses(group, H200)[0].prediction for group in (made, [short], [short, *made]))
    assert both.cycles == pytest.approx(alone.cycles + few.cycles)
    assert both.seconds == pytest.approx(alone.seconds + few.seconds)
    worked = alone.busy["memory"] * alone.cycles + few.busy["memory"] * few.cycles
    assert both.busy["memory"] == pytest.approx(worked / both.cycles)


def test_registers_of_those_named() -> None:
    assert set(registers_of(TEXT)) == {"copies", "nothing"}
    assert set(registers_of(TEXT, "copies")) == {"copies"}


def test_the_assembler_that_comes_with_triton_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("triton")
    expected = registers_of(TEXT, "copies")
    monkeypatch.setenv("PATH", "/nowhere")
    found = registers_of(TEXT, "copies")
    assert found.keys() == expected.keys()
    assert abs(found["copies"] - expected["copies"]) <= 4


def test_the_predicted_time_is_the_models() -> None:
    (launch,) = launches(traced(), "copies")
    (use,) = uses([launch], H200)
    expected = predict(H200, courses(launch), BLOCKS * H200.multiprocessors, use.resident)
    assert use.prediction == expected


def test_without_a_toolkit_the_assembler_is_triton_s(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("triton")
    monkeypatch.setenv("PATH", "")
    assert "triton" in str(find_ptxas())


@pytest.mark.parametrize(
    ("toolkit", "triton", "chosen"),
    [
        ("V12.4.131", "V12.8.93", "triton"),
        ("V13.0.88", "V12.8.93", "toolkit"),
        ("V9.2.88", "V12.8.93", "triton"),
        ("V12.8.93", "V12.8.93", "toolkit"),
        ("no version", "V12.8.93", "triton"),
        (None, "V12.8.93", "triton"),
        ("V12.4.131", None, "toolkit"),
        (None, None, None),
    ],
)
def test_the_newest_assembler_is_taken(
    toolkit: str | None, triton: str | None, chosen: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An older one refuses text that Triton writes for its own."""
    places = {"toolkit": tmp_path / "bin", "triton": tmp_path / "triton" / "backends" / "nvidia" / "bin"}
    for name, said in (("toolkit", toolkit), ("triton", triton)):
        places[name].mkdir(parents=True)
        if said is not None:
            script = places[name] / "ptxas"
            script.write_text(f"#!/bin/sh\necho 'Cuda compilation tools, {said}'\n", encoding="utf-8")
            script.chmod(0o755)
    spec = ModuleSpec("triton", None, is_package=True)
    spec.submodule_search_locations = [str(tmp_path / "triton")]
    monkeypatch.setattr(importlib.util, "find_spec", {"triton": spec}.get)
    monkeypatch.setenv("PATH", str(places["toolkit"]))
    assert find_ptxas() == (None if chosen is None else str(places[chosen] / "ptxas"))


def test_what_a_longer_call_did_beyond_a_shorter_one() -> None:
    longer = uses(launches(traced(), "nothing", "copies", "copies", "copies"), H200)
    shorter = uses(launches(traced(), "nothing", "copies"), H200)
    (beyond,) = longer_by(longer, shorter)
    (copies,) = uses(launches(traced(), "copies", "copies"), H200)
    assert (beyond.kernel, beyond.counters, beyond.device_bytes) == ("copies", copies.counters, copies.device_bytes)
    assert beyond.prediction.cycles == pytest.approx(copies.prediction.cycles)
    assert beyond.prediction.seconds == pytest.approx(copies.prediction.seconds)
    assert beyond.prediction.busy == pytest.approx(copies.prediction.busy)
    assert longer_by(shorter, shorter) == []
    with pytest.raises(ValueError, match="shorter call ran nothing"):
        longer_by([beyond], shorter)
