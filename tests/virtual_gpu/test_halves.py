"""Operations on 64 bits are as many instructions as ptxas makes of them for sm_90."""

import re
import subprocess

import pytest

from benchmarks.gpu.sass import find_cuobjdump, read_code
from virtual_gpu import Module
from virtual_gpu.halves import counts
from virtual_gpu.hardware import classified, find_ptxas

HEAD = """.version 8.0
.target sm_90
.address_size 64
.visible .entry kernel(.param .u64 p) {
  .reg .b64 %d<200>; .reg .b32 %r<20>;
  mov.u32 %r0, %tid.x; ld.param.u64 %d1, [p]; mul.wide.u32 %d2, %r0, 64; add.s64 %d1, %d1, %d2;
  ld.global.u64 %d3, [%d1]; ld.global.u64 %d4, [%d1+8]; ld.global.u32 %r1, [%d1+16]; ld.global.u32 %r2, [%d1+20];
  cvt.u64.u32 %d5, %r1; cvt.u64.u32 %d6, %r2;
"""
WHOLE = " st.global.u64 [%d1+32], %d9; ret; }"
LOWER = " cvt.u32.u64 %r9, %d9; st.global.u32 [%d1+32], %r9; ret; }"
"""Of %d9, all or the lower half alone is stored."""

OPERATIONS = {
    "mul.lo.s64 %d9, %d3, %d4;": (4, 1),
    "mul.lo.s64 %d9, %d3, %d5;": (3, 1),
    "mul.lo.s64 %d9, %d3, 3528531795;": (3, 1),
    "mul.lo.s64 %d9, %d5, %d6;": (2, 1),
    "mul.lo.s64 %d9, %d5, 3528531795;": (2, 1),
    "mul.wide.u32 %d9, %r1, %r2;": (1, 1),
    "mad.lo.s64 %d9, %d3, %d4, %d5;": (4, 1),
    "add.s64 %d9, %d3, %d4;": (2, 1),
    "sub.s64 %d9, %d3, %d4;": (2, 1),
    "neg.s64 %d9, %d3;": (2, 1),
    "xor.b64 %d9, %d3, %d4;": (2, 1),
    "xor.b64 %d9, %d3, %d5;": (1, 1),
    "and.b64 %d9, %d3, 4294967295;": (0, 0),
    "xor.b64 %d8, %d3, %d4; xor.b64 %d9, %d8, 77;": (2, 1),
    "xor.b64 %d8, %d3, %d4; and.b64 %d9, %d8, %d6;": (1, 1),
    "shr.u64 %d9, %d3, 7;": (2, 1),
    "shr.u64 %d9, %d3, 32;": (0, 0),
    "shr.u64 %d9, %d3, 40;": (1, 1),
    "shr.s64 %d9, %d3, 3;": (2, 1),
    "shr.s64 %d9, %d3, 32;": (1, 0),
    "shl.b64 %d9, %d3, 7;": (2, 1),
    "shl.b64 %d9, %d3, 40;": (1, 0),
    "cvt.s64.s32 %d9, %r1;": (1, 0),
}
WANTED = [
    (operation + end, count)
    for operation, both in OPERATIONS.items()
    for count, end in zip(both, (WHOLE, LOWER), strict=True)
]


def philox() -> str:
    """Ten rounds as nvcc writes them: words in 64 bits, cut after they were mixed."""
    words, lines, last = ["%d5", "%d6", "%d10", "%d11"], ["and.b64 %d10, %d4, 4294967295;"], 11
    lines.append("and.b64 %d11, %d3, 4294967295;")
    for number in range(10):
        first, second, *rest = (f"%d{last + k}" for k in range(1, 11))
        last += 10
        lines.append(f"mul.lo.s64 {first}, {words[0]}, 3528531795; mul.lo.s64 {second}, {words[2]}, 3449720151;")
        for k, (product, other) in enumerate(((second, words[1]), (first, words[3]))):
            high, mixed, keyed, cut = rest[4 * k : 4 * k + 4]
            lines.append(f"shr.u64 {high}, {product}, 32; xor.b64 {mixed}, {high}, {other};")
            lines.append(f"xor.b64 {keyed}, {mixed}, {1000 * number + k}; and.b64 {cut}, {keyed}, 4294967295;")
        words = [rest[3], second, rest[7], first]
    for k, word in enumerate(words):
        lines.append(f"cvt.u32.u64 %r{9 + k}, {word}; st.global.u32 [%d1+{32 + 4 * k}], %r{9 + k};")
    return "\n".join(lines) + " ret; }"


def philox_of_words() -> str:
    """The same in 32 bits, by products that are 64 bits wide."""
    lines, words, last = (
        [".reg .b32 %w<200>; cvt.u32.u64 %w1, %d3; cvt.u32.u64 %w2, %d4;"],
        ["%r1", "%r2", "%w1", "%w2"],
        2,
    )
    for number in range(10):
        products = []
        for word, factor in ((words[0], 3528531795), (words[2], 3449720151)):
            low, high = (f"%w{last + k}" for k in (1, 2))
            last += 2
            lines.append(f"{{ .reg .b64 %x; mul.wide.u32 %x, {word}, {factor}; mov.b64 {{{low}, {high}}}, %x; }}")
            products.append((low, high))
        keyed = []
        for k, ((_, high), other) in enumerate(zip(reversed(products), (words[1], words[3]), strict=True)):
            mixed, key = (f"%w{last + k}" for k in (1, 2))
            last += 2
            lines.append(f"xor.b32 {mixed}, {high}, {other}; xor.b32 {key}, {mixed}, {1000 * number + k};")
            keyed.append(key)
        words = [keyed[0], products[1][0], keyed[1], products[0][0]]
    lines += [f"st.global.u32 [%d1+{32 + 4 * k}], {word};" for k, word in enumerate(words)]
    return "\n".join(lines) + " ret; }"


def counted(body: str) -> int:
    """Of the operations between loads and stores, the integer instructions."""
    (kernel,) = Module.of(HEAD + body).kernels.values()
    made = 0
    for instruction, count in zip(kernel.code.instructions, counts(kernel.code), strict=True):
        unit, usual = classified(instruction.key)
        if re.match(r"(ld|st|exit|mov)\b", instruction.key) is None and unit != "none":
            made += int(usual) if count is None else count
    return made


EMPTY = " st.global.u64 [%d1+32], %d3; ret; }"
BODIES = [EMPTY, philox(), philox_of_words(), *(body for body, _ in WANTED)]
needs_tools = pytest.mark.skipif(find_ptxas() is None or find_cuobjdump() is None, reason="no ptxas and cuobjdump")


@pytest.fixture(scope="module")
def assembled(tmp_path_factory: pytest.TempPathFactory) -> dict[str, int]:
    """The same of each body, of what ptxas makes."""
    source, output = (tmp_path_factory.mktemp("kernels") / f"kernels.{ending}" for ending in ("ptx", "cubin"))
    start, kernel = HEAD.split(".visible")
    texts = [f".visible{kernel}{body}\n".replace("entry kernel", f"entry kernel_{k}") for k, body in enumerate(BODIES)]
    source.write_text(start + "".join(texts), encoding="utf-8")
    subprocess.run([str(find_ptxas()), "-arch=sm_90", str(source), "-o", str(output)], check=True)
    made = {code.name: code.instructions for code in read_code(output)}
    integer = re.compile(r"(IMAD|IADD3|VIADD|LOP3|SHF)\b(?!\.MOV)")
    return {
        body: sum(count for name, count in made[f"kernel_{k}"].items() if integer.match(name))
        for k, body in enumerate(BODIES)
    }


def test_an_operation_is_counted_by_the_halves_that_are_needed() -> None:
    assert {body: counted(body) - counted(EMPTY) for body, _ in WANTED} == dict(WANTED)


@needs_tools
def test_ptxas_makes_as_many(assembled: dict[str, int]) -> None:
    assert {body: assembled[body] - assembled[EMPTY] for body, _ in WANTED} == dict(WANTED)


@needs_tools
def test_random_words_are_as_many_instructions_as_ptxas_makes(assembled: dict[str, int]) -> None:
    """Ten rounds of two products, with a sum that ptxas adds unless they are of 32 bits, and of two bitwise ones."""
    made = counted(philox()) - counted(EMPTY)
    assert made == pytest.approx(60, abs=3)
    assert assembled[philox()] - assembled[EMPTY] == pytest.approx(made, abs=3)
    fewer = counted(philox_of_words()) - counted(EMPTY)
    assert fewer == pytest.approx(40, abs=3)
    assert assembled[philox_of_words()] - assembled[EMPTY] == pytest.approx(fewer, abs=3)


def test_a_half_is_needed_around_a_loop() -> None:
    """What is written at a loop's end is read at its start; the upper half of the sum goes nowhere else."""
    loop = (
        "mov.u64 %d7, %d3; AGAIN: add.s64 %d7, %d7, %d4; {} setp.lt.u32 %p, %r0, %r1; @%p bra AGAIN; mov.u64 %d9, %d7;"
    )
    head = ".reg .pred %p;"
    carried, cut = (counted(head + loop.format("") + end) for end in (WHOLE, LOWER))
    assert carried - cut == 1
    kept = counted(head + loop.format("shr.u64 %d8, %d7, 32; st.global.u64 [%d1+40], %d8;") + LOWER)
    assert kept == carried


def test_upper_halves_are_zero_where_every_writer_says_so() -> None:
    """One way of two leaves a number above 2^32."""
    body = ".reg .pred %p; setp.eq.u32 %p, %r1, 0; cvt.u64.u32 %d7, %r1; @%p {} mul.lo.s64 %d9, %d7, %d6;"
    narrow, wide = (counted(body.format(way) + WHOLE) for way in ("cvt.u64.u32 %d7, %r2;", "mov.u64 %d7, %d3;"))
    assert wide - narrow == 1
