"""What several experiments share: tasks, depths, reference figures, and Memformers that the rules do not name."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from memformer_kernels.nn import Memformer
from memformer_lab.reports.curves import Series, series
from memformer_lab.reports.protocol import Setting
from memformer_lab.reports.results import Results
from memformer_lab.reports.verdicts import Check, close
from memformer_lab.runs.fitting import Recipe, fit_on_tasks, seeded
from memformer_lab.runs.variants import Preconditioner, Variant
from memformer_lab.solvers.estimates import Estimate, log_of
from memformer_lab.solvers.first_order import first_order_method
from memformer_lab.solvers.judging import Solver
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


def trained_models(setting: Setting, tasks: GaussianTasks, recipe: Recipe, **arguments: Any) -> list[list[Variant]]:
    """One trained model for each seed (rows) and each of `DEPTHS` (columns); arguments are those of `network`."""
    rows = []
    for seed in setting.seeds:
        rows.append([network(seed, tasks.d, depth, **arguments) for depth in DEPTHS])
        for model in rows[-1]:
            fit_on_tasks(model, tasks, recipe, seed)
    return rows


def solver_of(model: Memformer) -> Solver:
    """A response-only model as a solver with one row.

    Raises:
        ValueError: for a model that is no first-order method.
    """
    method = first_order_method(model)
    if method is None:
        raise ValueError(f"model: expected a response-only one whose heads share their coefficients, got {model}")
    return method.solver(layers=False)


def judged(label: str, x: Sequence[float], rows: Sequence[Sequence[Estimate]], optimum: Sequence[Estimate]) -> Series:
    """A curve of log means of a trained model, a row a seed, beside the optimum on the same tasks.

    `sampling` is half of the widest seed's bootstrap interval over tasks, which all seeds share.
    """
    return series(
        label,
        x,
        [[one.log_mean for one in row] for row in rows],
        sampling=half_widths(rows),
        optimum=[one.log_mean for one in optimum],
    )


def excess(curve: Series) -> Series:
    """A trained curve less its optimum on the same tasks, seed by seed. 0 is the best."""
    rows = [[value - best for value, best in zip(row, curve.optimum, strict=True)] for row in curve.values]
    return series(curve.label, curve.x, rows, optimum=[0.0] * len(curve.x))


def change_of(curve: Series) -> Series:
    """A curve less its value at the place before, from its second place on, seed by seed and longer training alike."""
    values, longer = (
        [[after - before for before, after in pairwise(row)] for row in rows] for rows in (curve.values, curve.longer)
    )
    widths = [math.hypot(*pair) for pair in pairwise(curve.sampling)]
    return series(f"{curve.label}, change", curve.x[1:], values, sampling=widths, longer=longer)


def half_widths(rows: Sequence[Sequence[Estimate]]) -> list[float]:
    """Half of the widest bootstrap interval at each place; 0 where one is not finite."""
    columns = [[0.5 * (one.high - one.low) for one in column] for column in zip(*rows, strict=True)]
    return [max(column) if all(map(math.isfinite, column)) else 0.0 for column in columns]


def relative_difference(found: Tensor, expected: Tensor) -> float:
    """The norm of the difference over that of what was expected."""
    return float((found - expected).norm() / expected.norm())


def worst(values: Iterable[float]) -> float:
    """The largest; what is no number is larger than any."""
    return max(values, key=lambda value: (math.isnan(value), value))


def floored_log(value: float, dtype: torch.dtype) -> float:
    """ln of a mean square of numbers of order 1; what is below the dtype's rounding of them is as good as that."""
    return log_of(max(value, torch.finfo(dtype).eps ** 2))


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
