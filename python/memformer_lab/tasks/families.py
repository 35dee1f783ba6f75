"""Prompts whose responses are not linear in Gaussian features: what other papers test in-context learners on."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

import torch
from torch import Generator, Tensor

from memformer_lab.tasks.gaussian import TaskBatch, check_sizes, chi_by_rejection

_HIDDEN = 16
_SHAPE = 0.1


def family_tokens(name: str, batch: int, generator: Generator, *, d: int, n: int, queries: int = 1) -> TaskBatch:
    """Tasks of a family as tokens; `weights` are zeros where no linear weights are the truth.

    linear: x ~ N(0, I), y = w.x. sphere: the same with x uniform on the unit sphere. gamma-scaled: x is sqrt(g) times a
    point of the unit sphere, with one g ~ Gamma of shape 0.1 and scale 10 a token, whose mean is 1: most tokens are
    near 0 and few are long (Ahn et al., arXiv 2310.01082). relu: y = max(w.x, 0) * sqrt(2). two-layer network: 16 relu
    units with random weights, scaled to variance d. sinusoid: y = sqrt(2 d) sin(w.x / sqrt(d) + phase). logistic:
    labels -1 and 1 with P(1) = sigmoid(2 w.x / sqrt(d)).
    E[y^2] is d, but 1 on the sphere, gamma-scaled or not, and of labels. Queries carry the responses as they are,
    labels included.

    Args:
        name: one of `FAMILIES`.
        batch: tasks.
        generator: what draws them; they are on its device, in float32.
        d: features.
        n: labelled examples in a context.
        queries: queries a task.

    Raises:
        ValueError: for an unknown family.
    """
    if name not in FAMILIES:
        raise ValueError(f"name must be one of {', '.join(FAMILIES)}, got {name!r}")
    x, y, w = FAMILIES[name](batch, n + queries, d, generator)
    z = torch.cat([x, y.unsqueeze(-1)], dim=-1)
    target = z[:, n:, -1].clone()
    z[:, n:, -1] = 0
    return TaskBatch(z=z, target=target, weights=w, context=n)


Family = Callable[[int, int, int, Generator], tuple[Tensor, Tensor, Tensor]]
"""(batch, tokens, d, generator) -> x (batch, tokens, d), y (batch, tokens), weights (batch, d)."""


def _normal(generator: Generator, *shape: int) -> Tensor:
    return torch.randn(shape, generator=generator, device=generator.device, dtype=torch.float32)


def _project(x: Tensor, w: Tensor) -> Tensor:
    return (x @ w.unsqueeze(-1)).squeeze(-1)


def _linear(batch: int, tokens: int, d: int, generator: Generator) -> tuple[Tensor, Tensor, Tensor]:
    x, w = _normal(generator, batch, tokens, d), _normal(generator, batch, d)
    return x, _project(x, w), w


def _sphere(batch: int, tokens: int, d: int, generator: Generator) -> tuple[Tensor, Tensor, Tensor]:
    x, _, w = _linear(batch, tokens, d, generator)
    x = x / x.norm(dim=-1, keepdim=True)
    return x, _project(x, w), w


def _gamma_scaled(batch: int, tokens: int, d: int, generator: Generator) -> tuple[Tensor, Tensor, Tensor]:
    x, _, w = _sphere(batch, tokens, d, generator)
    # Gamma(a) is Gamma(a + 1) times the a-th root of a uniform; chi^2(k) is twice Gamma(k / 2).
    larger = 0.5 * chi_by_rejection(2 * (_SHAPE + 1), batch * tokens, generator, torch.float32).square()
    uniform = torch.rand(batch * tokens, generator=generator, device=generator.device, dtype=torch.float32)
    scale = (larger * uniform ** (1 / _SHAPE) / _SHAPE).sqrt()
    x = x * scale.view(batch, tokens, 1)
    return x, _project(x, w), w


def _relu(batch: int, tokens: int, d: int, generator: Generator) -> tuple[Tensor, Tensor, Tensor]:
    x, y, w = _linear(batch, tokens, d, generator)
    return x, math.sqrt(2) * y.relu(), torch.zeros_like(w)


def _two_layer(batch: int, tokens: int, d: int, generator: Generator) -> tuple[Tensor, Tensor, Tensor]:
    x = _normal(generator, batch, tokens, d)
    hidden = (x @ _normal(generator, batch, d, _HIDDEN)).relu()
    y = _project(hidden, _normal(generator, batch, _HIDDEN)) * math.sqrt(2 / _HIDDEN)
    return x, y, x.new_zeros(batch, d)


def _sinusoid(batch: int, tokens: int, d: int, generator: Generator) -> tuple[Tensor, Tensor, Tensor]:
    x, y, w = _linear(batch, tokens, d, generator)
    phase = 2 * math.pi * torch.rand((batch, 1), generator=generator, device=generator.device, dtype=torch.float32)
    return x, math.sqrt(2 * d) * (y / math.sqrt(d) + phase).sin(), torch.zeros_like(w)


def _logistic(batch: int, tokens: int, d: int, generator: Generator) -> tuple[Tensor, Tensor, Tensor]:
    x, y, w = _linear(batch, tokens, d, generator)
    chance = torch.sigmoid(2 * y / math.sqrt(d))
    labels = (
        torch.rand((batch, tokens), generator=generator, device=generator.device, dtype=torch.float32) < chance
    ).float() * 2 - 1
    return x, labels, torch.zeros_like(w)


FAMILIES: Mapping[str, Family] = MappingProxyType(
    {
        "linear": _linear,
        "sphere": _sphere,
        "gamma-scaled": _gamma_scaled,
        "relu": _relu,
        "two-layer network": _two_layer,
        "sinusoid": _sinusoid,
        "logistic": _logistic,
    }
)


@dataclass(frozen=True)
class FamilyTasks:
    """The tasks of one family, as `family_tokens` draws them.

    Attributes:
        name: one of `FAMILIES`.
        d: number of features.
        n: number of labelled examples in a context.

    Raises:
        ValueError: for an unknown family or a size below 1.
    """

    name: str
    d: int
    n: int

    def __post_init__(self) -> None:
        check_sizes(self.d, self.n, torch.float32)
        if self.name not in FAMILIES:
            raise ValueError(f"name must be one of {', '.join(FAMILIES)}, got {self.name!r}")

    def tokens(self, batch: int, generator: Generator, queries: int = 1) -> TaskBatch:
        """Draw every example and every query: z (batch, n + queries, d + 1)."""
        return family_tokens(self.name, batch, generator, d=self.d, n=self.n, queries=queries)
