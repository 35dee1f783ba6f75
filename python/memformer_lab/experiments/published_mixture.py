"""The published mixture of experts: its tasks, its experts, and the network of one head an expert that they make."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Generator, Tensor, nn

from memformer_kernels import memformer_loss
from memformer_lab.reports.protocol import Setting
from memformer_lab.runs.fitting import Recipe, fit, seeded
from memformer_lab.tasks.gaussian import GaussianTasks, TaskBatch
from memformer_lab.tasks.seeds import generator_for

_D, _N = 5, 20
_SCALES = (1.0, 1.0, 0.5, 0.25, 1.0)
_VARIANCES = (1.0, 2.0, 3.0)
_START = 1e-4


@dataclass(frozen=True)
class PublishedTasks:
    """x = U D g and w* = U D^-1 h with g, h ~ N(0, variance I), D the scales of the non-isotropic tasks.

    Attributes:
        variance: of g and of h.
        seed: of the run.
        expert: 0, 1, 2: every expert has a rotation U of its own.
    """

    variance: float
    seed: int
    expert: int

    def tokens(self, batch: int, generator: Generator, queries: int = 1) -> TaskBatch:
        """As `GaussianTasks.tokens`."""
        scales = tuple(math.sqrt(self.variance) * scale for scale in _SCALES)
        drawn = GaussianTasks(_D, _N, scales, len(_VARIANCES) * self.seed + self.expert, "inverse")
        # Weights of N(0, Sigma^-1) have the variance in Sigma once below; published ones have it once above.
        found = drawn.tokens(batch, generator, queries)
        found.z[..., -1] *= self.variance
        return TaskBatch(found.z, self.variance * found.target, self.variance * found.weights, found.context)


class PublishedExpert(nn.Module):
    """One head with Bm free and, for every register, a weight by token and feature that all later layers share."""

    def __init__(self, layers: int) -> None:
        super().__init__()
        self.q, self.p = (
            nn.Parameter(_START * torch.randn(layers, 1, _D, _D, device="cpu", dtype=torch.float32)) for _ in range(2)
        )
        self.weights = nn.Parameter(torch.ones(layers, _N + 1, _D + 1, device="cpu", dtype=torch.float32))

    def gamma(self) -> Tensor:
        """(L, L, 1, N, D): 1 for a layer's own register."""
        layers = len(self.weights)
        own = torch.eye(layers, device=self.weights.device, dtype=torch.bool)[:, :, None, None]
        return torch.where(own, 1.0, self.weights.expand(layers, *self.weights.shape)).unsqueeze(2)


def published_network(setting: Setting, seed: int, layers: int) -> dict[str, Tensor]:
    """Experts for variances 1, 2, 3, each trained on fixed tasks of its own rotation, as heads of one network."""
    count = setting.pick(tiny=20, quick=100, full=1000)
    recipe = Recipe(setting.pick(tiny=2, quick=50, full=500), count, learning_rate=0.01, clip=None)
    experts = []
    for index, variance in enumerate(_VARIANCES):
        expert = seeded(lambda: PublishedExpert(layers), len(_VARIANCES) * seed + index)
        assert isinstance(expert, PublishedExpert)
        tasks = PublishedTasks(variance, seed, index).tokens(count, generator_for("training", seed, 10 + index))

        def loss(_: Generator, expert: PublishedExpert = expert, tasks: TaskBatch = tasks) -> Tensor:
            return memformer_loss(tasks.z, tasks.target, expert.q, expert.p, expert.gamma(), context=_N)

        fit(expert, loss, recipe, seed)
        experts.append(expert)
    return {
        "q": torch.cat([one.q.detach() for one in experts], dim=1),
        "p": torch.cat([one.p.detach() for one in experts], dim=1),
        "gamma": torch.cat([one.gamma().detach() for one in experts], dim=2),
    }
