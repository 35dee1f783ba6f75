"""Kernels with tensor cores: fragments in registers, matrices in shared memory that wgmma reads late."""

import numpy as np
import pytest

from tests.virtual_gpu.assembly import ORDERS, Run, module

rng = np.random.default_rng(1)


def test_a_product_of_doubles() -> None:
    """mma.m8n8k4: lane l holds A[l / 4][l % 4], B[l % 4][l / 4] and two of C[l / 4]."""
    text = (
        "mul.wide.u32 %d2, %t, 8; add.s64 %d0, %a0, %d2; ld.global.f64 %g0, [%d0]; ld.global.f64 %g1, [%d0+256];"
        "mov.f64 %g2, 0d0000000000000000; mov.f64 %g3, 0d0000000000000000;"
        "mma.sync.aligned.m8n8k4.row.col.f64.f64.f64.f64 {%g2, %g3}, {%g0}, {%g1}, {%g2, %g3};"
        "shl.b64 %d3, %d2, 1; add.s64 %d1, %a1, %d3; st.global.v2.f64 [%d1], {%g2, %g3};"
    )
    a, b, out = rng.standard_normal((8, 4)), rng.standard_normal((4, 8)), np.zeros((8, 8))
    operands = np.concatenate([a.ravel(), b.T.ravel()])
    made = Run(module(text), [operands, out])
    assert made.reports == []
    assert made.counters.tensor_operations == 1
    assert np.allclose(out, a @ b, rtol=1e-15, atol=1e-15)


def test_undefined_rows_stay_where_they_are() -> None:
    """Lanes 16 to 31 hold the last four rows of A, undefined: so are those rows of the product, and no others."""
    text = (
        "mul.wide.u32 %d2, %t, 8; add.s64 %d0, %a0, %d2; setp.lt.u32 %p0, %t, 16; @%p0 ld.global.f64 %g0, [%d0];"
        "ld.global.f64 %g1, [%d0+256]; mov.f64 %g2, 0d0000000000000000;"
        "mma.sync.aligned.m8n8k4.row.col.f64.f64.f64.f64 {%g4, %g5}, {%g0}, {%g1}, {%g2, %g2};"
        "shl.b64 %d3, %d2, 1; add.s64 %d1, %a1, %d3; {guard} st.global.v2.f64 [%d1], {%g4, %g5};"
    )
    operands, out = rng.standard_normal(64), np.zeros((8, 8))
    assert Run(module(text.replace("{guard}", "@%p0")), [operands, out]).reports == []
    assert Run(module(text.replace("{guard}", "")), [operands, out]).checks == {"uninitialised"}


# A is 64 x 8, B 8 x 8 and transposed, in atoms of 8 rows of 16 bytes: 128 bytes to the next along K, 256 along rows.
STAGED = """
.shared .align 1024 .b8 tile[4096];
mov.u32 %r1, tile; shr.u32 %r2, %t, 4; shl.b32 %r2, %r2, 8; shr.u32 %r3, %t, 1; and.b32 %r3, %r3, 7;
shl.b32 %r3, %r3, 4; and.b32 %r4, %t, 1; shl.b32 %r4, %r4, 7; add.u32 %r5, %r1, %r2;
add.u32 %r5, %r5, %r3; add.u32 %r5, %r5, %r4;
mul.wide.u32 %d2, %t, 16; add.s64 %d0, %a0, %d2; ld.global.v4.u32 {%r6, %r7, %r8, %r9}, [%d0];
st.shared.v4.u32 [%r5], {%r6, %r7, %r8, %r9}; setp.ge.u32 %p0, %t, 16; @%p0 bra STAGED;
ld.global.v4.u32 {%r6, %r7, %r8, %r9}, [%d0+2048]; st.shared.v4.u32 [%r5+2048], {%r6, %r7, %r8, %r9};
STAGED:
"""
PRODUCT = """
shr.u32 %r10, %r1, 4; cvt.u64.u32 %d3, %r10; or.b64 %d3, %d3, 0x1000080000; add.s64 %d4, %d3, 128;
mov.f32 %f0, 0f3F800000; mov.f32 %f1, %f0; mov.f32 %f2, %f0; mov.f32 %f3, %f0;
wgmma.fence.sync.aligned;
wgmma.mma_async.sync.aligned.m64n8k8.f32.tf32.tf32 {%f0, %f1, %f2, %f3}, %d3, %d4, 1, 1, 1;
wgmma.commit_group.sync.aligned;
"""
STORED = """
shr.u32 %r11, %t, 2; and.b32 %r12, %r11, 7; shr.u32 %r13, %t, 5; shl.b32 %r13, %r13, 4; add.u32 %r12, %r12, %r13;
shl.b32 %r12, %r12, 3; and.b32 %r14, %t, 3; shl.b32 %r14, %r14, 1; add.u32 %r12, %r12, %r14; mul.wide.u32 %d5, %r12, 4;
add.s64 %d5, %a1, %d5; st.global.v2.f32 [%d5], {%f0, %f1}; st.global.v2.f32 [%d5+256], {%f2, %f3};
"""
FENCE, MEET, WAIT = "fence.proxy.async.shared::cta;", "bar.sync 0;", "wgmma.wait_group.sync.aligned 0;"
OVERWRITTEN = "st.shared.v4.u32 [%r5], {%r6, %r6, %r6, %r6};"


def group_product(text: str, order: int) -> tuple[set[str], np.ndarray, np.ndarray]:
    """The checks that found something, the product, and what it is to be."""
    a = rng.integers(-4, 5, (64, 8)).astype(np.float32)
    b = rng.integers(-4, 5, (8, 8)).astype(np.float32)
    out = np.zeros((64, 8), np.float32)
    made = Run(module(text), [np.concatenate([a.ravel(), b.T.ravel()]), out], block=128, order=order)
    return made.checks, out, a @ b + 1


@pytest.mark.parametrize("order", ORDERS)
def test_a_product_of_four_warps(order: int) -> None:
    found, out, expected = group_product(STAGED + FENCE + MEET + PRODUCT + WAIT + STORED, order)
    assert found == set()
    assert np.array_equal(out, expected)


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize(
    ("text", "check"),
    [
        (STAGED + MEET + PRODUCT + WAIT + STORED, "proxy-fence"),
        (STAGED + FENCE + PRODUCT + WAIT + STORED, "race-shared"),
        (STAGED + FENCE + MEET + PRODUCT + STORED + WAIT, "pending-register"),
        (STAGED + FENCE + MEET + PRODUCT + OVERWRITTEN + WAIT + STORED, "race-shared"),
        (STAGED + FENCE + MEET + PRODUCT, "copy-not-awaited"),
    ],
    ids=["no fence of the proxies", "no barrier", "read too early", "overwritten too early", "never awaited"],
)
def test_a_product_that_lacks_something(text: str, check: str, order: int) -> None:
    assert check in group_product(text, order)[0]
