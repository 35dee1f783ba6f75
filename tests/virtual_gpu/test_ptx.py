"""From PTX to the machine's code: what is read, what is refused, and tables that two languages share."""

import re
from pathlib import Path

import numpy as np
import pytest

from tests.virtual_gpu.assembly import Run, module
from virtual_gpu import ALL_CHECKS, Module, UnknownInstruction
from virtual_gpu.counters import CLASSES, COUNTED
from virtual_gpu.ptx.allocation import places
from virtual_gpu.ptx.assembler import SPECIAL
from virtual_gpu.ptx.code import Kind

MACHINE = Path(__file__).parents[2] / "python" / "virtual_gpu" / "machine"


def enumerated(file: str, name: str) -> list[str]:
    """The names of an enumeration of the machine."""
    found = re.search(rf"enum (?:class )?{name} : \w+ {{(.*?)}};", (MACHINE / file).read_text(), re.S)
    assert found is not None
    return re.findall(r"\w+", found[1])


def test_checks_have_the_machines_order() -> None:
    names = [re.sub(r"(?<!^)(?=[A-Z])", "-", name).lower() for name in enumerated("report.h", "Check")]
    assert tuple(names) == ALL_CHECKS


def test_special_registers_have_the_machines_order() -> None:
    names = [name.strip("%").replace(".", "_").upper() for name in SPECIAL]
    assert enumerated("launch.cpp", "Special") == names


def test_counters_have_the_machines_order() -> None:
    found = re.search(r"struct Counters {(.*?)};", (MACHINE / "machine.h").read_text(), re.S)
    assert found is not None
    assert tuple(re.findall(r"\w+", found[1].replace("u64", ""))) == COUNTED
    assert len(set(CLASSES)) == 4


TEXT = """
.version 8.0
.target sm_80
.address_size 64
.file 1 "folder/other.cuh"
.const .align 4 .u32 table[3] = {1, 2, 0x10};
.global .align 8 .b8 room[24];
.extern .shared .align 64 .b8 dynamic[];
.shared .align 4 .b8 fixed[12];
.visible .entry first(.param .u32 n, .param .align 8 .b8 all[24], .param .u64 .ptr .global .align 16 p)
.maxntid 64, 2, 1
{ .reg .b32 %r<4>; mov.u32 %r1, dynamic; mov.u32 %r2, fixed; /* a comment */ ret; }
.visible .entry second() { .loc 1 5 0
 ret; // another
}
"""


def test_a_module_is_read() -> None:
    made = Module.of(TEXT)
    assert made is Module.of(TEXT)
    assert made.target == 80
    first = made.kernels["first"]
    assert [(p.name, p.offset, p.size) for p in first.parameters] == [("n", 0, 4), ("all", 8, 24), ("p", 32, 8)]
    assert (first.parameter_bytes, first.threads, first.static_shared) == (40, 128, 64)
    assert (made.kernels["second"].threads, made.kernels["second"].parameter_bytes) == (None, 0)
    table = made.source.variables["table"]
    assert (table.space, table.value) == ("const", b"\1\0\0\0\2\0\0\0\20\0\0\0")
    assert made.address_of("room") % 8 == 0
    assert made.source.files == {1: "other.cuh"}


def test_dynamic_shared_memory_follows_the_static() -> None:
    moves = [i for i in Module.of(TEXT).kernels["first"].code.instructions if i.key == "mov.u32"]
    assert [move.operands[1].value for move in moves] == [64, 0]


@pytest.mark.parametrize(
    "text",
    [
        "st.global.v3.u32 [%d0], {%r1, %r2, %r3}; nonsense;",
        "ld.global.sideways.u32 %r1, [%d0];",
        "mov.u32 %r1, nowhere;",
        "bra NOWHERE;",
        "tcgen05.alloc.b32 %r1;",
        "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes [%r1], [%d0, {%r2, %r3}], [%r4];",
        "call.uni %d0, ();",
        "brx.idx %r0, TARGETS;",
        "add.f16.ftz %h0, %h1, %h2;",
        "mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 {%r0}, {%r1}, {%r2}, {%r3};",
        "ld.global.b128 %d0, [%d1];",
        "cp.async.bulk.wait_group.read 0;",
        "add.sat.f16 %h0, %h1, %h2;",
        "fma.rn.sat.f16x2 %r0, %r1, %r2, %r3;",
        "cvt.rn.sat.f16.f32 %h0, %f1;",
        "add.sat.f32x2 %d0, %d1, %d2;",
        "mad.hi.sat.s32 %r0, %r1, %r2, %r3;",
        "cvt.rz.tf32.f32 %r0, %f1;",
        "cvt.ftz.f32.f32 %f0, %f1;",
        "ex2.approx.bf16 %h0, %h1;",
        "set.eq.u16.f16 %h0, %h1, %h2;",
        "set.eq.f16.f16 %h0, %h1, %h2;",
    ],
)
def test_what_the_machine_does_not_know_is_refused(text: str) -> None:
    kernel = module(text, parameters=0).kernels["kernel"]
    with pytest.raises(UnknownInstruction):
        _ = kernel.program


@pytest.mark.parametrize(
    "text",
    [
        "add.u32 %r0, %r1;",
        "max.f32 %f0, %f1, %f2, %f3;",
        "neg.f32 %f0, %f1, %f2;",
        "addc.u32 %r0, %r1;",
        "mad.lo.cc.u32 %r0, %r1, %r2;",
        "setp.eq.u32 %p0, %r1, %r2, %p1;",
        "setp.eq.and.u32 %p0, %r1, %r2;",
        "ld.global.v4.u32 {%r0, %r1}, [%a0];",
        "ld.global.u32 {%r0, %r1}, [%a0];",
        "st.global.v2.u32 [%a0], %r0;",
        "mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%f0}, {%r1}, {%r2}, {%f3};",
        "wgmma.mma_async.sync.aligned.m64n8k16.f32.f16.f16 {%f0, %f1}, %d0, %d1, 1, 1, 1, 0, 0;",
    ],
)
def test_too_few_or_too_many_operands_are_refused(text: str) -> None:
    with pytest.raises(UnknownInstruction, match=re.escape(text.split()[0])):
        _ = module(text, 1).kernels["kernel"].program


@pytest.mark.parametrize(
    "text",
    [
        "add.u32 %d0, %d1, %d2;",
        "add.u64 %d0, %d1, %r2;",
        "add.f16 %f0, %h1, %h2;",
        "cvt.u32.u64 %h0, %d1;",
        "ld.global.u32 %h0, [%a0];",
        "ld.global.u32 %r0, [%h0];",
        "selp.u32 %r0, %r1, %r2, %r3;",
        "add.u32 %r0, !%r1, %r2;",
        "mov.b64 {%h0, %h1}, %d0;",
        "mov.u64 %d0, %tid.x;",
    ],
)
def test_registers_of_another_width_are_refused(text: str) -> None:
    with pytest.raises(UnknownInstruction, match=re.escape(text.split()[0])):
        _ = module(text, 1).kernels["kernel"].program


@pytest.mark.parametrize(
    ("number", "bits"),
    [
        ("mov.b64 %d2, 0d3FF8000000000000;", 0x3FF8000000000000),
        ("mov.b64 %d2, 0f3FC00000;", 0x3FF8000000000000),
        ("mov.f64 %g0, 0f3FC00000; mov.b64 %d2, %g0;", 0x3FF8000000000000),
        ("mov.b32 %r0, 0d3FF8000000000000; cvt.u64.u32 %d2, %r0;", 0x3FC00000),
        ("mov.b32 %r0, 0f3FC00000; cvt.u64.u32 %d2, %r0;", 0x3FC00000),
        ("mov.u64 %d2, -2;", 2**64 - 2),
        ("mov.u64 %d2, 010;", 8),
    ],
)
def test_numbers_have_the_bits_of_their_type(number: str, bits: int) -> None:
    out = np.zeros(1, np.uint64)
    assert Run(module(number + "st.global.u64 [%a0], %d2;", 1), [out], block=1).reports == []
    assert out[0] == bits


def test_a_statement_without_its_end_and_a_label_that_stands_twice_are_refused() -> None:
    text = module("mov.u32 %r0, 1;", 1).text
    with pytest.raises(ValueError, match="not a statement: add"):
        _ = Module(text.replace("ret;", "ret; add.u32 %r0, %r0, 1")).kernels["kernel"].code
    with pytest.raises(UnknownInstruction, match="twice"):
        _ = module("AGAIN: mov.u32 %r0, 1; AGAIN: mov.u32 %r0, 2;", 1).kernels["kernel"].code


@pytest.mark.parametrize("text", [".entry", ".entry kernel", ".entry kernel.maxntid 3", ".entry kernel() { ret;"])
def test_a_function_that_does_not_end_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"end|closed|name"):
        Module(".version 8.0\n.target sm_90\n" + text)


def test_a_function_that_calls_itself_is_refused() -> None:
    kernel = module("call.uni again, ();", parameters=0, variables=".func again() { call.uni again, (); ret; }")
    with pytest.raises(UnknownInstruction, match="itself"):
        _ = kernel.kernels["kernel"].code


def test_text_that_is_no_ptx_is_refused() -> None:
    with pytest.raises(ValueError, match="target"):
        Module("int main() {}")


LOOPS = (
    "mov.u32 %r1, 0; mov.u32 %r5, 1; OUTER: mov.u32 %r2, 0; INNER: add.u32 %r2, %r2, %r5; setp.lt.u32 %p0, %r2, %t;"
    "@%p0 bra INNER; add.u32 %r1, %r1, %r2; setp.lt.u32 %p1, %r1, 99; @%p1 bra OUTER;"
    "mov.u32 %r3, %r1; add.u32 %r4, %r3, 1; st.global.u32 [%a0], %r4;"
)


def test_branches_reconverge_behind_their_loops() -> None:
    code = module(LOOPS, 1).kernels["kernel"].code
    branches = [i for i in code.instructions if i.key == "bra" and i.guard is not None]
    assert [code.instructions[branch.reconverge].key for branch in branches] == ["add.u32", "mov.u32"]
    for branch in branches:
        assert branch.reconverge == code.instructions.index(branch) + 1


def test_registers_that_are_live_at_once_have_places_of_their_own() -> None:
    code = module(LOOPS, 1).kernels["kernel"].code
    shared = places(code)
    named: dict[int, int] = {}
    for instruction in code.instructions:
        for operand in instruction.operands:
            if operand.kind == Kind.REGISTER:
                named.setdefault(operand.value, len(named))
    assert all(shared[register] >= 0 for register in named)
    widths: dict[int, set[int]] = {}
    for register in named:
        widths.setdefault(shared[register], set()).add(code.widths[register])
    assert all(len(of_place) == 1 for of_place in widths.values())
    moves = [i for i in code.instructions if i.key == "mov.u32"]
    outer, step, inner, copy = (shared[move.operands[0].value] for move in moves[-4:])
    # The sum, the step and the inner count live through the loops; the copy comes after them.
    assert len({outer, step, inner}) == 3
    assert copy in {outer, step, inner}
