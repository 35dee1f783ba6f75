"""Kernels that ran on the virtual GPU, and the time that the model gives them."""

import struct
from typing import Any

import numpy as np
import pytest

from virtual_gpu import Device, Launch, Module
from virtual_gpu.courses import courses
from virtual_gpu.hardware import H200, resident_blocks
from virtual_gpu.schedule import predict

HEAD = """.version 8.0
.target sm_90
.address_size 64
.visible .entry kernel(.param .u64 first, .param .u64 second) {
  .reg .b64 %a, %b, %o; .reg .b32 %t, %n, %s; .reg .f32 %x<9>; .reg .pred %p;
  .shared .align 16 .b8 room[4096];
  ld.param.u64 %a, [first];
  ld.param.u64 %b, [second];
  mov.u32 %t, %tid.x;
"""
COPY = """  mov.u32 %n, %ctaid.x; mov.u32 %s, %ntid.x; mad.lo.u32 %t, %n, %s, %t;
  mul.wide.u32 %o, %t, 16; add.u64 %a, %a, %o; add.u64 %b, %b, %o;
  ld.global.v4.f32 {%x0, %x1, %x2, %x3}, [%a];
  st.global.v4.f32 [%b], {%x0, %x1, %x2, %x3};
  ret; }"""
CHAIN = """  mov.u32 %n, 0; mov.f32 %x0, 0f3F800000;
again:
  fma.rn.f32 %x0, %x0, %x0, %x0; fma.rn.f32 %x0, %x0, %x0, %x0; fma.rn.f32 %x0, %x0, %x0, %x0;
  fma.rn.f32 %x0, %x0, %x0, %x0; fma.rn.f32 %x0, %x0, %x0, %x0; fma.rn.f32 %x0, %x0, %x0, %x0;
  fma.rn.f32 %x0, %x0, %x0, %x0; fma.rn.f32 %x0, %x0, %x0, %x0;
  add.u32 %n, %n, 1; setp.lt.u32 %p, %n, 100; @%p bra again;
  st.global.f32 [%b], %x0;
  ret; }"""
CHASE = """  mov.u32 %n, 0;
again:
  ld.global.u64 %a, [%a];
  add.u32 %n, %n, 1; setp.lt.u32 %p, %n, 100; @%p bra again;
  st.global.u64 [%b], %a;
  ret; }"""
CONFLICTS = """  mul.lo.u32 %t, %t, STRIDE; mov.u32 %s, room; add.u32 %s, %s, %t; mov.f32 %x0, 0f3F800000;
  st.shared.f32 [%s], %x0; mov.u32 %n, 0;
again:
  ld.volatile.shared.f32 %x1, [%s]; ld.volatile.shared.f32 %x2, [%s]; ld.volatile.shared.f32 %x3, [%s];
  ld.volatile.shared.f32 %x4, [%s]; ld.volatile.shared.f32 %x5, [%s]; ld.volatile.shared.f32 %x6, [%s];
  add.u32 %n, %n, 1; setp.lt.u32 %p, %n, 50; @%p bra again;
  ret; }"""
ASYNCHRONOUS = """  mul.wide.u32 %o, %t, 16; add.u64 %a, %a, %o; mov.u32 %s, room; mad.lo.u32 %s, %t, 16, %s;
COPIES
  cp.async.commit_group;
  cp.async.wait_group 0;
  ld.shared.f32 %x0, [%s];
  st.global.f32 [%b], %x0;
  ret; }"""


def launched(body: str, first: Any, second: Any, grid: int, block: int, traced: int | None = 0) -> Launch:
    device = Device(90)
    device.traced_block = traced
    for array, name in ((first, "first"), (second, "second")):
        device.memory.register(array.ctypes.data, array.nbytes, name)
    arguments = struct.pack("<QQ", first.ctypes.data, second.ctypes.data)
    launch = device.launch(Module(HEAD + body).kernels["kernel"], grid, block, arguments)
    assert not device.take_reports()
    return launch


def aligned(size: int) -> Any:
    """Bytes that start a sector of memory."""
    room = np.zeros(size + 128, np.uint8)
    return room[-room.ctypes.data % 128 :][:size]


def test_the_trace_is_of_one_block() -> None:
    launch = launched(COPY, aligned(16 * 512), aligned(16 * 512), 4, 128, traced=2)
    warps = courses(launch)
    assert len(warps) == 4
    for course in warps:
        assert [(issue.sectors, issue.fresh) for issue in course if issue.sectors] == [(16, 16), (16, 16)]
    assert 4 * len(launch.trace) == launch.counters.warp_instructions
    with pytest.raises(ValueError, match="traced"):
        courses(launched(COPY, aligned(16 * 512), aligned(16 * 512), 4, 128, traced=None))


def test_a_copy_is_bound_by_memory() -> None:
    launch = launched(COPY, aligned(16 * 256), aligned(16 * 256), 1, 256)
    blocks = 1 << 16
    made = predict(H200, courses(launch), blocks, resident_blocks(H200, 256, 16, 0))
    assert made.bound == "memory"
    assert made.seconds == pytest.approx(blocks * 256 * 32 / H200.copied, rel=0.05)


def test_a_chain_is_bound_by_its_latency() -> None:
    launch = launched(CHAIN, aligned(64), aligned(64), 1, 1)
    assert predict(H200, courses(launch), 1, 1).cycles == pytest.approx(800 * H200.latency["float"], rel=0.2)


def test_a_chase_is_bound_by_memory_latency() -> None:
    links = aligned(128 * 101).view(np.uint64)
    links[::16][:101] = links.ctypes.data + 128 * (np.arange(101, dtype=np.uint64) + 1)
    made = predict(H200, courses(launched(CHASE, links, aligned(64), 1, 1)), 1, 1)
    assert made.cycles == pytest.approx(100 * H200.latency["device"], rel=0.05)
    links[0] = links.ctypes.data
    made = predict(H200, courses(launched(CHASE, links, aligned(64), 1, 1)), 1, 1)
    assert made.cycles == pytest.approx(99 * H200.latency["cached"] + H200.latency["device"], rel=0.2)


@pytest.mark.parametrize(("stride", "wavefronts"), [(4, 1), (8, 2), (64, 16), (128, 32)])
def test_conflicts(stride: int, wavefronts: int) -> None:
    launch = launched(CONFLICTS.replace("STRIDE", str(stride)), aligned(64), aligned(64), 1, 32)
    made = predict(H200, courses(launch) * 16, H200.multiprocessors, 1)
    assert made.cycles == pytest.approx(16 * 300 * wavefronts, rel=0.1)


def test_asynchronous_copies_overlap() -> None:
    """Six copies and one wait take memory's latency once, and a copy that is waited for each time six times."""
    copies = [f"  cp.async.ca.shared.global [%s+{512 * k}], [%a+{512 * k}], 16;" for k in range(6)]
    together = "\n".join(copies)
    apart = "\n  cp.async.commit_group; cp.async.wait_group 0;\n".join(copies)
    cycles = [
        predict(
            H200, courses(launched(ASYNCHRONOUS.replace("COPIES", body), aligned(4096), aligned(64), 1, 1)), 1, 1
        ).cycles
        for body in (together, apart)
    ]
    assert cycles[0] < 1.4 * H200.latency["device"]
    assert cycles[1] > 6 * H200.latency["device"]
