"""Tasks, depths and reference figures that several experiments share."""

from __future__ import annotations

from memformer_lab.tasks.gaussian import GaussianTasks

DEPTHS = (1, 2, 3, 4)

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
