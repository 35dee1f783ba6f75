"""States and samplers that the trainer's tests share."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from memformer_kernels import TrainState
from memformer_kernels.nn import Memformer

FACTOR = torch.tensor([[1.0, 0.0, 0.0], [0.4, 0.8, 0.0], [-0.3, 0.2, 0.5]], dtype=torch.float64)
WEIGHTS = torch.tensor([[0.9, 0.1, 0.0], [0.0, 1.2, -0.2], [0.3, 0.0, 0.7]], dtype=torch.float64)
D, N = 3, 8


def model(layers: int = 3, seed: int = 0, dtype: torch.dtype = torch.float64, **options: Any) -> dict[str, Any]:
    """The parameters of a Memformer, moved away from its start, where many are 0 or 1."""
    torch.manual_seed(seed)
    made = Memformer(options.pop("d", D), layers, dtype=dtype, **options)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter += 0.05 * torch.randn_like(parameter)
    return {name: None if value is None else value.detach() for name, value in dict(made.stack_arguments()).items()}


def state(models: int = 1, *, layers: int = 3, dtype: torch.dtype = torch.float64, **options: Any) -> TrainState:
    """`models` models with different parameters and one seed."""
    return TrainState.of([model(layers, seed, dtype, **options) for seed in range(models)], seeds=11)


def alone(together: TrainState, index: int) -> TrainState:
    """One model of an ensemble by itself, on the same stream."""
    return TrainState.of(
        [together.model(index)],
        seeds=[int(together.seeds[index])],
        streams=[int(together.streams[index])],
    )


def tensors(held: TrainState) -> Sequence[Tensor]:
    """Everything that training changes."""
    groups = (held.parameters, held.first, held.second)
    return [*(value for group in groups for value in group.values()), held.skipped]


def drawn(batch: int, generator: torch.Generator, queries: int = 1) -> tuple[Tensor, Tensor]:
    """Tasks (batch, N + queries, D + 1) of a function of the caller's, with sparse weights, which no sampler draws."""
    options: dict[str, Any] = {"generator": generator, "dtype": torch.float64, "device": generator.device}
    x = 0.5 * torch.randn(batch, N + queries, D, **options)
    w = torch.randn(batch, D, 1, **options) * (torch.rand(batch, D, 1, **options) < 0.5)
    z = torch.cat([x, x @ w], -1)
    target = z[:, N:, -1].clone()
    z[:, N:, -1] = 0
    return z, target


def two_drawn(batch: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """The same with two queries."""
    return drawn(batch, generator, 2)
