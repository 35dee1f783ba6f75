"""What is measured: one frozen configuration each, with its model of the bytes and operations no method can avoid."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType

import torch

from memformer_lab.profiling.costs import Network, Operations

DTYPES: Mapping[str, torch.dtype] = MappingProxyType({"float32": torch.float32, "float64": torch.float64})

RULES = ("lfom",)
GRANULARITIES = ("scalar", "feature", "token", "full")
STRUCTURES = ("response-only",)
DIRECTIONS = ("forward+backward",)


@dataclass(frozen=True)
class Workload:
    """A batch of tasks through one Memformer: mean squared query error and its gradients in every parameter.

    Each task has `n` context examples and one query with `d` features; tokens are rows (N, D) with N = n + 1 and
    D = d + 1. Parameters are q (L, H, d, d) and gamma (L, L, 1, 1 or N, 1 or D); entries gamma[l, j] with j > l are
    ignored. The learned first-order method (LFOM) is eqs. 19-20 of Dutta & Sra, arXiv 2410.07263.

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
        return DTYPES[self.dtype]

    @property
    def token_axis(self) -> bool:
        """Whether gamma varies along the tokens, which rules Gram space out."""
        return self.granularity in ("token", "full")

    @property
    def gamma_shape(self) -> tuple[int, int, int, int, int]:
        """(L, L, 1, N or 1, D or 1): gamma is shared by heads."""
        tokens = self.tokens if self.token_axis else 1
        features = self.width if self.granularity in ("feature", "full") else 1
        return (self.layers, self.layers, 1, tokens, features)

    def with_batch(self, batch: int) -> "Workload":
        return replace(self, batch=batch)

    @property
    def bytes_per_task(self) -> int:
        """Bytes one task must move: its tokens and its target, read once."""
        return (self.tokens * self.width + 1) * self.torch_dtype.itemsize

    @property
    def bytes_moved(self) -> int:
        """Bytes of the whole batch: the tasks, plus parameters read and gradients written once."""
        layers, _, _, tokens, features = self.gamma_shape
        parameters = layers * self.heads * self.d**2 + layers**2 * tokens * features
        return self.batch * self.bytes_per_task + 2 * parameters * self.torch_dtype.itemsize

    @property
    def operations(self) -> Operations:
        """Multiply-adds of one task, by the cheapest known method.

        Heads cost nothing here: with gamma shared by heads and features fixed, sum_h A_h acts as one head.
        """
        pairs = self.layers * (self.layers + 1) // 2
        network = Network(self.d, self.n, 1, self.layers, 1, self.structure, pairs, 0, self.token_axis)
        return network.operations(training=True)


W = Workload(name="W", d=5, n=20, layers=4, heads=1, batch=100_000)
W_FULL = replace(W, name="W_full", granularity="full")

# The tiles of the Triton kernels, at the sizes their figures are set for.
TILE_64 = Workload(name="tile_64", d=63, n=511, layers=4, heads=1, batch=8192)
TILE_128 = Workload(name="tile_128", d=127, n=2047, layers=4, heads=1, batch=1024)

WORKLOADS: Mapping[str, Workload] = MappingProxyType({w.name: w for w in (W, W_FULL)})
BATCHES = (1000, 100_000, 1_000_000)
# Token space costs its peers two to four times as much: the largest size would take minutes and say nothing new.
WORKLOAD_BATCHES: Mapping[str, tuple[int, ...]] = MappingProxyType({"W": BATCHES, "W_full": BATCHES[:2]})
QUICK_BATCHES = (1000, 10_000)
