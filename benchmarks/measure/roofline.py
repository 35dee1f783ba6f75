"""Every kernel of this CPU against the machine's limits: bytes and multiply-adds over time, measured in one run.

A kernel of I operations a byte can run at no more than I times the memory's bandwidth nor above the rate of a large
matrix product. Networks come from the workloads, behind the harness's gate; the other functions behind one here,
against float64. The CUDA and Triton kernels have no points: none has run.
"""

import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import cycle
from typing import Any, NamedTuple

import torch
from rich import box
from rich.console import Console
from rich.table import Table
from torch import Tensor

from benchmarks.measure.clock import milliseconds
from benchmarks.measure.data import make_batch, make_parameters
from benchmarks.measure.harness import QUICK, Policy, run_workload
from benchmarks.measure.providers import select
from benchmarks.measure.workloads import DIRECTIONS, W_FULL, W, Workload
from benchmarks.reports.record import Machine
from benchmarks.reports.table import figure
from memformer_kernels import (
    Adam,
    FixedTasks,
    TrainState,
    context_gram,
    lfom_solve,
    linear_attention,
    memformer_layer,
    register_update,
    train_steps,
)

FORMAT = 1
CPU = torch.device("cpu")
BATCH = 100_000
QUICK_BATCH = 1000
ROUNDS = 15
ERROR = 1e-4
POLICY = Policy(seconds=0.6)


@dataclass(frozen=True)
class Point:
    """One kernel: what it must move and compute, and what it took. moves: whether its bytes are read, or copied."""

    kernel: str
    backend: str
    size: str
    bytes: int
    multiply_adds: int
    moves: str
    ms: float

    @property
    def intensity(self) -> float:
        """Operations a byte, a multiply-add being two."""
        return 2 * self.multiply_adds / self.bytes

    @property
    def gflop_s(self) -> float:
        return 2 * self.multiply_adds / self.ms / 1e6

    def limit_ms(self, machine: Machine) -> float:
        """The higher of the two floors: its bytes at the bandwidth of reading or of copying, its operations."""
        bandwidth = machine.read_gb_s if self.moves == "read" and machine.read_gb_s else machine.copy_gb_s
        return max(self.bytes / bandwidth, 2 * self.multiply_adds / machine.fma_gflop_s) / 1e6


class Piece(NamedTuple):
    """A function that is no network: its floors, a call on one of several buffers, and the same in float64."""

    kernel: str
    backend: str
    size: str
    bytes: int
    multiply_adds: int
    moves: str
    call: Callable[[int], Sequence[Tensor]]
    exact: Callable[[], Sequence[Tensor]]


def networks(batch: int) -> tuple[tuple[str, Workload], ...]:
    """(backend, workload): one of each regime and direction, each reading as many bytes as `batch` tasks of W."""
    forward, training, _ = DIRECTIONS
    native = (
        *(replace(base, direction=way) for base in (W, W_FULL) for way in DIRECTIONS),
        *(replace(W, structure="block", direction=way) for way in (forward, training)),
        replace(W_FULL, structure="block"),
        replace(W, d=16, n=50),
        replace(W, d=63, n=255),
        replace(W_FULL, d=32, n=200),
    )
    chosen = [*(("cpu", w) for w in native), ("torch", replace(W, structure="block", d=63, n=255))]
    numbers = batch * W.tokens * W.width
    return tuple((backend, w.with_batch(max(1, numbers // (w.tokens * w.width)))) for backend, w in chosen)


def kernel_of(workload: Workload) -> str:
    """The kernel's name: which columns move, in which space, and how far."""
    ways = dict(zip(DIRECTIONS, ("forward", "training", "training and tokens' gradient"), strict=True))
    return f"{workload.structure}, {'tokens' if workload.token_axis else 'Gram'}: {ways[workload.direction]}"


def pieces(batch: int, buffers: int) -> Iterator[Piece]:
    """The functions that are no network, on `buffers` inputs in turn."""
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int, scale: float = 1.0) -> Tensor:
        return torch.randn(shape, generator=generator, device=generator.device, dtype=torch.float32).mul_(scale)

    d, n, layers, width, rows = W.d, W.n, W.layers, W.width, W.tokens
    z = [draw(batch, rows, width) for _ in range(buffers)]
    size = f"d = {d}, n = {n}"
    yield Piece(
        "context_gram",
        "cpu",
        size,
        4 * batch * (n * width + width * width),
        batch * n * width * (width + 1) // 2,
        "read",
        lambda i: [context_gram(z[i], n)],
        lambda: [z[0][:, :n].double().mT @ z[0][:, :n].double()],
    )
    q = draw(1, d, d, scale=0.1)
    past, weights = [draw(batch, 1, rows, width) for _ in range(buffers)], draw(2, 1, 1, width)
    yield Piece(
        "memformer_layer",
        "cpu",
        f"{size}, one past register",
        4 * 4 * batch * rows * width,
        batch * (n * d + d * d + rows * d + 2 * rows),
        "copy",
        lambda i: memformer_layer(z[i], q, None, [past[i]], weights),
        lambda: memformer_layer(z[0].double(), q.double(), None, [past[0].double()], weights.double(), backend="torch"),
    )
    h = [x.mT @ x / d for x in (draw(batch, d, d) for _ in range(buffers))]
    b, a = [draw(batch, d) for _ in range(buffers)], draw(layers, d, d, scale=0.1)
    yield Piece(
        "lfom_solve",
        "cpu",
        f"d = {d}, L = {layers}",
        4 * batch * (d * d + 2 * d),
        batch * ((2 * layers - 1) * d * d + layers * d),
        "read",
        lambda i: [lfom_solve(h[i], b[i], a)],
        lambda: [lfom_solve(h[0].double(), b[0].double(), a.double(), backend="torch")],
    )
    count, wide = 4, 512
    length = max(1, batch * rows * width // wide // 4)
    state, gamma = [draw(length, wide) for _ in range(2)], draw(count, wide)
    registers = [draw(length, wide) for _ in range(count)]
    yield Piece(
        "register_update",
        "cpu",
        f"{count} registers, {wide} wide",
        4 * (count + 2) * length * wide,
        count * length * wide,
        "copy",
        lambda i: [register_update(state[i % 2], registers, gamma)],
        lambda: [register_update(state[0].double(), [x.double() for x in registers], gamma.double(), backend="torch")],
    )
    tokens, heads, width_ = max(256, batch // 6), 4, 64
    key = [draw(1, tokens, heads, width_) for _ in range(3)]
    yield Piece(
        "linear_attention",
        "cpu",
        f"{heads} heads of {width_}",
        4 * 4 * tokens * heads * width_,
        2 * tokens * heads * width_ * width_,
        "copy",
        lambda i: [linear_attention(*key, backend="cpu")],
        lambda: [linear_attention(*(x.double() for x in key), backend="torch")],
    )


def _trainer(rounds: int, batch: int) -> Point:
    """One step of the native trainer on given tasks, which reads its tokens as W does, and applies Adam."""
    z, target = make_batch(W.with_batch(batch), 1, CPU)
    state = TrainState.of([make_parameters(W, 0, CPU).named], seeds=1)
    tasks, optimizer = FixedTasks(z, target, W.n), Adam(1e-3)
    train_steps(state, tasks, 2, optimizer=optimizer, backend="cpu")
    spent = [
        milliseconds(lambda: train_steps(state, tasks, 1, optimizer=optimizer, backend="cpu"), CPU)
        for _ in range(rounds)
    ]
    workload = W.with_batch(batch)
    return Point(
        "train_steps on given tasks",
        "cpu",
        f"d = {W.d}, n = {W.n}, L = {W.layers}",
        workload.bytes_moved,
        batch * workload.operations.total,
        "read",
        statistics.median(spent),
    )


def measure(*, quick: bool = False, announce: Callable[[str], None] = lambda text: None) -> tuple[Point, ...]:
    """Gate and time every kernel.

    Raises:
        RuntimeError: a kernel that is wrong or does not run.
    """
    batch, rounds = (QUICK_BATCH, 3) if quick else (BATCH, ROUNDS)
    points = []
    for backend, workload in networks(batch):
        kernel = kernel_of(workload)
        announce(kernel)
        (timing,) = run_workload(workload, select([f"memformer_kernels ({backend})"]), CPU, QUICK if quick else POLICY)
        if timing.quantiles is None:
            raise RuntimeError(f"{kernel}: {timing.status}, {timing.reason}")
        size = f"d = {workload.d}, n = {workload.n}, L = {workload.layers}"
        moves = "copy" if workload.direction == DIRECTIONS[2] else "read"
        operations = workload.batch * workload.operations.total
        points.append(Point(kernel, backend, size, workload.bytes_moved, operations, moves, timing.quantiles.median_ms))
    for piece in pieces(batch, 2):
        announce(piece.kernel)
        points.append(_timed(piece, rounds))
    points.append(_trainer(rounds, batch))
    return tuple(points)


def _timed(piece: Piece, rounds: int) -> Point:
    for found, exact in zip(piece.call(0), piece.exact(), strict=True):
        error = float((found.double() - exact).norm() / exact.norm())
        if not error <= ERROR:
            raise RuntimeError(f"{piece.kernel} is wrong: relative error {error:.1e}, expected {ERROR:.0e}")
    buffers = cycle((1, 0))
    spent = [milliseconds(lambda: piece.call(next(buffers)), CPU) for _ in range(rounds)]
    return Point(*piece[:6], statistics.median(spent))


def as_record(machine: Machine, points: Sequence[Point]) -> dict[str, Any]:
    """For a JSON file."""
    return {"format": FORMAT, "machine": asdict(machine), "points": [asdict(point) for point in points]}


def from_record(content: dict[str, Any]) -> tuple[Machine, tuple[Point, ...]]:
    """What `as_record` made.

    Raises:
        ValueError: a record of another format.
    """
    if content.get("format") != FORMAT:
        raise ValueError(f"format is {content.get('format')!r}, expected {FORMAT}")
    return Machine(**content["machine"]), tuple(Point(**point) for point in content["points"])


def print_roofline(machine: Machine, points: Sequence[Point], console: Console) -> None:
    """A line a kernel."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    for header in ("kernel", "backend", "size"):
        table.add_column(header)
    for header in ("ms", "operations\na byte", "GFLOP/s", "GB/s", "% of\nlimit"):
        table.add_column(header, justify="right", no_wrap=True)
    for p in points:
        limit = 100 * p.limit_ms(machine) / p.ms
        rates = (p.ms, p.intensity, p.gflop_s, p.bytes / p.ms / 1e6, limit)
        table.add_row(p.kernel, p.backend, p.size, *map(figure, rates))
    console.print(table)
