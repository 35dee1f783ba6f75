"""What several experiments share: tasks, depths, reference figures, and Memformers that the rules do not name."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from memformer_kernels.nn import Memformer, StackArguments
from memformer_lab.reports.curves import Series, series
from memformer_lab.reports.protocol import Setting
from memformer_lab.reports.results import Results
from memformer_lab.reports.verdicts import Check, close
from memformer_lab.runs.fitting import Recipe, fit_on_tasks, seeded
from memformer_lab.solvers.estimates import Estimate
from memformer_lab.solvers.first_order import first_order_method
from memformer_lab.solvers.judging import Solver, memformer_estimates
from memformer_lab.tasks.gaussian import GaussianTasks

Preconditioner = Literal["free", "scalar"]

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


class Variant(Memformer):
    """A `Memformer` with a constrained preconditioner or memory.

    Args:
        d: features.
        layers: layers.
        preconditioner: "free"; "scalar": A_l is a multiple of the identity. A_l = -I/2 then stays as it is, since the
            weights of the registers, of which the linear rule gets one a layer, scale it.
        registers: how many of the last registers an lfom layer weights, None for all. 1 keeps no memory.
        **arguments: of `Memformer`.

    Raises:
        ValueError: for the residual rule with a scalar preconditioner, which would be lfom.
    """

    def __init__(
        self,
        d: int,
        layers: int,
        *,
        preconditioner: Preconditioner = "free",
        registers: int | None = None,
        **arguments: Any,
    ) -> None:
        super().__init__(d, layers, **{"device": "cpu", "dtype": torch.float32, **arguments})
        self.registers = registers
        if preconditioner == "scalar":
            if self.rule == "lfom_residual":
                raise ValueError("rule must not be 'lfom_residual' where the preconditioner is scalar: that is 'lfom'")
            identity = torch.eye(d, device=self.q.device, dtype=self.q.dtype)
            start = (-0.5 / self.heads * identity).expand_as(self.q).clone()
            self.q = nn.Parameter(start, requires_grad=False)
            if self.gamma is None:
                self.gamma = nn.Parameter(self.q.new_ones(layers, self.heads, 1, 1))

    def stack_arguments(self) -> StackArguments:
        """As `Memformer.stack_arguments`, with the constraints put in."""
        arguments = super().stack_arguments()
        if self.registers is not None and arguments["gamma"] is not None:
            arguments["gamma"] = _newest(arguments["gamma"], self.registers)
        return arguments

    def trainable_entries(self) -> dict[str, Tensor]:
        """As `Memformer.trainable_entries`, without the weights that are held at 0."""
        entries = super().trainable_entries()
        if self.registers is not None and "gamma" in entries:
            entries["gamma"] &= _newest(torch.ones_like(entries["gamma"]), self.registers) != 0
        return entries


def trained_models(setting: Setting, tasks: GaussianTasks, recipe: Recipe, **arguments: Any) -> list[list[Variant]]:
    """One trained model for each seed (rows) and each of `DEPTHS` (columns); arguments are those of `network`."""
    rows = []
    for seed in setting.seeds:
        rows.append([network(seed, tasks.d, depth, **arguments) for depth in DEPTHS])
        for model in rows[-1]:
            fit_on_tasks(model, tasks, recipe, seed)
    return rows


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
    models = [model for row in trained_models(setting, tasks, recipe, **arguments) for model in row]
    found = [one[0] for one in memformer_estimates(models, tasks, count, setting.seed)]
    return [found[start : start + len(DEPTHS)] for start in range(0, len(found), len(DEPTHS))]


def solver_of(model: Memformer) -> Solver:
    """A response-only model as a solver with one row.

    Raises:
        ValueError: for a model that is no first-order method.
    """
    method = first_order_method(model)
    if method is None:
        raise ValueError(f"model: expected a response-only one of one head, got {model}")
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


def half_widths(rows: Sequence[Sequence[Estimate]]) -> list[float]:
    """Half of the widest bootstrap interval at each place; 0 where one is not finite."""
    columns = [[0.5 * (one.high - one.low) for one in column] for column in zip(*rows, strict=True)]
    return [max(column) if all(map(math.isfinite, column)) else 0.0 for column in columns]


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


def _newest(gamma: Tensor, registers: int) -> Tensor:
    """gamma with the weights of all but the newest `registers` registers set to 0."""
    layer = torch.arange(gamma.shape[1], device=gamma.device, dtype=torch.int64)
    kept = (layer[:, None] - layer[None, :]) < registers
    return torch.where(kept[:, :, None, None, None], gamma, 0.0)
