"""Each check is shown to find what it is for, in a kernel that is broken on purpose, and to pass its mended twin."""

from dataclasses import dataclass, field

import numpy as np
import pytest

from tests.virtual_gpu.assembly import ORDERS, Run, module
from virtual_gpu import Device, LaunchFailed, Module

# %d0: the address of this thread's element of argument 0; %d1: of argument 1.
ELEMENTS = "mul.wide.u32 %d9, %t, 4; add.s64 %d0, %a0, %d9; add.s64 %d1, %a1, %d9;\n"
SHARED = ".shared .align 16 .b8 tile[4096];\n"
# %r0: the offset of this thread's element of the tile.
OF_TILE = "shl.b32 %r0, %t, 2;\n mov.u32 %r1, tile; add.s32 %r0, %r0, %r1;\n"


@dataclass(frozen=True)
class Case:
    """A kernel's text with a hole: what is broken and what is right in it, and what is reported of the former."""

    name: str
    check: str
    text: str
    broken: str
    right: str
    options: dict[str, object] = field(default_factory=dict)


CASES = [
    Case(
        "beyond the last element",
        "out-of-bounds",
        ELEMENTS + "{}",
        "ld.global.u32 %r2, [%d0+1024]; st.global.u32 [%d1], %r2;",
        "ld.global.u32 %r2, [%d0]; st.global.u32 [%d1], %r2;",
    ),
    Case(
        "before the first element",
        "out-of-bounds",
        ELEMENTS + "mov.u32 %r2, 1; {}",
        "st.global.u32 [%d1+-64], %r2;",
        "st.global.u32 [%d1], %r2;",
    ),
    Case(
        "beyond the shared memory",
        "out-of-bounds",
        SHARED + OF_TILE + "mov.u32 %r2, 1; {}",
        "st.shared.u32 [%r0+4092], %r2;",
        "st.shared.u32 [%r0], %r2;",
    ),
    Case(
        "beyond the local memory",
        "out-of-bounds",
        ".local .align 4 .b8 own[16];\n mov.u64 %d2, own; mov.u32 %r2, 1; {}",
        "st.local.u32 [%d2+16], %r2;",
        "st.local.u32 [%d2+12], %r2;",
    ),
    Case(
        "a vector at an odd element",
        "misaligned",
        ELEMENTS + "and.b32 %r9, %t, 7; mul.wide.u32 %d9, %r9, 16; add.s64 %d0, %a0, %d9; {}",
        "ld.global.v4.u32 {{%r2, %r3, %r4, %r5}}, [%d0+4];",
        "ld.global.v4.u32 {{%r2, %r3, %r4, %r5}}, [%d0];",
    ),
    Case(
        "a write to an input",
        "read-only",
        ELEMENTS + "mov.u32 %r2, 1; {}",
        "st.global.u32 [%d0], %r2;",
        "st.global.u32 [%d1], %r2;",
        {"read_only": (0,)},
    ),
    Case(
        "a branch by memory that nothing wrote",
        "uninitialised",
        ELEMENTS + "{} setp.eq.u32 %p0, %r2, 0; @%p0 bra END; mov.u32 %r3, 1; st.global.u32 [%d1], %r3; END:",
        "ld.global.u32 %r2, [%d0];",
        "mov.u32 %r3, 5; st.global.u32 [%d0], %r3; ld.global.u32 %r2, [%d0];",
        {"uninitialised": (0,)},
    ),
    Case(
        "shared memory that nothing wrote reaches the output",
        "uninitialised",
        SHARED + OF_TILE + ELEMENTS + "{} ld.shared.u32 %r2, [%r0]; st.global.u32 [%d1], %r2;",
        "",
        "st.shared.u32 [%r0], %t;",
    ),
    Case(
        "a register that nothing wrote as an address",
        "uninitialised",
        ELEMENTS + "{} ld.global.u32 %r2, [%d2]; st.global.u32 [%d1], %r2;",
        "setp.gt.u32 %p0, %t, 40; @%p0 mov.u64 %d3, %a0; mov.u64 %d2, %a0; @%p0 mov.u64 %d2, %d3; "
        "xor.b64 %d4, %d3, %d3; add.s64 %d2, %d2, %d4; ",
        "mov.u64 %d2, %a0;",
    ),
    Case(
        "an undefined value is selected away",
        "uninitialised",
        ELEMENTS + "setp.lt.u32 %p0, %t, 64; {} st.global.u32 [%d1], %r3;",
        "selp.u32 %r3, %r2, 1, %p0;",
        "selp.u32 %r3, 1, %r2, %p0;",
    ),
    Case(
        "a barrier between a write and another warp's read",
        "race-shared",
        SHARED
        + OF_TILE
        + ELEMENTS
        + "st.shared.u32 [%r0], %t; {} xor.b32 %r3, %r0, 128; ld.shared.u32 %r2, [%r3]; st.global.u32 [%d1], %r2;",
        "bar.warp.sync -1;",
        "bar.sync 0;",
        {"block": 64, "ignore": {"uninitialised"}},
    ),
    Case(
        "a barrier between a read and another warp's write",
        "race-shared",
        SHARED
        + OF_TILE
        + ELEMENTS
        + "st.shared.u32 [%r0], %t; bar.sync 0; xor.b32 %r3, %r0, 128; ld.shared.u32 %r2, [%r3]; "
        "{} add.u32 %r2, %r2, 7; st.shared.u32 [%r0], %r2; st.global.u32 [%d1], %r2; ",
        "",
        "bar.sync 0;",
        {"block": 64},
    ),
    Case(
        "lanes of a warp without bar.warp.sync",
        "race-shared",
        SHARED
        + OF_TILE
        + ELEMENTS
        + "st.shared.u32 [%r0], %t; {} xor.b32 %r3, %r0, 4; ld.shared.u32 %r2, [%r3]; st.global.u32 [%d1], %r2;",
        "",
        "bar.warp.sync -1;",
    ),
    Case(
        "different values of all lanes to one place",
        "race-shared",
        SHARED + OF_TILE + "mov.u32 %r4, tile; {} st.shared.u32 [%r4], %r5;",
        "mov.u32 %r5, %t;",
        "mov.u32 %r5, 3;",
    ),
    Case(
        "blocks that add to one place",
        "race-global",
        ELEMENTS + "{}",
        "ld.global.u32 %r2, [%d0]; add.u32 %r2, %r2, 1; st.global.u32 [%d0], %r2;",
        "red.global.add.u32 [%d0], 1;",
        {"grid": 3},
    ),
    Case(
        "a fence before the count of the last block",
        "race-global",
        "mov.u32 %r1, %ctaid.x; mul.wide.u32 %d2, %r1, 4; add.s64 %d2, %a0, %d2; setp.ne.u32 %p0, %t, 0; @%p0 bra END;"
        "st.global.u32 [%d2+64], %r1; {0} atom.global.add.u32 %r2, [%a0], 1; {0} setp.ne.u32 %p1, %r2, 3; @%p1 bra END;"
        "ld.global.u32 %r3, [%a0+64]; ld.global.u32 %r4, [%a0+68]; add.u32 %r3, %r3, %r4; "
        "st.global.u32 [%a1], %r3; END:",
        "",
        "membar.gl;",
        {"grid": 4},
    ),
    Case(
        "a copy that is not awaited",
        "copy-not-awaited",
        SHARED
        + OF_TILE
        + ELEMENTS
        + "cp.async.ca.shared.global [%r0], [%d0], 4; cp.async.commit_group; {} ld.shared.u32 %r2, [%r0]; "
        "st.global.u32 [%d1], %r2; ",
        "",
        "cp.async.wait_group 0;",
        {"ignore": {"uninitialised"}},
    ),
    Case(
        "a copy that is awaited one group too late",
        "copy-not-awaited",
        SHARED + OF_TILE + ELEMENTS + "cp.async.ca.shared.global [%r0], [%d0], 4; cp.async.commit_group; "
        "cp.async.ca.shared.global [%r0+1024], [%d0], 4; cp.async.commit_group; "
        "{} ld.shared.u32 %r2, [%r0+1024]; st.global.u32 [%d1], %r2; cp.async.wait_all; ",
        "cp.async.wait_group 1;",
        "cp.async.wait_group 0;",
        {"ignore": {"uninitialised"}},
    ),
    Case(
        "a thread that ends while its copy is under way",
        "copy-not-awaited",
        SHARED + OF_TILE + ELEMENTS + "cp.async.ca.shared.global [%r0], [%d0], 4; {}",
        "cp.async.commit_group;",
        "cp.async.wait_all;",
    ),
    Case(
        "a barrier that half a warp reaches",
        "divergent-barrier",
        "setp.lt.u32 %p0, %t, 16; {} bar.sync 0; END:",
        "@%p0 bar.sync 1, 32; @!%p0 bar.sync 1, 32;",
        "",
    ),
    Case(
        "a barrier of too many threads",
        "barrier-count",
        "{}",
        "bar.arrive 1, 96;",
        "bar.sync 1, 64;",
        {"block": 64},
    ),
    Case(
        "lanes that their mask does not name",
        "warp-mask",
        ELEMENTS + "mov.u32 %r2, {}; shfl.sync.bfly.b32 %r3, %t, 1, 31, %r2; st.global.u32 [%d1], %r3;",
        "65535",
        "-1",
    ),
    Case(
        "a shuffle from a lane that is not there",
        "inactive-lane",
        ELEMENTS + "{} END:",
        "setp.ge.u32 %p0, %t, 16; @%p0 bra END; shfl.sync.bfly.b32 %r3, %t, 16, 31, 65535; st.global.u32 [%d1], %r3;",
        "setp.ge.u32 %p0, %t, 16; @%p0 bra END; shfl.sync.bfly.b32 %r3, %t, 8, 31, 65535; st.global.u32 [%d1], %r3;",
    ),
    Case(
        "an mbarrier that is not initialised",
        "mbarrier",
        SHARED + "mov.u32 %r1, tile; {} bar.sync 0; mbarrier.arrive.shared.b64 %d2, [%r1];",
        "",
        "setp.ne.u32 %p0, %t, 0; @%p0 bra SKIP; mbarrier.init.shared.b64 [%r1], 32; SKIP:",
    ),
    Case(
        "more arrivals than an mbarrier awaits",
        "mbarrier",
        SHARED + "mov.u32 %r1, tile; setp.ne.u32 %p0, %t, 0; @%p0 bra SKIP; mbarrier.init.shared.b64 [%r1], 32; "
        "SKIP: bar.sync 0; "
        "mbarrier.arrive.shared.b64 %d2, [%r1], {};",
        "3",
        "1",
    ),
]


def run(case: Case, part: str, order: int) -> tuple[set[str], Run]:
    options = dict(case.options)
    ignored = options.pop("ignore", set())
    first, second = (np.arange(256, dtype=np.uint32) for _ in range(2))
    middle = [np.zeros(64, np.uint32), np.zeros(64, np.uint32)] if "membar" in case.right else [first, second]
    made = Run(module(case.text.format(part)), middle, order=order, **options)  # type: ignore[arg-type]
    assert isinstance(ignored, set)
    return made.checks - (ignored if part == case.broken else set()), made


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_what_is_broken_is_reported_and_what_is_right_is_not(case: Case, order: int) -> None:
    assert case.check in run(case, case.broken, order)[0]
    found, mended = run(case, case.right, order)
    assert found == set(), mended.reports


def test_reports_name_the_line_and_count() -> None:
    text = ELEMENTS + ".loc 1 72 3\n ld.global.u32 %r2, [%d0+1024];"
    data = np.zeros(32, np.uint32)
    (report,) = Run(module(text), [data, data.copy()], grid=3).reports
    assert (report.check, report.source, report.kernel, report.count) == ("out-of-bounds", "kernel.cu:72", "kernel", 96)
    assert "argument" in report.detail


def test_races_name_both_lines() -> None:
    text = (
        SHARED
        + OF_TILE
        + ".loc 1 10 0\n st.shared.u32 [%r0], %t;\n .loc 1 20 0\n xor.b32 %r3, %r0, 128; ld.shared.u32 %r2, [%r3];"
    )
    reports = Run(module(text), [np.zeros(1), np.zeros(1)], block=64).reports
    races = [report for report in reports if report.check == "race-shared"]
    assert races
    for race in races:
        other = {"kernel.cu:10": "kernel.cu:20", "kernel.cu:20": "kernel.cu:10"}[race.source]
        assert other in race.detail


FATAL = {
    "trap": "trap;",
    "deadlock": "setp.eq.u32 %p0, %t, 0; @%p0 bra END; bar.sync 0, 64; END:",
    "instruction-limit": "mov.u32 %r2, 0; AGAIN: add.u32 %r2, %r2, 1; setp.ne.u32 %p1, %r2, 0; @%p1 bra AGAIN;",
}


@pytest.mark.parametrize("check", FATAL)
def test_a_launch_that_cannot_go_on_fails(check: str) -> None:
    device = Device(90, instruction_limit=10_000)
    with pytest.raises(LaunchFailed) as failed:
        device.launch(module(FATAL[check], parameters=0).kernels["kernel"], 1, 32, b"")
    assert check in {report.check for report in failed.value.reports}
    assert check in {report.check for report in device.take_reports()}
    assert device.take_reports() == []


@pytest.mark.parametrize(
    ("made", "why"),
    [
        ({"block": 2048}, "threads"),
        ({"grid": 0}, "grid"),
        ({"shared": 300_000}, "shared memory"),
        ({"arguments": b"1234"}, "arguments"),
        ({"grid": 3, "cluster": 2}, "clusters"),
        ({"grid": 1000, "cooperative": True}, "cooperative"),
        ({"capability": 80}, "sm_90"),
    ],
)
def test_a_launch_that_cannot_be_made_fails(made: dict[str, object], why: str) -> None:
    options: dict[str, object] = {"grid": 1, "block": 32, "arguments": b"", **made}
    capability = options.pop("capability", 90)
    assert isinstance(capability, int)
    kernel = module("", parameters=0).kernels["kernel"]
    with pytest.raises(LaunchFailed, match=why) as failed:
        Device(capability).launch(kernel, **options)  # type: ignore[arg-type]
    assert [report.check for report in failed.value.reports] == ["launch"]


def test_the_kernels_bound_of_threads_is_kept() -> None:
    kernel = module("", parameters=0, directives=".maxntid 64, 1, 1").kernels["kernel"]
    assert kernel.threads == 64
    Device(90).launch(kernel, 1, 64, b"")
    with pytest.raises(LaunchFailed, match="threads"):
        Device(90).launch(kernel, 1, 96, b"")


def test_checks_that_are_not_asked_for_are_not_made() -> None:
    text = SHARED + OF_TILE + "mov.u32 %r4, tile; mov.u32 %r5, 3; st.shared.u32 [%r4], %r5;"
    kernel = module(text, parameters=0).kernels["kernel"]
    device = Device(90, checks={"replicated-store"})
    device.launch(kernel, 1, 64, b"")
    assert {report.check for report in device.take_reports()} == {"replicated-store"}
    with pytest.raises(ValueError, match="unknown checks"):
        Device(90, checks={"everything"})


def test_an_unknown_instruction_is_named() -> None:
    from virtual_gpu import UnknownInstruction

    made: Module = module("frobnicate.u32 %r1, %r2;", parameters=0)
    with pytest.raises(UnknownInstruction, match="frobnicate"):
        _ = made.kernels["kernel"].code
    made = module("add.wobbly.u32 %r1, %r2, %r2;", parameters=0)
    with pytest.raises(UnknownInstruction, match="wobbly"):
        _ = made.kernels["kernel"].code
