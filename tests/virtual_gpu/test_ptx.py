"""From PTX to the machine's code: what is read, what is refused, and tables that two languages share."""

import re
from pathlib import Path

import pytest

from tests.virtual_gpu.assembly import module
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
        "add.f16.ftz %h0, %h1, %h2;",
        "mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 {%r0}, {%r1}, {%r2}, {%r3};",
        "ld.global.b128 %d0, [%d1];",
        "cp.async.bulk.wait_group.read 0;",
    ],
)
def test_what_the_machine_does_not_know_is_refused(text: str) -> None:
    kernel = module(text, parameters=0).kernels["kernel"]
    with pytest.raises(UnknownInstruction):
        _ = kernel.program


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
