"""Kernels whose results are known, in each order of warps and blocks, with nothing to report."""

import numpy as np
import pytest

from tests.virtual_gpu.assembly import ORDERS, Run, module
from virtual_gpu import CHECKS

ELEMENTS = "mov.u32 %r70, %ctaid.x; mov.u32 %r71, %ntid.x; mad.lo.u32 %r72, %r70, %r71, %t; mul.wide.u32 %d9, %r72, 4;"
ELEMENTS += "add.s64 %d0, %a0, %d9; add.s64 %d1, %a1, %d9;\n"
LOADED = ELEMENTS + "ld.global.u32 %r0, [%d0]; ld.global.f32 %f0, [%d0];\n"
SHARED = ".shared .align 128 .b8 tile[4096];\n.shared .align 8 .b8 phase[8];\n"

rng = np.random.default_rng(0)
WORDS = np.concatenate(
    [np.array([0, 1, 2**31, 2**32 - 1, 2**31 - 1, 7, 31, 32], np.uint32), rng.integers(0, 2**32, 248, np.uint32)]
)
FLOATS = np.concatenate(
    [
        np.array([0, -0.0, 1, -1, np.inf, -np.inf, np.nan, 2.5], np.float32),
        rng.standard_normal(248).astype(np.float32) * 10,
    ]
)
SIGNED = WORDS.astype(np.int32)


def results(text: str, source: np.ndarray, order: int = 0, **options: object) -> np.ndarray:
    """What the kernel stores to argument 1, as words, having reported nothing."""
    out = np.zeros(len(source), np.uint32)
    made = Run(module(text), [source.copy(), out], block=64, grid=len(source) // 64, order=order, **options)  # type: ignore[arg-type]
    assert made.reports == []
    return out


def bit_reverse(values: np.ndarray) -> np.ndarray:
    return np.array([int(f"{int(v):032b}"[::-1], 2) for v in values], np.uint32)


ROTATED = (WORDS << np.uint32(5)) | (WORDS >> np.uint32(27))
INTEGERS = {
    "add.u32 %r1, %r0, 5;": WORDS + np.uint32(5),
    "sub.u32 %r1, 5, %r0;": np.uint32(5) - WORDS,
    "mul.lo.u32 %r1, %r0, 2654435761;": WORDS * np.uint32(2654435761),
    "mul.hi.u32 %r1, %r0, 2654435761;": (WORDS.astype(np.uint64) * 2654435761 >> np.uint64(32)).astype(np.uint32),
    "mul.hi.s32 %r1, %r0, -77;": (SIGNED.astype(np.int64) * -77 >> 32).astype(np.uint32),
    "mad.lo.s32 %r1, %r0, 3, %r0;": WORDS * np.uint32(4),
    "mul.wide.s32 %d2, %r0, -3; shr.u64 %d2, %d2, 16; cvt.u32.u64 %r1, %d2;": (
        SIGNED.astype(np.int64) * -3 >> 16
    ).astype(np.uint32),
    "mad.wide.u32 %d2, %r0, %r0, 9; shr.u64 %d2, %d2, 20; cvt.u32.u64 %r1, %d2;": (
        (WORDS.astype(np.uint64) ** 2 + np.uint64(9)) >> np.uint64(20)
    ).astype(np.uint32),
    "div.s32 %r1, %r0, 7;": (np.sign(SIGNED.astype(np.int64)) * (np.abs(SIGNED.astype(np.int64)) // 7)).astype(
        np.uint32
    ),
    "rem.u32 %r1, %r0, 7;": WORDS % np.uint32(7),
    "div.u32 %r1, %r0, 0;": np.full(256, 2**32 - 1, np.uint32),
    "min.s32 %r1, %r0, 100;": np.minimum(SIGNED, 100).astype(np.uint32),
    "max.u32 %r1, %r0, 100;": np.maximum(WORDS, np.uint32(100)),
    "abs.s32 %r1, %r0;": np.where(SIGNED < 0, np.uint32(0) - WORDS, WORDS),
    "sad.u32 %r1, %r0, 9, 1;": (np.abs(WORDS.astype(np.int64) - 9) + 1).astype(np.uint32),
    "shl.b32 %r1, %r0, 5;": WORDS << np.uint32(5),
    "shl.b32 %r1, 1, %r0;": np.where(WORDS < 32, np.uint32(1) << (WORDS & np.uint32(31)), np.uint32(0)),
    "shr.s32 %r1, %r0, 40;": np.where(SIGNED < 0, np.uint32(2**32 - 1), np.uint32(0)),
    "shf.l.wrap.b32 %r1, %r0, %r0, 5;": ROTATED,
    "shf.r.wrap.b32 %r1, %r0, %r0, 27;": ROTATED,
    "bfe.u32 %r1, %r0, 4, 9;": WORDS >> np.uint32(4) & np.uint32(511),
    "bfe.s32 %r1, %r0, 31, 1;": np.where(SIGNED < 0, np.uint32(2**32 - 1), np.uint32(0)),
    "bfi.b32 %r1, %r0, 0, 8, 8;": (WORDS & np.uint32(255)) << np.uint32(8),
    "brev.b32 %r1, %r0;": bit_reverse(WORDS),
    "clz.b32 %r1, %r0;": np.array([32 - int(v).bit_length() for v in WORDS], np.uint32),
    "popc.b32 %r1, %r0;": np.array([int(v).bit_count() for v in WORDS], np.uint32),
    "bfind.u32 %r1, %r0;": np.array([int(v).bit_length() - 1 for v in WORDS]).astype(np.uint32),
    "prmt.b32 %r1, %r0, 0, 0x0123;": WORDS.byteswap(),
    "prmt.b32 %r1, %r0, 0, 0xb;": np.where(SIGNED < 0, np.uint32(255), np.uint32(0))
    | (WORDS & np.uint32(255)) * np.uint32(0x01010100),
    "lop3.b32 %r1, %r0, 0xff00ff, 0xf0f0, 0xca;": (WORDS & np.uint32(0xFF00FF)) | (~WORDS & np.uint32(0xF0F0)),
    "add.cc.u32 %r2, %r0, %r0; addc.u32 %r1, 0, 0;": WORDS >> np.uint32(31),
    "sub.cc.u32 %r2, %r0, 5; subc.u32 %r1, 0, 0;": np.where(WORDS < 5, np.uint32(2**32 - 1), np.uint32(0)),
    "mad.lo.cc.u32 %r2, %r0, %r0, 0; madc.hi.u32 %r1, %r0, %r0, 0;": (
        WORDS.astype(np.uint64) ** 2 >> np.uint64(32)
    ).astype(np.uint32),
    "cvt.u16.u32 %h0, %r0; cvt.s32.s16 %r1, %h0;": WORDS.astype(np.int16).astype(np.int32).astype(np.uint32),
    "cvt.s32.s8 %r1, %r0;": WORDS.astype(np.int8).astype(np.int32).astype(np.uint32),
    "cvt.sat.s8.s32 %r1, %r0;": np.clip(SIGNED, -128, 127).astype(np.uint32),
    "cvt.rn.f32.s32 %f1, %r0; mov.b32 %r1, %f1;": SIGNED.astype(np.float32).view(np.uint32),
    "mov.b32 {%h0, %h1}, %r0; mov.b32 %r1, {%h1, %h0};": (WORDS << np.uint32(16)) | (WORDS >> np.uint32(16)),
    "set.lt.u32.s32 %r1, %r0, 9;": np.where(SIGNED < 9, np.uint32(2**32 - 1), np.uint32(0)),
    "setp.gt.u32 %p0, %r0, 99; setp.lt.and.u32 %p1, %r0, 10000, %p0; selp.u32 %r1, 1, 2, %p1;": np.where(
        (WORDS > 99) & (WORDS < 10000), np.uint32(1), np.uint32(2)
    ),
    "slct.u32.s32 %r1, 1, 2, %r0;": np.where(SIGNED >= 0, np.uint32(1), np.uint32(2)),
}


@pytest.mark.parametrize("text", INTEGERS)
def test_integers(text: str) -> None:
    assert np.array_equal(results(LOADED + text + "st.global.u32 [%d1], %r1;", WORDS), INTEGERS[text])


with np.errstate(all="ignore"):
    REALS = {
        "add.f32 %f1, %f0, 0f3F800000;": FLOATS + np.float32(1),
        "mul.f32 %f1, %f0, %f0;": FLOATS * FLOATS,
        "fma.rn.f32 %f1, %f0, %f0, 0fBF800000;": (FLOATS.astype(np.float64) ** 2 - 1).astype(np.float32),
        "add.rz.f32 %f1, %f0, 0f2F800000;": np.where(
            FLOATS == 0,
            np.float32(2.0**-32),
            np.where(np.isfinite(FLOATS) & (FLOATS < 0), np.nextafter(FLOATS, np.float32(0)), FLOATS),
        ),
        "div.rn.f32 %f1, 0f3F800000, %f0;": np.float32(1) / FLOATS,
        "sqrt.rn.f32 %f1, %f0;": np.sqrt(FLOATS),
        "neg.f32 %f1, %f0;": -FLOATS,
        "min.f32 %f1, %f0, 0f00000000;": np.fmin(FLOATS, np.float32(0)),
        "max.NaN.f32 %f1, %f0, 0f00000000;": np.maximum(FLOATS, np.float32(0)),
        "add.sat.f32 %f1, %f0, 0f00000000;": np.nan_to_num(np.clip(FLOATS, 0, 1)),
        "cvt.rzi.s32.f32 %r1, %f0; cvt.rn.f32.s32 %f1, %r1;": np.nan_to_num(
            np.trunc(FLOATS), posinf=2.0**31, neginf=-(2.0**31)
        ),
        "cvt.rni.f32.f32 %f1, %f0;": np.rint(FLOATS),
        "cvt.rn.f16.f32 %h0, %f0; cvt.f32.f16 %f1, %h0;": FLOATS.astype(np.float16).astype(np.float32),
        "cvt.f64.f32 %g0, %f0; mul.f64 %g0, %g0, 0d4000000000000000; cvt.rn.f32.f64 %f1, %g0;": FLOATS * 2,
        "cvt.rn.bf16x2.f32 %r1, %f0, %f0; and.b32 %r1, %r1, 0xffff0000; mov.b32 %f1, %r1;": (
            (FLOATS.view(np.uint32) + np.uint32(0x7FFF) + (FLOATS.view(np.uint32) >> np.uint32(16) & np.uint32(1)))
            & np.uint32(0xFFFF0000)
        ).view(np.float32),
        "setp.lt.f32 %p0, %f0, 0f00000000; selp.f32 %f1, 0f3F800000, 0f40000000, %p0;": np.where(FLOATS < 0, 1, 2),
        "setp.geu.f32 %p0, %f0, 0f00000000; selp.f32 %f1, 0f3F800000, 0f40000000, %p0;": np.where(~(FLOATS < 0), 1, 2),
    }


@pytest.mark.parametrize("text", REALS)
def test_floats(text: str) -> None:
    made = results(LOADED + text + "st.global.f32 [%d1], %f1;", FLOATS).view(np.float32)
    assert np.array_equal(made, REALS[text].astype(np.float32), equal_nan=True)


def rounded(values: np.ndarray, dropped: int, ties_away: bool) -> np.ndarray:
    """Floats to the nearest with so many bits less, as exact arithmetic has it."""
    out = []
    for value in values.astype(np.float64):
        if not np.isfinite(value) or value == 0:
            out.append(value)
            continue
        unit = 2.0 ** (max(np.frexp(value)[1] - 1, -126) - (23 - dropped))
        whole, rest = np.divmod(abs(value) / unit, 1)
        up = rest > 0.5 or (rest == 0.5 and (ties_away or whole % 2 == 1))
        out.append(np.copysign((whole + up) * unit, value))
    with np.errstate(over="ignore"):
        return np.array(out).astype(np.float32)


TIES = np.array(
    [0x3F808000, 0x3F818000, 0xBF808000, 0x3F801000, 0x3F803000, 0x7F7FFFFF, 0x00018000, 0x00001000], np.uint32
)
AWKWARD = np.concatenate([FLOATS[:248], TIES.view(np.float32)])


@pytest.mark.parametrize(
    ("text", "dropped", "ties_away"),
    [
        ("cvt.rna.tf32.f32 %r1, %f0;", 13, True),
        ("cvt.rn.bf16.f32 %h0, %f0; mov.b32 %r1, {%h1, %h0}; and.b32 %r1, %r1, 0xffff0000;", 16, False),
        ("cvt.rn.bf16.f32 %h0, %f0; cvt.f32.bf16 %f1, %h0; mov.b32 %r1, %f1;", 16, False),
        ("cvt.rn.bf16x2.f32 %r1, %f0, %f0; shl.b32 %r1, %r1, 16;", 16, False),
    ],
)
def test_floats_cut_short(text: str, dropped: int, ties_away: bool) -> None:
    text = "mov.b16 %h1, 0;" + LOADED + text + "st.global.u32 [%d1], %r1;"
    made = results(text, AWKWARD).view(np.float32)
    assert np.array_equal(made, rounded(AWKWARD, dropped, ties_away), equal_nan=True)


def test_flushed_subnormals() -> None:
    small = np.full(256, 1e-39, np.float32)
    assert np.all(results(LOADED + "add.ftz.f32 %f1, %f0, 0f00000000; st.global.f32 [%d1], %f1;", small) == 0)
    kept = results(LOADED + "add.f32 %f1, %f0, 0f00000000; st.global.f32 [%d1], %f1;", small)
    assert np.array_equal(kept.view(np.float32), small)


@pytest.mark.parametrize(
    ("text", "want"),
    [
        ("abs.ftz.f32 %f1, %f2;", 0.0),
        ("neg.ftz.f32 %f1, %f0;", -0.0),
        ("min.ftz.f32 %f1, %f0, 0f7F800000;", 0.0),
        ("max.ftz.f32 %f1, %f2, 0fFF800000;", -0.0),
        ("max.NaN.ftz.f32 %f1, %f0, %f2;", 0.0),
        ("abs.f32 %f1, %f2;", 1e-39),
        ("min.f32 %f1, %f0, 0f7F800000;", 1e-39),
        ("cvt.ftz.sat.f32.f32 %f1, %f0;", 0.0),
        ("slct.ftz.f32.f32 %f1, 0f3F800000, 0f40000000, %f2;", 1.0),
        ("slct.f32.f32 %f1, 0f3F800000, 0f40000000, %f2;", 2.0),
        ("mov.b16 %h0, 0xC2FE; ex2.approx.ftz.bf16 %h1, %h0; cvt.f32.bf16 %f1, %h1;", 0.0),
        ("mov.b16 %h0, 0x0001; ex2.approx.ftz.bf16 %h1, %h0; cvt.f32.bf16 %f1, %h1;", 1.0),
    ],
)
def test_subnormals_of_instructions_that_compute_nothing(text: str, want: float) -> None:
    small = np.full(64, 1e-39, np.float32)
    made = results(LOADED + "neg.f32 %f2, %f0;" + text + "st.global.f32 [%d1], %f1;", small)
    assert np.array_equal(made, np.full(64, want, np.float32).view(np.uint32))


def test_a_match_whose_lanes_are_not_asked_for() -> None:
    text = LOADED + "match.all.sync.b32 _|%p1, %r0, -1; selp.u32 %r1, %r0, 0, %p1; st.global.u32 [%d1], %r1;"
    assert np.array_equal(results(text, np.full(64, 5, np.uint32)), np.full(64, 5))


@pytest.mark.parametrize("order", ORDERS)
def test_lanes_part_and_meet_again(order: int) -> None:
    """A loop that each lane leaves after a number of turns of its own, in which a branch parts them too."""
    text = LOADED + (
        "and.b32 %r2, %r0, 15; mov.u32 %r1, 0; AGAIN: setp.eq.u32 %p0, %r2, 0; @%p0 bra OUT;"
        "and.b32 %r3, %r2, 1; setp.eq.u32 %p1, %r3, 0; @%p1 bra EVEN; add.u32 %r1, %r1, 100; bra NEXT;"
        "EVEN: add.u32 %r1, %r1, 1; NEXT: sub.u32 %r2, %r2, 1; bra AGAIN;"
        "OUT: shfl.sync.idx.b32 %r4, %r1, 0, 31, -1; xor.b32 %r1, %r1, %r4; st.global.u32 [%d1], %r1;"
    )
    turns = WORDS & np.uint32(15)
    sums = (turns // 2) + (turns + 1) // 2 * 100
    assert np.array_equal(results(text, WORDS, order), sums ^ np.repeat(sums[::32], 32))


@pytest.mark.parametrize("order", ORDERS)
def test_lanes_that_end_do_not_hold_up_the_others(order: int) -> None:
    text = (
        LOADED + "setp.lt.u32 %p0, %t, 40; @%p0 bra GO; ret; GO: bar.sync 0; mov.u32 %r1, 9; st.global.u32 [%d1], %r1;"
    )
    assert np.array_equal(results(text, WORDS, order), np.where(np.arange(256) % 64 < 40, 9, 0))


@pytest.mark.parametrize("order", ORDERS)
def test_lanes_come_together_where_some_leave_early(order: int) -> None:
    """One side of a branch has an early return: the lanes of both that go on reach the barrier together."""
    text = LOADED + (
        "and.b32 %r2, %t, 1; setp.eq.u32 %p0, %r2, 0; mov.u32 %r1, 5; @%p0 bra EVEN; "
        "setp.gt.u32 %p1, %t, 50; @%p1 bra END; "
        "add.u32 %r1, %r1, 1; bra MET; EVEN: add.u32 %r1, %r1, 2; MET: bar.sync 0; activemask.b32 %r3; "
        "popc.b32 %r3, %r3; "
        "add.u32 %r1, %r1, %r3; st.global.u32 [%d1], %r1; END:"
    )
    t = np.arange(256) % 64
    together = np.where(t < 32, 32, 32 - 7)
    expected = np.where((t % 2 == 1) & (t > 50), 0, np.where(t % 2 == 0, 7, 6) + together)
    assert np.array_equal(results(text, WORDS, order), expected)


def test_a_branch_to_the_next_instruction_parts_none() -> None:
    text = LOADED + "setp.lt.u32 %p0, %t, 7; @%p0 bra NEXT; NEXT: mov.u32 %r1, 4; bar.sync 0; st.global.u32 [%d1], %r1;"
    assert np.all(results(text, WORDS) == 4)


def test_functions_are_called() -> None:
    square = (
        ".func (.param .b32 out) square(.param .b32 in) { .reg .b32 %x; .reg .b64 %y; ld.param.u32 %x, [in];"
        "setp_not_used: mul.lo.u32 %x, %x, %x; st.param.b32 [out], %x; ret; }"
    )
    call = (
        "{ .param .b32 p; st.param.b32 [p], %r0; .param .b32 q; call.uni (q), square, (p); ld.param.b32 %r1, [q]; }"
        "{ .param .b32 p; st.param.b32 [p], %r1; .param .b32 q; call.uni (q), square, (p); ld.param.b32 %r1, [q]; }"
    )
    out = np.zeros(64, np.uint32)
    made = Run(
        module(LOADED + call + "st.global.u32 [%d1], %r1;", variables=square), [WORDS[:64].copy(), out], block=64
    )
    assert made.reports == []
    assert np.array_equal(out, WORDS[:64] ** 4)


def test_exchanges() -> None:
    lanes = np.arange(256, dtype=np.uint32)
    for text, expected in {
        "shfl.sync.up.b32 %r1|%p0, %r0, 3, 0, -1; @!%p0 mov.u32 %r1, 99;": np.where(lanes % 32 < 3, 99, lanes - 3),
        "shfl.sync.down.b32 %r1, %r0, 1, 0x1807, -1;": np.where(lanes % 8 < 7, lanes + 1, lanes),
        "shfl.sync.bfly.b32 %r1, %r0, 16, 31, -1;": lanes ^ 16,
        "setp.gt.u32 %p0, %r0, 40; vote.sync.ballot.b32 %r1, %p0, -1;": [
            sum(int(32 * warp + lane > 40) << lane for lane in range(32)) for warp in range(8) for _ in range(32)
        ],
        "setp.gt.u32 %p0, %r0, 40; vote.sync.any.pred %p1, %p0, -1; selp.u32 %r1, 1, 0, %p1;": (lanes >= 32) * 1,
        "redux.sync.add.u32 %r1, %r0, -1;": np.repeat(lanes.reshape(-1, 32).sum(1), 32),
        "redux.sync.max.s32 %r1, %r0, -1;": lanes | 31,
        "and.b32 %r2, %r0, 3; match.any.sync.b32 %r1, %r2, -1;": 0x11111111 << (lanes % 4),
        "activemask.b32 %r1;": np.full(256, 2**32 - 1),
        "elect.sync %r1|%p0, -1; selp.u32 %r1, 7, 8, %p0;": np.where(lanes % 32 == 0, 7, 8),
    }.items():
        assert np.array_equal(results(LOADED + text + "st.global.u32 [%d1], %r1;", lanes), np.asarray(expected)), text


@pytest.mark.parametrize("order", ORDERS)
def test_atomics(order: int) -> None:
    total = np.zeros(8, np.uint32)
    text = (
        "mov.u32 %r9, %laneid; red.global.add.u32 [%a0], %r9; red.global.max.u32 [%a0+4], %t; "
        "atom.global.inc.u32 %r1, [%a0+8], 99; "
        "red.global.add.f32 [%a0+12], 0f3F800000; atom.global.cas.b32 %r2, [%a0+16], 0, 5; "
        "atom.global.exch.b32 %r3, [%a0+20], 6; "
        "red.global.or.b32 [%a0+24], %t;"
    )
    assert Run(module(text, 1), [total], block=96, grid=2, order=order).reports == []
    assert list(total[:3]) == [31 * 16 * 6, 95, 92]
    assert total[3:4].view(np.float32)[0] == 192
    assert list(total[4:7]) == [5, 6, 127]


@pytest.mark.parametrize("order", ORDERS)
def test_a_reduction_over_shared_memory(order: int) -> None:
    text = (
        SHARED
        + LOADED
        + (
            "shl.b32 %r2, %t, 2; mov.u32 %r3, tile; add.u32 %r2, %r2, %r3; st.shared.u32 [%r2], %r0; mov.u32 %r4, 32;"
            "AGAIN: bar.sync 0; setp.ge.u32 %p0, %t, %r4; @%p0 bra NEXT; shl.b32 %r5, %r4, 2; add.u32 %r5, %r5, %r2;"
            "ld.shared.u32 %r6, [%r5]; ld.shared.u32 %r7, [%r2]; add.u32 %r7, %r7, %r6; st.shared.u32 [%r2], %r7;"
            "NEXT: shr.u32 %r4, %r4, 1; setp.ne.u32 %p1, %r4, 0; @%p1 bra AGAIN; bar.sync 0;"
            "ld.shared.u32 %r1, [tile]; st.global.u32 [%d1], %r1;"
        )
    )
    assert np.array_equal(results(text, WORDS, order), np.repeat(WORDS.reshape(-1, 64).sum(1, dtype=np.uint32), 64))


def test_policies_of_caches_change_nothing() -> None:
    text = LOADED + (
        "createpolicy.fractional.L2::evict_first.b64 %d5, 1.0;"
        "ld.global.L1::evict_first.L2::cache_hint.b32 %r1, [%d0], %d5;"
        "st.global.L2::cache_hint.b32 [%d1], %r1, %d5; red.global.add.L2::cache_hint.u32 [%d1], 1, %d5;"
    )
    assert np.array_equal(results(text, WORDS), WORDS + np.uint32(1))


@pytest.mark.parametrize("order", ORDERS)
def test_barriers_vote(order: int) -> None:
    text = LOADED + (
        "setp.lt.u32 %p0, %t, 37; barrier.sync.aligned 1, 64; bar.red.popc.u32 %r1, 0, %p0; "
        "bar.red.and.pred %p1, 0, %p0; "
        "bar.red.or.pred %p2, 0, 64, %p0; selp.u32 %r2, 100, 0, %p1; selp.u32 %r3, 1000, 0, %p2; "
        "add.u32 %r1, %r1, %r2; "
        "add.u32 %r1, %r1, %r3; st.global.u32 [%d1], %r1;"
    ).replace("bar.red.or.pred %p2, 0, 64, %p0", "bar.red.or.pred %p2, 0, %p0")
    assert np.all(results(text, WORDS, order) == 1037)


@pytest.mark.parametrize("order", ORDERS)
def test_a_counted_barrier_of_a_block_that_fills_no_warp(order: int) -> None:
    text = "mul.wide.u32 %d2, %t, 4; add.s64 %d0, %a0, %d2; bar.sync 1, 64; st.global.u32 [%d0], %t;"
    out = np.zeros(40, np.uint32)
    assert Run(module(text, 1), [out], block=40, order=order).reports == []
    assert np.array_equal(out, np.arange(40))


@pytest.mark.parametrize("order", ORDERS)
def test_copies_in_groups(order: int) -> None:
    text = (
        SHARED
        + ELEMENTS
        + (
            "shl.b32 %r2, %t, 2; mov.u32 %r3, tile; add.u32 %r2, %r2, %r3; xor.b32 %r4, %r2, 252;"
            "cp.async.ca.shared.global [%r2], [%d0], 4; cp.async.commit_group;"
            "cp.async.ca.shared.global [%r2+1024], [%d0], 4, 0; cp.async.commit_group;"
            "cp.async.wait_group 1; bar.sync 0; ld.shared.u32 %r1, [%r4]; cp.async.wait_all; bar.sync 0;"
            "ld.shared.u32 %r5, [%r4+1024]; add.u32 %r1, %r1, %r5; st.global.u32 [%d1], %r1;"
        )
    )
    assert np.array_equal(results(text, WORDS, order), WORDS.reshape(-1, 64)[:, ::-1].ravel())


BULK = (
    SHARED
    + ELEMENTS
    + (
        "mov.u32 %r2, tile; mov.u32 %r3, phase; setp.ne.u32 %p0, %t, 0; @%p0 bra READY; "
        "mbarrier.init.shared.b64 [%r3], 1; fence.mbarrier_init.release.cluster; "
        "READY: bar.sync 0; @%p0 bra WAIT; mbarrier.arrive.expect_tx.shared.b64 %d2, [%r3], 256;"
        "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%r2], [%d0], 256, [%r3];"
        "WAIT: {wait} shl.b32 %r4, %t, 2; add.u32 %r4, %r4, %r2; ld.shared.u32 %r1, [%r4]; add.u32 %r1, %r1, 1;"
        "st.shared.u32 [%r4], %r1; {fence} bar.sync 0; @%p0 bra DONE;"
        "cp.async.bulk.global.shared::cta.bulk_group [%d1], [%r2], 256; cp.async.bulk.commit_group; {drain} DONE:"
    )
)
WAIT = "AGAIN: mbarrier.try_wait.parity.shared.b64 %p1, [%r3], 0; @!%p1 bra AGAIN;"
FENCE, DRAIN = "fence.proxy.async.shared::cta;", "cp.async.bulk.wait_group 0;"


@pytest.mark.parametrize("order", ORDERS)
def test_bulk_copies(order: int) -> None:
    text = BULK.format(wait=WAIT, fence=FENCE, drain=DRAIN)
    assert np.array_equal(results(text, WORDS, order), WORDS + np.uint32(1))


def test_bulk_copies_are_counted() -> None:
    """256 bytes in and 256 out, by one request each, whatever lies between is shared memory."""
    room = np.zeros(2 * 64 + 16, np.uint32)
    first = -room.ctypes.data % 64 // 4
    given, made = room[first : first + 64], room[first + 64 : first + 128]
    counters = Run(module(BULK.format(wait=WAIT, fence=FENCE, drain=DRAIN)), [given, made], block=64).counters
    assert (counters.global_requests, counters.global_sectors, counters.global_ideal_sectors) == (2, 16, 16)
    assert (counters.global_bytes_read, counters.global_bytes_written) == (256, 256)


def test_lanes_that_copy_nothing_read_nothing() -> None:
    text = SHARED + (
        "mul.wide.u32 %d2, %t, 4; add.s64 %d2, %a0, %d2; mov.u32 %r2, tile; shl.b32 %r3, %t, 2; add.u32 %r3, %r3, %r2; "
        "and.b32 %r4, %t, 1; shl.b32 %r4, %r4, 2; "
        "cp.async.ca.shared.global [%r3], [%d2], 4, %r4; cp.async.wait_all; "
        "cp.async.ca.shared.global [%r3], [%d2], 4, 0; cp.async.wait_all; "
    )
    counters = Run(module(text, 1), [np.zeros(32, np.uint32)]).counters
    assert (counters.global_requests, counters.global_bytes_read) == (1, 64)


def test_results_do_not_depend_on_the_checks() -> None:
    text = BULK.format(wait=WAIT, fence=FENCE, drain=DRAIN)
    for checks in (
        frozenset[str](),
        CHECKS - {"race-shared", "race-global", "proxy-fence"},
        CHECKS - {"uninitialised"},
    ):
        assert np.array_equal(results(text, WORDS, checks=checks), WORDS + np.uint32(1))


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize(
    ("parts", "check"),
    [
        ({"wait": "", "fence": FENCE, "drain": DRAIN}, "copy-not-awaited"),
        ({"wait": WAIT, "fence": "", "drain": DRAIN}, "proxy-fence"),
        ({"wait": WAIT, "fence": FENCE, "drain": ""}, "copy-not-awaited"),
    ],
)
def test_bulk_copies_that_lack_something(parts: dict[str, str], check: str, order: int) -> None:
    out = np.zeros(64, np.uint32)
    assert check in Run(module(BULK.format(**parts)), [WORDS[:64].copy(), out], block=64, order=order).checks


CLUSTER = (
    SHARED
    + ELEMENTS
    + (
        "mov.u32 %r2, tile; shl.b32 %r3, %t, 2; add.u32 %r2, %r2, %r3; mov.u32 %r4, %cluster_ctarank; "
        "xor.b32 %r5, %r4, 1; "
        "ld.global.u32 %r0, [%d0]; mapa.shared::cluster.u32 %r6, %r2, %r5; st.shared::cluster.u32 [%r6], %r0; {}"
        "ld.shared.u32 %r1, [%r2]; st.global.u32 [%d1], %r1;"
    )
)
MEET = "barrier.cluster.arrive.aligned; barrier.cluster.wait.aligned;"


@pytest.mark.parametrize("order", ORDERS)
def test_clusters(order: int) -> None:
    made = results(CLUSTER.format(MEET), WORDS, order, cluster=2)
    assert np.array_equal(made, WORDS.reshape(-1, 2, 64)[:, ::-1].ravel())
    for meeting in ("", MEET.replace("arrive", "arrive.relaxed")):
        out = np.zeros(256, np.uint32)
        text = module(CLUSTER.format(meeting))
        assert "race-shared" in Run(text, [WORDS.copy(), out], block=64, grid=4, cluster=2, order=order).checks


COOPERATIVE = LOADED + (
    "add.u32 %r0, %r0, 1; st.global.u32 [%d0], %r0; bar.sync 0; setp.ne.u32 %p0, %t, 0; @%p0 bra MET; {fence}"
    "red.global.add.u32 [%a1+2048], 1; AGAIN: ld.volatile.global.u32 %r2, [%a1+2048]; "
    "setp.lt.u32 %p1, %r2, 4; @%p1 bra AGAIN; {fence}"
    "MET: bar.sync 0; xor.b32 %r3, %r72, 192; mul.wide.u32 %d2, %r3, 4; add.s64 %d2, %a0, %d2; "
    "ld.global.u32 %r1, [%d2]; "
    "st.global.u32 [%d1], %r1;"
)


@pytest.mark.parametrize("order", ORDERS)
def test_cooperative_grids(order: int) -> None:
    for fence, expected in (("membar.gl;", set()), ("", {"race-global"})):
        out = np.zeros(513, np.uint32)
        text = COOPERATIVE.format(fence=fence)
        made = Run(module(text), [WORDS.copy(), out], block=64, grid=4, order=order, cooperative=True)
        assert made.checks == expected, made.reports
        assert np.array_equal(out[:256], (WORDS + np.uint32(1)).reshape(4, 64)[::-1].ravel())


def test_matrices_through_shared_memory() -> None:
    """ldmatrix of a matrix and of its transpose, and stmatrix back."""
    text = SHARED + (
        "mov.u32 %r2, tile; and.b32 %r3, %t, 7; shl.b32 %r3, %r3, 4; add.u32 %r2, %r2, %r3; "
        "setp.ge.u32 %p0, %t, 8; @%p0 bra SKIP; "
        "shl.b32 %r4, %t, 4; cvt.u64.u32 %d2, %r4; add.s64 %d2, %a0, %d2; "
        "ld.global.v4.u32 {%r5, %r6, %r7, %r8}, [%d2]; "
        "st.shared.v4.u32 [%r2], {%r5, %r6, %r7, %r8}; SKIP: bar.warp.sync -1;"
        "ldmatrix.sync.aligned.m8n8.x1.trans.shared.b16 {%r9}, [%r2];"
        "stmatrix.sync.aligned.m8n8.x1.shared.b16 [%r2+512], {%r9}; bar.warp.sync -1; shl.b32 %r3, %t, 2; "
        "mov.u32 %r10, tile; "
        "add.u32 %r10, %r10, %r3; ld.shared.u32 %r1, [%r10+512]; cvt.u64.u32 %d3, %r3; "
        "add.s64 %d3, %a1, %d3; st.global.u32 [%d3], %r1; "
    )
    matrix, out = np.arange(64, dtype=np.uint16), np.zeros(64, np.uint16)
    assert Run(module(text), [matrix, out]).reports == []
    assert np.array_equal(out.reshape(8, 8), matrix.reshape(8, 8).T)


def test_counters() -> None:
    text = SHARED + (
        "mul.wide.u32 %d2, %t, 4; add.s64 %d2, %a0, %d2; ld.global.u32 %r0, [%d2]; mul.wide.u32 %d3, %t, 64; "
        "add.s64 %d3, %a0, %d3; "
        "ld.global.u32 %r1, [%d3]; mov.u32 %r2, tile; shl.b32 %r3, %t, 7; add.u32 %r3, %r3, %r2; "
        "st.shared.u32 [%r3], %r0; bar.sync 0; "
    )
    room = np.zeros(512 + 16, np.uint32)
    start = -room.ctypes.data % 64 // 4
    made = Run(module(text, 1), [room[start : start + 512]])
    assert made.reports == []
    counters = made.counters
    assert (counters.global_requests, counters.global_sectors, counters.global_ideal_sectors) == (2, 4 + 32, 8)
    assert (counters.shared_requests, counters.shared_wavefronts, counters.shared_ideal_wavefronts) == (1, 32, 1)
    assert (counters.global_bytes_read, counters.barriers) == (256, 1)
    assert counters.thread_instructions == 32 * counters.warp_instructions
    classes = counters.floating_point + counters.integer + counters.control + counters.memory
    assert classes == counters.warp_instructions
    assert (counters + counters).global_requests == 4
    assert [(spot.taken, spot.ideal, spot.text.split(".")[0]) for spot in made.worst] == [(32, 1, "st"), (32, 4, "ld")]
    assert {spot.source for spot in made.worst} == {"kernel.cu:1"}
