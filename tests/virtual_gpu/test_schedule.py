"""The model of time on kernels whose time follows from the hardware's numbers alone."""

from dataclasses import replace

import pytest

from virtual_gpu.hardware import A100, H200, Gpu, classified, find_ptxas, registers_of, resident_blocks
from virtual_gpu.schedule import Issue, Operation, predict

GPUS = pytest.mark.parametrize("gpu", [H200, A100], ids=lambda gpu: gpu.name)


def fused(writes: int, *reads: int) -> Issue:
    return Issue(Operation("fma.f32", reads, (writes,)))


@GPUS
def test_a_stream_takes_its_bytes_at_the_rate_of_a_copy(gpu: Gpu) -> None:
    """Each warp reads and writes 512 bytes at a time, eight times over: only the start and the end are latency."""
    course = []
    for k in range(8):
        course.append(Issue(Operation("ld.u32", (0,), (10 + k,)), 16, 16))
        course.append(Issue(Operation("st.u32", (0, 10 + k)), 16, 16))
    blocks = 16 * gpu.multiprocessors * 8
    made = predict(gpu, [course] * 8, blocks, 8)
    nbytes = blocks * 8 * 16 * 512
    assert made.bound == "memory"
    assert 1.0 <= made.seconds / (nbytes / gpu.copied) < 1.25


@GPUS
def test_a_chain_takes_its_latency(gpu: Gpu) -> None:
    chain = [fused(0, 0, 1) for _ in range(1000)]
    made = predict(gpu, [chain], 1, 1)
    assert made.cycles == pytest.approx(1000 * gpu.latency["float"], rel=0.01)
    assert made.bound == "latency"
    doubles = [Issue(Operation("fma.f64", (0, 1), (0,))) for _ in range(1000)]
    assert predict(gpu, [doubles], 1, 1).cycles == pytest.approx(1000 * gpu.latency["double"], rel=0.01)


@GPUS
@pytest.mark.parametrize(
    ("operation", "unit"), [("fma.f32", "float"), ("fma.f64", "double"), ("ex2.approx.f32", "special")]
)
def test_independent_operations_take_their_unit(gpu: Gpu, operation: str, unit: str) -> None:
    """32 warps of independent operations: the unit's results a cycle, and no more than one instruction a scheduler."""
    course = [Issue(Operation(operation, (0, 1), (k + 2,))) for k in range(200)]
    made = predict(gpu, [course] * 32, gpu.multiprocessors, 1)
    work = 32 * 200 * 32
    assert made.cycles == pytest.approx(work / gpu.results[unit], rel=0.05)
    assert made.busy[unit] > 0.95


def test_warps_hide_latency() -> None:
    """A scheduler with as many warps as a chain's latency issues every cycle; with half, every second."""
    chain = [fused(0, 0, 1) for _ in range(1000)]
    for warps, cycles in ((4, 4000), (8, 4000), (16, 4000), (32, 8000)):
        assert predict(H200, [chain] * warps, H200.multiprocessors, 1).cycles == pytest.approx(cycles, rel=0.02)


@GPUS
def test_a_chase_of_pointers_takes_memory_latency(gpu: Gpu) -> None:
    chase = [Issue(Operation("ld.u64", (0,), (0,)), 1, 1) for _ in range(200)]
    made = predict(gpu, [chase], 1, 1)
    assert made.cycles == pytest.approx(200 * gpu.latency["device"], rel=0.02)
    assert made.bound == "latency"
    cached = [Issue(Operation("ld.u64", (0,), (0,)), 1, 0) for _ in range(200)]
    assert predict(gpu, [cached], 1, 1).cycles == pytest.approx(200 * gpu.latency["cached"], rel=0.03)


def test_more_blocks_hide_more_of_it() -> None:
    """A chase by many warps: bytes in flight over latency (Little's law), until the bandwidth is reached."""
    chase = [Issue(Operation("ld.u64", (0,), (0,)), 4, 4) for _ in range(50)]
    one, eight, full = (predict(H200, [chase] * 4, H200.multiprocessors * n, n) for n in (1, 8, 16))
    assert eight.cycles == pytest.approx(one.cycles, rel=0.15)
    assert one.bound == eight.bound == "latency"
    many = predict(H200, [chase] * 4, H200.multiprocessors * 32, 32)
    assert many.bound == "memory"
    assert many.cycles > 1.5 * one.cycles
    assert full.cycles < many.cycles


def test_conflicts_of_shared_memory_cost_their_wavefronts() -> None:
    for wavefronts in (1, 8, 32):
        course = [Issue(Operation("ld.u32", (0,), (k + 1,)), wavefronts=wavefronts) for k in range(100)]
        made = predict(H200, [course] * 16, H200.multiprocessors, 1)
        assert made.cycles == pytest.approx(1600 * wavefronts, rel=0.05)
        assert made.bound == "shared"


def test_tensor_cores_take_their_products() -> None:
    """16 x 8 x 8 products of TF32: half of float16's rate."""
    operation = Operation("mma.m16n8k8.f32.tf32.tf32.f32", (0, 1), (2,), products=16 * 8 * 8)
    course = [Issue(operation._replace(writes=(k + 2,))) for k in range(100)]
    made = predict(H200, [course] * 16, H200.multiprocessors, 1)
    assert made.cycles == pytest.approx(1600 * 1024 * 2 / H200.results["tensor"], rel=0.1)


def test_blocks_that_do_not_fit_wait() -> None:
    """One block more than fit runs alone after the others; ten times as many take ten times as long."""
    course = [fused(0, 0, 1) for _ in range(100)]
    fit = 132 * 4
    first, one_more, twice, tenfold = (
        predict(H200, [course] * 8, blocks, 4).cycles for blocks in (fit, fit + 1, 2 * fit, 10 * fit)
    )
    alone = predict(H200, [course] * 8, 1, 4).cycles
    assert one_more == pytest.approx(first + alone, rel=0.02)
    assert twice == pytest.approx(2 * first, rel=0.02)
    assert tenfold == pytest.approx(10 * first, rel=0.02)


def test_barriers_wait_for_the_last_warp() -> None:
    barrier = Issue(Operation("bar.sync"))
    short, long = [fused(0, 0), barrier, fused(0, 0)], [*(fused(0, 0) for _ in range(500)), barrier]
    made = predict(H200, [short, long], 1, 1)
    assert made.cycles == pytest.approx(4 * 500 + H200.latency["barrier"], rel=0.02)
    ended = [fused(0, 0)]
    assert predict(H200, [short, ended], 1, 1).cycles < 100


def test_loads_move_ahead_of_what_does_not_need_them() -> None:
    """ptxas would start the loads of an unrolled loop together."""
    course = []
    for k in range(8):
        course.append(Issue(Operation("ld.u32", (0,), (10 + k,)), 4, 4))
        course.append(fused(30 + k, 10 + k, 1))
    together = predict(H200, [course], 1, 1).cycles
    assert together < 1.2 * H200.latency["device"]
    apart = []
    for k in range(8):
        apart += [*course[2 * k : 2 * k + 2], Issue(Operation("st.u32", (0, 30 + k)), 4, 0)]
    assert predict(H200, [apart], 1, 1).cycles > 4 * H200.latency["device"]


def test_occupancy() -> None:
    """By threads, registers, shared memory and blocks, as NVIDIA's occupancy calculator has them for 9.0 and 8.0."""
    assert resident_blocks(H200, 256, 32, 0) == 8
    assert resident_blocks(H200, 256, 64, 0) == 4
    assert resident_blocks(H200, 256, 255, 0) == 1
    assert resident_blocks(H200, 128, 40, 48 * 1024) == 4
    assert resident_blocks(H200, 32, 16, 0) == 32
    assert resident_blocks(A100, 128, 40, 48 * 1024) == 3
    assert resident_blocks(H200, 128, 32, 227 * 1024) == 1
    assert resident_blocks(H200, 128, 32, 228 * 1024) == 0
    with pytest.raises(ValueError, match="no block"):
        predict(H200, [[fused(0, 0)]], 1, 0)
    assert resident_blocks(replace(H200, threads=1024), 256, 32, 0) == 4


def test_units() -> None:
    wants = {
        "fma.f32": ("float", 1),
        "div.full.f32": ("float", 8),
        "div.f32": ("float", 8),
        "sqrt.approx.f32": ("special", 1),
        "add.f64": ("double", 1),
        "div.f64": ("double", 12),
        "mad.wide.s32": ("integer", 1),
        "add.s64": ("integer", 2),
        "div.s32": ("integer", 24),
        "mov.u32": ("none", 0),
        "cvt.f32.f16": ("convert", 1),
        "cvt.f64.f32": ("special", 1),
        "shfl.bfly": ("shuffle", 1),
        "bar.sync": ("control", 1),
        "bra": ("control", 1),
        "wgmma.f32.tf32.tf32": ("tensor", 2),
        "wgmma.commit": ("control", 1),
        "mma.m8n8k4.f64.f64.f64.f64": ("tensor", 16),
        "setp.lt.u64": ("integer", 2),
    }
    assert {key: classified(key) for key in wants} == wants


def test_what_halves_need_comes_before_what_an_operation_usually_is() -> None:
    """A product whose lower half alone is read is one instruction of four; a shift by 32 is none."""
    for instructions, count in ((None, 4), (1, 1)):
        course = [Issue(Operation("mul.s64", (0, 1), (k + 2,), instructions=instructions)) for k in range(200)]
        made = predict(H200, [course] * 32, H200.multiprocessors, 1)
        assert made.cycles == pytest.approx(count * 200 * 32 * 32 / H200.results["integer"], rel=0.05)
    assert Operation("shr.u64", instructions=0).work == ("none", 0)


PTX = """.version 8.0
.target sm_90
.address_size 64
.visible .entry copies(.param .u64 p) {
  .reg .b64 %a; .reg .f32 %x;
  ld.param.u64 %a, [p];
  ld.global.f32 %x, [%a];
  st.global.f32 [%a+4], %x;
  ret;
}
"""


@pytest.mark.skipif(find_ptxas() is None, reason="no ptxas to allocate registers")
def test_registers() -> None:
    found = registers_of(PTX)
    assert list(found) == ["copies"]
    assert 4 <= found["copies"] <= 16
    with pytest.raises(RuntimeError, match="unexpected"):
        registers_of(PTX.replace("ld.param.u64 %a, [p];", "unexpected;"))
    with pytest.raises(RuntimeError, match="no target"):
        registers_of("")
