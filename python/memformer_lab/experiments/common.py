"""What several experiments share: tasks, depths, reference figures, and Memformers that the rules do not name."""

from __future__ import annotations

from typing import Any

from memformer_lab.reports.protocol import Setting
from memformer_lab.reports.results import Results
from memformer_lab.reports.verdicts import Check, close
from memformer_lab.runs.fitting import Recipe, fit_on_tasks, seeded
from memformer_lab.runs.variants import Preconditioner, Variant
from memformer_lab.solvers.estimates import Estimate
from memformer_lab.solvers.judging import memformer_estimates
from memformer_lab.tasks.gaussian import GaussianTasks

DEPTHS = (1, 2, 3, 4)
"""Layers of Memformers, and steps of the optimisers that they are compared with."""

NONISOTROPIC, ISOTROPIC = "non-isotropic", "isotropic"

CGD = {NONISOTROPIC: (0.69, 0.14, -0.60, -1.61), ISOTROPIC: (-0.09, -1.78, -3.76, -6.39)}
"""Log mean squared errors of exact CGD after 1..4 steps, d = 5, n = 20."""

LFOM_LIMITS = (0.15, -0.99, -1.96, -2.75)
"""What response-only LFOM models of depth 1..4 must reach on the non-isotropic tasks."""

LFOM_BLOCK_LIMITS = (0.13, -2.9, -6.5, -8.3)
"""What LFOM models with Bm free must reach there; depth 1 cannot be below ln(d(d+1)/(n+d+1)) = 0.143 in expectation."""

GDPP = (0.13, -2.2, -3.2)
"""GD++ without memory, depths 1 to 3; at depth 4 rare tasks dominate the mean."""


def gaussian_tasks(kind: str, seed: int, n: int = 20) -> GaussianTasks:
    """The tasks of a kind; `seed` draws the rotation."""
    return GaussianTasks.nonisotropic(n, rotation_seed=seed) if kind == NONISOTROPIC else GaussianTasks.isotropic(5, n)


def trained_grid(
    setting: Setting, tasks: GaussianTasks, recipe: Recipe, count: int, **arguments: Any
) -> list[list[Estimate]]:
    """Estimates of one trained model for each seed (rows) and each of `DEPTHS` (columns), all on the same fresh tasks.

    Args:
        setting: gives the seeds.
        tasks: what models are trained and judged on.
        recipe: the optimiser's settings.
        count: fresh tasks.
        **arguments: of `network`.
    """
    models = []
    for seed in setting.seeds:
        for depth in DEPTHS:
            models.append(network(seed, tasks.d, depth, **arguments))
            fit_on_tasks(models[-1], tasks, recipe, seed)
    found = [one[0] for one in memformer_estimates(models, tasks, count, setting.seed)]
    return [found[start : start + len(DEPTHS)] for start in range(0, len(found), len(DEPTHS))]


def cgd_checks(results: Results) -> list[Check]:
    """Whether CGD comes to its known figures on both kinds of tasks, in panels of their names."""
    return [
        close(f"CGD, {kind}, {depth} steps", results[kind]["CGD"].mean(depth), value, 0.05, essential=False)
        for kind, values in CGD.items()
        for depth, value in zip(DEPTHS, values, strict=True)
    ]


def network(
    seed: int,
    d: int,
    layers: int,
    *,
    preconditioner: Preconditioner = "free",
    registers: int | None = None,
    **arguments: Any,
) -> Variant:
    """A fresh `Variant` with seeded parameters."""
    model = seeded(lambda: Variant(d, layers, preconditioner=preconditioner, registers=registers, **arguments), seed)
    assert isinstance(model, Variant)
    return model
