"""Edits of the PTX that nvcc made of CUDA kernels, and calls that are clean with the kernels as they are."""

import mmap
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from benchmarks.gpu.virtual_cuda.devices import AMPERE, HOPPER, SMALL
from memformer_kernels import (
    SGD,
    FixedTasks,
    GaussianStatistics,
    context_gram,
    lfom_solve,
    memformer_loss,
    memformer_predict,
)
from memformer_kernels.training import cuda
from tests.memformer_kernels.cases import normal, seeded
from tests.memformer_kernels.training.runs import state
from tests.virtual_gpu.faults import Fault

D = 2


def solve(h: Tensor, grads: bool = False) -> None:
    generator, tasks, d = seeded(1), h.shape[0], h.shape[-1]
    h, b, a = (x.detach().requires_grad_(grads) for x in (h, normal(generator, tasks, d), normal(generator, 2, d, d)))
    found = lfom_solve(h, b.to(h.dtype), a.to(h.dtype), backend="cuda")
    if grads:
        found.square().sum().backward()


def quadratics(tasks: int, d: int = D) -> Tensor:
    return normal(seeded(), tasks, d, d).float() / 4


def _far_quadratics() -> Tensor:
    """Tasks that lie a little more than 2^30 bytes apart: the third begins past what 32 bits count."""
    tasks, apart = 3, 2**28 + 4
    reserve_nothing = 0x4000
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | reserve_nothing
    room = torch.frombuffer(mmap.mmap(-1, 4 * tasks * apart, flags=flags), dtype=torch.float32)
    return room.as_strided((tasks, D, D), (apart, D, 1))


def _unaligned_quadratics() -> Tensor:
    return torch.cat([torch.zeros(1), quadratics(35).flatten()])[1:].view(35, D, D)


def _strided_halves() -> None:
    z = normal(seeded(), 5, 9, 6).half()[..., ::2]
    memformer_predict(z, torch.full((2, 1, D, D), 0.01), backend="cuda", algorithm="gram")


def _loss_of_many_tasks() -> None:
    """One more than the block that adds up their sums takes: there are two, and the last one adds up both's."""
    z, q, target = normal(seeded(), 16385, 2, 2).float(), torch.full((1, 1, 1, 1), 0.1), torch.ones(16385, 1)
    memformer_loss(z, target, q, backend="cuda", algorithm="gram")


def _token_loss() -> None:
    z, q, target = normal(seeded(), 5, 9, 6).float(), torch.full((2, 1, 5, 5), 0.01), torch.ones(5, 3)
    options: dict[str, Any] = {"context": 6, "queries": 3, "backend": "cuda", "algorithm": "token"}
    memformer_loss(z, target, q.requires_grad_(), **options).backward()


def _train() -> None:
    sampler, losses = GaussianStatistics(3, 8, 300, query="integrated"), torch.full((2, 1), torch.nan).double()
    cuda.train(state(1, dtype=torch.float32), sampler, SGD(0.1), None, losses, launches="persistent")


def _train_in_epochs() -> None:
    """Batches of fewer tasks than a block has lanes, whose numbers end with the last step's."""
    sampler = FixedTasks(normal(seeded(), 40, 9, 4).float(), normal(seeded(1), 40, 1).float(), 8, batch=20)
    losses = torch.full((2, 1), torch.nan).double()
    cuda.train(state(1, dtype=torch.float32), sampler, SGD(0.1), None, losses, launches="persistent")


def _train_a_stopped_model() -> None:
    """Launch by launch; once a model has skipped a step, nothing stands between what it reads and what it writes."""
    held, losses = state(1, dtype=torch.float32), torch.full((3, 1), torch.nan).double()
    held.parameters["q"].fill_(torch.nan)
    cuda.train(held, GaussianStatistics(3, 8, 40), SGD(0.1), 1, losses, launches="replay")


class Call(NamedTuple):
    """A call on a device of benchmarks.gpu.virtual_cuda.devices."""

    run: Callable[[], object]
    device: int


CALLS = {
    "solve": Call(lambda: solve(quadratics(35)), HOPPER),
    "solve on an A100": Call(lambda: solve(quadratics(35)), AMPERE),
    "solve, unaligned": Call(lambda: solve(_unaligned_quadratics()), HOPPER),
    "solve, far apart": Call(lambda: solve(_far_quadratics()), HOPPER),
    "solve, two tiles a block": Call(lambda: solve(quadratics(545)), SMALL),
    "gradients": Call(lambda: solve(quadratics(35), grads=True), HOPPER),
    "gradients, two tiles a block": Call(lambda: solve(quadratics(545), grads=True), SMALL),
    "loss of many tasks": Call(_loss_of_many_tasks, HOPPER),
    "predict from halves": Call(_strided_halves, HOPPER),
    "gram": Call(lambda: context_gram(normal(seeded(), 5, 9, 3).float(), 8), HOPPER),
    "gram on an A100": Call(lambda: context_gram(normal(seeded(), 5, 9, 3).float(), 8), AMPERE),
    "token loss": Call(_token_loss, HOPPER),
    "train": Call(_train, HOPPER),
    "train in epochs": Call(_train_in_epochs, HOPPER),
    "train a stopped model": Call(_train_a_stopped_model, HOPPER),
    "train on an A100": Call(_train, AMPERE),
}


@dataclass(frozen=True)
class Edit:
    """A pattern that stands at so many places of the kernel, or of a function that it calls, and what is put there.

    `kernel` and `function` are patterns of mangled names.
    """

    call: str
    kernel: str
    check: str
    pattern: str
    wrong: str = ""
    places: int = 1
    function: str = ""

    def fault(self, what: str) -> Fault:
        """As the page lists it."""
        kernel = re.match(r"\w+", self.kernel)
        assert kernel is not None
        return Fault(what, kernel[0], 80 if CALLS[self.call].device == AMPERE else 90, self.check)


# Ways of csrc/cuda/machine/execution.cuh to wait and to announce.
POLL = r"(mbarrier\.(?:try|test)_wait[^\n]*\n)setp\.eq\.s32 (%p\d+), %r\d+, 0;\n@\2 bra \$L\w+;\n"
EXPECT = r"(mbarrier\.arrive\.expect_tx\.shared\.b64 state, \[%r\d+\], )(%r\d+);"
MEET_IN_CLUSTER = r"barrier\.cluster\.(?:arrive\.release|wait\.acquire)\.aligned;\n"
MEET_IN_GRID = (
    r"\$L\w+:\nld\.volatile\.global\.u32 (%r\d+), [^\n]*\nsetp\.lt\.u32 (%p\d+), \1, %r\d+;\n@\2 bra \$L\w+;\n"
)
# Of Totals: what the warps have added up, and the barrier before other warps add that up.
STORE_AND_SYNC = r"(st\.shared\.f\d\d [^\n]*\n(?:(?!bar\.)[^\n]*\n)*?)bar\.sync 0;\n"
# Where each unit's sums go: the unit's number times their count, before the loop that adds up two rows of them.
UNIT = (
    r"mul\.lo\.s64 (%rd\d+), %rd\d+, %rd\d+;\n"
    r"(?=(?:[^\n]*\n){1,4}\$L\w+:\n\.pragma[^\n]*\n(?:[^\n]*\n){1,8}ld\.shared\.f32[^\n]*\nld\.shared\.f32)"
)

FAULTS = {
    "a warp's barrier after rows have come dropped": Edit(
        "gram", "ContextGram", "race-shared", r"bar\.warp\.sync -1;\n", function="load_rows"
    ),
    "the same barrier, on an A100": Edit(
        "gram on an A100", "ContextGram", "race-shared", r"bar\.warp\.sync -1;\n", function="load_rows"
    ),
    "a warp's barrier before the next tile dropped": Edit(
        "solve, two tiles a block",
        "QuadraticsKernel",
        "race-shared",
        r"(ld\.shared\.v2[^\n]*\n(?:(?!bar\.|\$L|ld\.)[^\n]*\n)*)bar\.warp\.sync -1;\n",
        r"\1",
    ),
    "a block's barrier between sums of warps and of the block dropped": Edit(
        "gradients", "Totals", "race-shared", STORE_AND_SYNC, r"\1", places=2
    ),
    "a block's barrier reached by threads that have a column": Edit(
        "gradients",
        "Totals",
        "divergent-barrier",
        STORE_AND_SYNC,
        r"\1{ .reg .pred few; .reg .b32 t; mov.u32 t, %tid.x; setp.lt.u32 few, t, 200; @few bar.sync 0; }" "\n",
        places=2,
    ),
    "an arrival that does not wait for a thread's copies": Edit(
        "solve on an A100",
        "QuadraticsKernel",
        "copy-not-awaited",
        r"cp\.async\.mbarrier\.arrive\.noinc\.shared\.b64 (\[%r\d+\]);",
        r"{ .reg .b64 state; mbarrier.arrive.shared.b64 state, \1; }",
        places=2,
    ),
    "a wait for copies dropped": Edit("solve on an A100", "QuadraticsKernel", "copy-not-awaited", POLL, r"\1"),
    "a wait for a bulk copy dropped": Edit("solve", "QuadraticsKernel", "copy-not-awaited", POLL, r"\1"),
    "a wait for the same parity every time": Edit(
        "solve, two tiles a block",
        "QuadraticsKernel",
        "copy-not-awaited",
        r"(mbarrier\.try_wait\.parity\.shared\.b64 p, \[%r\d+\], )%r\d+",
        r"\g<1>0",
    ),
    "more bytes announced than are copied": Edit(
        "solve",
        "QuadraticsKernel",
        "deadlock",
        EXPECT,
        r".reg .b32 more; add.u32 more, \2, 16; \1more;",
        places=2,
    ),
    "an mbarrier that nobody makes": Edit("solve", "QuadraticsKernel", "mbarrier", r"mbarrier\.init[^\n]*\n"),
    "a fence between a tile's writes and its next bulk copy dropped": Edit(
        "gradients, two tiles a block",
        "QuadraticsKernel.*Lb1",
        "proxy-fence",
        r"fence\.proxy\.async\.shared::cta;\n(bar\.warp\.sync -1;\n)",
        r"\1",
    ),
    "a fence after an mbarrier is made dropped": Edit(
        "solve",
        "QuadraticsKernel",
        "proxy-fence",
        r"(mbarrier\.init[^\n]*\n)fence\.proxy\.async\.shared::cta;\n",
        r"\1",
    ),
    "a bulk copy from any address": Edit(
        "solve, unaligned", "QuadraticsKernel", "misaligned", r"(and\.b64 %rd\d+, %rd\d+, )15;", r"\g<1>0;", places=2
    ),
    "the last tile taken for a whole one": Edit(
        "solve",
        "QuadraticsKernel",
        "out-of-bounds",
        r"(cvt\.u32\.u64 (%r\d+), %rd\d+;\n)selp\.b32 (%r\d+), \2, (%r\d+), %p\d+;",
        r"\1mov.u32 \3, \4;",
        places=3,
    ),
    "an offset of tasks in 32 bits": Edit(
        "solve, far apart",
        "QuadraticsKernel",
        "out-of-bounds",
        r"mul\.lo\.s64 (%rd\d+), %rd\d+, %rd\d+;\n(?=(?:[^\n]*\n){1,8}cp\.async\.bulk)",
        r"\g<0>{ .reg .b32 narrow; cvt.u32.u64 narrow, \1; cvt.s64.s32 \1, narrow; }" "\n",
        function="start_apart",
    ),
    "halves copied as if they were floats": Edit(
        "predict from halves",
        "ResponseGram",
        "misaligned",
        r"setp\.eq\.s32 (%p\d+), (%r\d+), 4;",
        r"setp.eq.s32 \1, \2, 2;",
        function="start_apart",
    ),
    "a count of blocks in the workspace that nobody clears": Edit(
        "gradients", "QuadraticsKernel.*Lb1", "uninitialised", r"st\.global\.u32 \[%rd\d+\], %r\d+;\n"
    ),
    "sums of all blocks in one unit's place": Edit(
        "gradients", "QuadraticsKernel.*Lb1", "race-global", UNIT, r"mov.u64 \1, 0;" "\n"
    ),
    "fences around the count of blocks dropped": Edit(
        "loss of many tasks", "Totals", "race-global", r"membar\.gl;\n", places=2
    ),
    "a warp's barrier between residuals and gradients dropped": Edit(
        "token loss",
        "ResponseTokens",
        "race-shared",
        r"(@%p\d+ bra \$L\w+;\n)bar\.warp\.sync -1;\n(?=@%p\d+ bra)",
        r"\1",
    ),
    "lanes past the last task that make one of their own": Edit(
        "train in epochs",
        "TrainSteps.*TokenTask",
        "out-of-bounds",
        r"setp\.ge\.s64 (%p\d+), (%rd\d+), %rd\d+;\n(?=cvt\.u32\.u64)",
        r"setp.ne.s64 \1, \2, \2;" "\n",
    ),
    "a block's barrier between what it reads of progress and what it writes dropped": Edit(
        "train a stopped model",
        "TrainSteps",
        "race-global",
        r"(@%p\d+ bra \$L\w+;\nbra\.uni \$L\w+;\n\$L\w+:\n)bar\.sync 0;\n"
        r"(?=bra\.uni \$L\w+;\n\$L\w+:\nbarrier\.cluster\.arrive)",
        r"\1",
    ),
    "a cluster's barrier that hands nothing on": Edit(
        "train", "TrainSteps", "race-global", r"barrier\.cluster\.arrive\.release", "barrier.cluster.arrive.relaxed", 2
    ),
    "a cluster's barrier between steps dropped": Edit("train", "TrainSteps", "race-global", MEET_IN_CLUSTER, places=4),
    "a grid's barrier between steps dropped": Edit(
        "train on an A100", "TrainSteps", "race-global", MEET_IN_GRID, places=2
    ),
    "a table in shared memory that leaves too little": Edit(
        "solve", "QuadraticsKernel", "launch", r"^([^{]*\{\n)", r"\1.shared .align 16 .b8 table[232000];" "\n"
    ),
}
