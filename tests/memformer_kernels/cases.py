"""Random networks by name of rule, granularity and structure, scaled so that values stay of order one."""

from typing import Any

import torch
from torch import Tensor

from memformer_kernels.calls.problem import check_network
from memformer_kernels.testing import Case

RULES = ("linear", "cgd", "recursive", "lfom", "lfom_shared", "lfom_residual", "gated_heads")
GRANULARITIES = ("scalar", "feature", "token", "full")
STRUCTURES: dict[str, tuple[str, str | None]] = {
    "response-only": ("block", None),
    "block": ("block", "block"),
    "dense": ("dense", "dense"),
    "dense q": ("dense", None),
    "dense q, block p": ("dense", "block"),
    "block q, dense p": ("block", "dense"),
}
NAMED_STRUCTURES = ("response-only", "block", "dense")


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def normal(generator: torch.Generator, *shape: int, scale: float = 1.0) -> Tensor:
    """A float64 tensor of normal numbers, of standard deviation `scale`."""
    return scale * torch.randn(shape, generator=generator, dtype=torch.float64)


def draw_tokens(generator: torch.Generator, tasks: int, tokens: int, width: int) -> Tensor:
    """z (B, N, D) whose Gram matrices are of order one, for a single token too."""
    return normal(generator, tasks, tokens, width, scale=1.5 * width**-0.5)


def draw_projections(
    generator: torch.Generator, structure: str, layers: int, heads: int, width: int, responses: int = 1
) -> tuple[Tensor, Tensor | None]:
    """q and p of a structure."""

    def draw(kind: str) -> Tensor:
        size = width if kind == "dense" else width - responses
        return normal(generator, layers, heads, size, size, scale=0.6 * (width * heads) ** -0.5)

    q_kind, p_kind = STRUCTURES[structure]
    q = draw(q_kind)
    return q, None if p_kind is None else draw(p_kind)


def make_case(
    *,
    rule: str = "lfom",
    granularity: str = "feature",
    structure: str = "block",
    tasks: int = 3,
    tokens: int = 7,
    width: int = 4,
    layers: int = 3,
    heads: int = 2,
    context: int | Tensor | None = None,
    queries: int | None = None,
    responses: int = 1,
    seed: int = 0,
) -> Case:
    """A network by the shapes of its rule, in float64.

    The recursive rule gets a beta per head and gated heads a gamma per head; the other rules share theirs.
    """
    generator = seeded(seed)
    z = draw_tokens(generator, tasks, tokens, width)
    q, p = draw_projections(generator, structure, layers, heads, width, responses)
    grid = (tokens if granularity in ("token", "full") else 1, width if granularity in ("feature", "full") else 1)
    memory: dict[str, Any] = {}
    if rule in ("cgd", "recursive"):
        memory["gamma"] = 1 + normal(generator, layers, 1, 1, 1, scale=0.3)
        memory["beta"] = normal(generator, layers, heads if rule == "recursive" else 1, *grid, scale=0.5)
    elif rule == "lfom_shared":
        memory["gamma"] = normal(generator, 1, layers, 1, *grid, scale=0.5)
    elif rule != "linear":
        gamma = normal(generator, layers, layers, heads if rule == "gated_heads" else 1, *grid, scale=0.5)
        if rule != "lfom":
            gamma[range(layers), range(layers)] = 1.0
        memory["gamma"] = gamma
    if rule == "gated_heads":
        memory["gate"] = 1 + normal(generator, heads, scale=0.3)
    return Case(z, q, p, context=context, queries=queries, responses=responses, **memory)


def leaves(case: Case) -> dict[str, Tensor]:
    """The case's differentiable arguments by name."""
    names = ("z", "q", "p", "gamma", "beta", "gate", "weights")
    return {name: getattr(case, name) for name in names if getattr(case, name) is not None}


def form_of(case: Case, space: str) -> str:
    """The name of the form in which a case runs in a space."""
    p, gamma, beta, gate = case.parameters
    return check_network(case.z, case.q, p, gamma, beta, gate, case.context).form(space)
