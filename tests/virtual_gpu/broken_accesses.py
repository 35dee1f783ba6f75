"""Broken kernels: accesses out of bounds, of inputs, and of what nothing wrote."""

from tests.virtual_gpu.broken import ELEMENTS, OF_TILE, SHARED, Case

ACCESSES = [
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
]
