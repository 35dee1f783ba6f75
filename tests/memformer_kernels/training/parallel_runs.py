"""What the distributed tests run, in every rank and in the one process that they are compared with."""

from dataclasses import dataclass

import torch
from torch import Tensor

from memformer_kernels import Adam, DrawnTasks, GaussianStatistics, GaussianTokens, TrainState
from memformer_kernels.training.samplers import Sampler
from tests.memformer_kernels.training.runs import D, N, drawn, model

STEPS = 4
FATAL = 2
OPTIMIZER = Adam(0.05, clip=1.0)


def data_parallel() -> dict[str, tuple[TrainState, Sampler, str]]:
    """Batches of three blocks, so that ranks get different numbers of them, and of one, so that some get none."""
    statistics = GaussianStatistics(D, N, 2500, query="integrated")
    tokens = GaussianTokens(D, N, 100, noise=0.1)
    gated = [model(2, 0, rule="gated_heads", heads=2)]
    return {
        "statistics": (TrainState.of([model(2, s, torch.float32) for s in range(2)], seeds=5), statistics, "torch"),
        "tokens": (TrainState.of([model(2, 0, structure="block")], seeds=6), tokens, "torch"),
        "default": (TrainState.of([model(2, s, torch.float32) for s in range(2)], seeds=5), statistics, "auto"),
        "drawn": (TrainState.of([model(2, s) for s in range(2)], seeds=7), DrawnTasks(drawn, D, N, 2500), "auto"),
        "gates": (TrainState.of(gated, seeds=8), DrawnTasks(drawn, D, N, 1500, resample_every=3), "auto"),
    }


@dataclass(frozen=True)
class SplitContext:
    """Tasks of 11 labelled tokens, and a network."""

    z: Tensor
    queries: Tensor
    target: Tensor
    parameters: dict[str, Tensor]

    def slices(self, ranks: int) -> list[slice]:
        """Slices of different lengths, one a rank."""
        tokens = self.z.shape[1]
        return [slice(tokens * i**2 // ranks**2, tokens * (i + 1) ** 2 // ranks**2) for i in range(ranks)]


def split_contexts() -> dict[str, SplitContext]:
    """Every structure, with memory of several kinds."""
    generator = torch.Generator().manual_seed(3)
    z = torch.randn(6, 11, D + 1, generator=generator, dtype=torch.float64)
    queries = torch.randn(6, 2, D + 1, generator=generator, dtype=torch.float64)
    target = torch.randn(6, 2, generator=generator, dtype=torch.float64)
    options = {
        "response-only": {},
        "block": {"structure": "block", "rule": "cgd", "heads": 2},
        "dense": {"structure": "dense", "rule": "lfom_shared"},
        "gated": {"structure": "block", "rule": "gated_heads", "heads": 2},
    }
    cases = {}
    for name, chosen in options.items():
        parameters = {key: value for key, value in model(3, 1, **chosen).items() if value is not None}  # type: ignore[arg-type]
        cases[name] = SplitContext(z, queries, target, parameters)
    return cases
