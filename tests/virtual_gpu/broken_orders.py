"""Broken kernels: accesses that nothing orders, copies that nothing awaits, threads that do not meet."""

from tests.virtual_gpu.broken import ELEMENTS, OF_TILE, SHARED, Case

# Each lane writes an element of the tile, and reads its neighbour's.
LANES_MEET = (
    SHARED
    + OF_TILE
    + ELEMENTS
    + "st.shared.u32 [%r0], %t; {} xor.b32 %r3, %r0, 4; ld.shared.u32 %r2, [%r3]; st.global.u32 [%d1], %r2;"
)
# An mbarrier that awaits so many arrivals, made by the thread that %p0 leaves out; and what comes after its making.
MADE = (
    ".shared .align 8 .b8 phase[8];\nmov.u32 %r9, phase; setp.ne.u32 %p0, %t, 0; @%p0 bra MADE; "
    "mbarrier.init.shared.b64 [%r9], {}; {} MADE: bar.warp.sync -1;\n"
)
FENCE = "fence.proxy.async.shared::cta;"
ARRIVE = "mbarrier.arrive.shared.b64 %d2, [%r9];"
AWAIT = "AGAIN: mbarrier.try_wait.parity.shared.b64 %p1, [%r9], 0; @!%p1 bra AGAIN;"
BULK = (
    "mbarrier.arrive.expect_tx.shared.b64 %d2, [%r9], 128; mov.u32 %r8, tile;"
    "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%r8+128], [%a0], 128, [%r9];"
)
# A bulk copy of the tile, by the first lane.
STORED = (
    SHARED
    + OF_TILE
    + "st.shared.u32 [%r0], %t; fence.proxy.async; bar.warp.sync -1; setp.ne.u32 %p0, %t, 0; @%p0 bra END;"
    + "cp.async.bulk.global.shared::cta.bulk_group [%a1], [%r1], 128; cp.async.bulk.commit_group;"
)
# A product of a warp group with a matrix in shared memory, added to four registers.
PRODUCT = (
    SHARED
    + OF_TILE
    + ELEMENTS
    + "st.shared.u32 [%r0], %t; fence.proxy.async.shared::cta; bar.sync 0; shr.u32 %r2, %r1, 4; cvt.u64.u32 %d3, %r2;"
    + "or.b64 %d3, %d3, 0x1000080000; mov.f32 %f0, 0f3F800000; mov.f32 %f1, %f0; mov.f32 %f2, %f0; mov.f32 %f3, %f0;"
    + "mov.b32 %r4, 0; wgmma.fence.sync.aligned; wgmma.mma_async.sync.aligned.m64n8k8.f32.tf32.tf32 "
    + "{{%f0, %f1, %f2, %f3}}, {{%r4, %r4, %r4, %r4}}, %d3, 1, 1, 1; wgmma.commit_group.sync.aligned; {}"
)

ORDERS_OF_THREADS = [
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
        "a fence of memory in place of bar.warp.sync",
        "race-shared",
        LANES_MEET,
        "membar.gl;",
        "bar.warp.sync -1;",
    ),
    Case(
        "a fence of the proxies in place of bar.warp.sync",
        "race-shared",
        LANES_MEET,
        "fence.proxy.async.shared::cta;",
        "fence.proxy.async.shared::cta; bar.warp.sync -1;",
    ),
    Case(
        "an arrival without a wait in place of bar.warp.sync",
        "race-shared",
        MADE.format(32, FENCE) + LANES_MEET,
        ARRIVE,
        ARRIVE + AWAIT,
    ),
    Case(
        "a write after a read that the writer's own one followed",
        "race-shared",
        SHARED
        + OF_TILE
        + "mov.u32 %r4, tile; setp.eq.u32 %p0, %t, 7; setp.eq.u32 %p1, %t, 8; mov.u32 %r5, 1;"
        + "@%p0 st.shared.u32 [%r4], %r5; bar.warp.sync -1; @%p1 ld.shared.u32 %r6, [%r4]; membar.gl;"
        + "@%p0 ld.shared.u32 %r6, [%r4]; {} @%p0 st.shared.u32 [%r4], %t;",
        "",
        "bar.warp.sync -1;",
    ),
    Case(
        "a bulk copy to what other lanes read",
        "race-shared",
        SHARED
        + MADE.format(1, FENCE)
        + OF_TILE
        + "st.shared.u32 [%r0+128], %t; fence.proxy.async.shared::cta; bar.warp.sync -1; "
        + "ld.shared.u32 %r2, [%r0+128]; {} @%p0 bra WAIT;"
        + BULK
        + "WAIT:"
        + AWAIT
        + ELEMENTS
        + "st.global.u32 [%d1], %r2;",
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
        {"grid": 4, "zeros": True},
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
        "a lane that writes what its own bulk copy has yet to read",
        "race-global",
        SHARED
        + MADE.format(1, FENCE)
        + "@%p0 bra WAIT;"
        + BULK
        + "mov.u32 %r3, 7; {} WAIT:"
        + AWAIT
        + "@!%p0 st.global.u32 [%a0], %r3;",
        "st.global.u32 [%a0+4], %r3;",
        "st.global.u32 [%a0+128], %r3;",
    ),
    Case(
        "a copy whose source another lane writes before the wait",
        "race-global",
        SHARED
        + OF_TILE
        + ELEMENTS
        + "xor.b64 %d2, %d0, 4; cp.async.ca.shared.global [%r0], [%d0], 4; cp.async.commit_group; {} "
        + "st.global.u32 [%d2], %t; bar.warp.sync -1; cp.async.wait_group 0; "
        + "ld.shared.u32 %r2, [%r0]; st.global.u32 [%d1], %r2;",
        "",
        "cp.async.wait_group 0; bar.warp.sync -1;",
    ),
    Case(
        "a lane that writes what its own bulk copy has yet to write",
        "race-global",
        STORED + "{} st.global.u32 [%a1+4], %t; cp.async.bulk.wait_group 0; END:",
        "",
        "cp.async.bulk.wait_group 0;",
    ),
    Case(
        "a lane that awaits the bulk copies of another",
        "copy-not-awaited",
        STORED + "cp.async.bulk.wait_group 1; END: {} bar.warp.sync -1; @!%p0 st.shared.u32 [%r1], %t;",
        "@%p0 cp.async.bulk.wait_group 0;",
        "@!%p0 cp.async.bulk.wait_group 0;",
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
        "blocks of a cluster that arrive again before they have waited",
        "barrier-count",
        "barrier.cluster.arrive.aligned; {} barrier.cluster.wait.aligned;",
        "barrier.cluster.arrive.aligned;",
        "barrier.cluster.wait.aligned; barrier.cluster.arrive.aligned;",
        {"grid": 2, "cluster": 2},
    ),
    Case(
        "blocks of a cluster that wait and have not arrived",
        "barrier-count",
        "barrier.cluster.arrive.aligned; barrier.cluster.wait.aligned; {}",
        "barrier.cluster.wait.aligned;",
        "",
        {"grid": 2, "cluster": 2},
    ),
    Case(
        "a bulk copy from what was written without a fence",
        "proxy-fence",
        SHARED + OF_TILE + "st.shared.u32 [%r0], %t; {} bar.warp.sync -1; setp.ne.u32 %p0, %t, 0; @%p0 bra END;"
        "cp.async.bulk.global.shared::cta.bulk_group [%a1], [%r1], 128; cp.async.bulk.commit_group;"
        "cp.async.bulk.wait_group 0; END:",
        "",
        FENCE,
    ),
    Case(
        "a fence for bulk copies of global memory alone",
        "proxy-fence",
        SHARED + OF_TILE + "st.shared.u32 [%r0], %t; {} bar.warp.sync -1; setp.ne.u32 %p0, %t, 0; @%p0 bra END;"
        "cp.async.bulk.global.shared::cta.bulk_group [%a1], [%r1], 128; cp.async.bulk.commit_group;"
        "cp.async.bulk.wait_group 0; END:",
        "fence.proxy.async.global;",
        "fence.proxy.async;",
    ),
    Case(
        "a bulk copy that ends at an mbarrier made without a fence",
        "proxy-fence",
        SHARED + MADE.format(1, "{}") + "@%p0 bra END;" + BULK + AWAIT + "END:",
        "",
        "fence.mbarrier_init.release.cluster;",
    ),
    Case(
        "a register that a product under way adds to",
        "pending-register",
        PRODUCT + "st.global.f32 [%d1], %f0;",
        "",
        "wgmma.wait_group.sync.aligned 0;",
        {"block": 128, "ignore": {"copy-not-awaited"}},
    ),
    Case(
        "a register that a product under way reads",
        "pending-register",
        PRODUCT.replace("%r4, %r4}}", "%r4, %r5}}").replace("mov.b32 %r4", "mov.b32 %r5, 0; mov.b32 %r4")
        + "mov.b32 %r5, 1; wgmma.wait_group.sync.aligned 0; st.global.f32 [%d1], %f0;",
        "",
        "wgmma.wait_group.sync.aligned 0;",
        {"block": 128},
    ),
    Case(
        "threads that store one value to one place",
        "replicated-store",
        SHARED + OF_TILE + "mov.u32 %r5, 3; {}",
        "st.shared.u32 [%r1], %r5;",
        "st.shared.u32 [%r0], %r5;",
        {"checks": {"replicated-store"}},
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
