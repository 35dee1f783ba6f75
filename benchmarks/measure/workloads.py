"""What is measured: one frozen configuration each, with its model of the bytes and operations no method can avoid."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from math import prod
from types import MappingProxyType

import torch

from memformer_kernels.nn import GRANULARITIES, RULES, STRUCTURES
from memformer_lab.profiling.costs import Network, Operations

DTYPES: Mapping[str, torch.dtype] = MappingProxyType(
    {"float32": torch.float32, "float64": torch.float64, "bfloat16": torch.bfloat16, "float16": torch.float16}
)
"""Of the tokens; parameters are float64 with float64 tokens, else float32."""

DIRECTIONS = ("forward", "forward+backward", "forward+backward to tokens")
"""Predictions without a graph; the loss and its gradients in every parameter; those and the gradient in the tokens,
which a Memformer inside a larger model pays. A backward pass alone is what the second takes beyond the first."""


@dataclass(frozen=True)
class Workload:
    """A batch of tasks through one Memformer, forward or also backward.

    Each task has `n` context examples and one query with `d` features; tokens are rows (N, D) with N = n + 1 and
    D = d + 1. rule, granularity and structure are those of `memformer_kernels.nn.Memformer`, whose memory is one
    scalar, or one number per feature, token, or both. The learned first-order method (LFOM) is eqs. 19-20 of
    Dutta & Sra, arXiv 2410.07263.

    Raises:
        ValueError: a size below 1, or a name that is not one of RULES, GRANULARITIES, STRUCTURES, DIRECTIONS, DTYPES.
    """

    name: str
    d: int
    n: int
    layers: int
    heads: int
    batch: int
    rule: str = "lfom"
    granularity: str = "feature"
    structure: str = "response-only"
    dtype: str = "float32"
    direction: str = "forward+backward"

    def __post_init__(self) -> None:
        for field in ("d", "n", "layers", "heads", "batch"):
            size = getattr(self, field)
            if size < 1:
                raise ValueError(f"{field} must be at least 1, got {size}")
        for field, known in (
            ("rule", RULES),
            ("granularity", GRANULARITIES),
            ("structure", STRUCTURES),
            ("dtype", tuple(DTYPES)),
            ("direction", DIRECTIONS),
        ):
            value = getattr(self, field)
            if value not in known:
                raise ValueError(f"{field} must be one of {', '.join(known)}, got {value!r}")

    @property
    def tokens(self) -> int:
        """N: the context and one query."""
        return self.n + 1

    @property
    def width(self) -> int:
        """D: the features and the response."""
        return self.d + 1

    @property
    def torch_dtype(self) -> torch.dtype:
        """Of the tokens."""
        return DTYPES[self.dtype]

    @property
    def parameter_dtype(self) -> torch.dtype:
        return torch.float64 if self.dtype == "float64" else torch.float32

    @property
    def training(self) -> bool:
        """Whether there is a loss with gradients."""
        return self.direction != "forward"

    @property
    def plain(self) -> bool:
        """Whether this is the network of most peers: response-only LFOM, all of whose heads act as one."""
        return self.rule == "lfom" and self.structure == "response-only"

    @property
    def token_axis(self) -> bool:
        """Whether gamma varies along the tokens, which rules Gram space out."""
        return self.granularity in ("token", "full") and self.rule != "linear"

    @property
    def grid(self) -> tuple[int, int]:
        """(N or 1, D or 1): the axes along which memory varies."""
        return self.tokens if self.token_axis else 1, self.width if self.granularity in ("feature", "full") else 1

    @property
    def parameter_shapes(self) -> dict[str, tuple[int, ...]]:
        """Shapes of the arguments of `memformer_kernels.functional` that this network has, q and gamma first."""
        layers, heads = self.layers, self.heads
        side = self.width if self.structure == "dense" else self.d
        shapes: dict[str, tuple[int, ...]] = {"q": (layers, heads, side, side)}
        if self.rule in ("cgd", "recursive"):
            shapes |= {"gamma": (layers, 1, 1, 1), "beta": (layers, 1, *self.grid)}
        elif self.rule == "lfom_shared":
            shapes["gamma"] = (1, layers, 1, *self.grid)
        elif self.rule == "gated_heads":
            shapes |= {"gamma": (layers, layers, heads, *self.grid), "gate": (heads,)}
        elif self.rule != "linear":
            shapes["gamma"] = (layers, layers, 1, *self.grid)
        if self.structure != "response-only":
            shapes["p"] = shapes["q"]
        return shapes

    def with_batch(self, batch: int) -> "Workload":
        return replace(self, batch=batch)

    @property
    def network(self) -> Network:
        """What its operations are counted by: the cheapest known method, tokens where they are fewer than features."""
        pairs = self.layers * (self.layers + 1) // 2
        weighted = {"linear": 0, "cgd": self.layers, "recursive": self.layers, "lfom_shared": self.layers}
        apart = self.rule == "gated_heads" or self.structure != "response-only"
        return Network(
            self.d,
            self.n,
            1,
            self.layers,
            self.heads if apart else 1,
            self.structure,
            weighted.get(self.rule, pairs),
            self.layers - 1 if self.rule in ("cgd", "recursive") else 0,
            self.token_axis or self.width > self.tokens,
        )

    @property
    def bytes_per_task(self) -> int:
        """Bytes one task must move: its tokens and its target read, or its prediction written; its gradient written."""
        moved = self.network.bytes_per_task(self.torch_dtype.itemsize, self.training)
        written = self.tokens * self.width * self.torch_dtype.itemsize
        return moved + written if self.direction == DIRECTIONS[2] else moved

    @property
    def bytes_moved(self) -> int:
        """Bytes of the whole batch: the tasks, plus parameters read and gradients written once."""
        parameters = sum(prod(shape) for shape in self.parameter_shapes.values()) * self.parameter_dtype.itemsize
        return self.batch * self.bytes_per_task + (2 if self.training else 1) * parameters

    @property
    def operations(self) -> Operations:
        """Multiply-adds of one task, by the cheapest known method.

        Heads cost nothing where they share a memory and features stay: sum_h A_h then acts as one head.
        """
        found = self.network.operations(self.training)
        if self.direction != DIRECTIONS[2]:
            return found
        return found._replace(backward=found.backward + self.network.token_gradient)


W = Workload(name="W", d=5, n=20, layers=4, heads=1, batch=100_000)
W_FULL = replace(W, name="W_full", granularity="full")

# The tiles of the Triton kernels, at the sizes their figures are set for.
TILE_64 = Workload(name="tile_64", d=64, n=512, layers=4, heads=1, batch=8192)
TILE_128 = Workload(name="tile_128", d=128, n=2048, layers=4, heads=1, batch=1024)

WORKLOADS: Mapping[str, Workload] = MappingProxyType({w.name: w for w in (W, W_FULL)})
BATCHES = (1000, 100_000, 1_000_000)
# Token space costs its peers two to four times as much: the largest size would take minutes and say nothing new.
WORKLOAD_BATCHES: Mapping[str, tuple[int, ...]] = MappingProxyType({"W": BATCHES, "W_full": BATCHES[:2]})
QUICK_BATCHES = (1000, 10_000)
