"""How much the main job does, and the training runs that follow from it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from memformer_lab.runs.config import TrainingConfig
from memformer_lab.solvers.held_out import QUERIES, context_length
from memformer_lab.tasks import real
from memformer_lab.tasks.real import RegressionSet

DEPTHS = (1, 2, 3, 4)
"""Layers of the Memformers on the random tasks, and steps of the optimisers beside them."""

REAL_LAYERS = 4
"""Layers of the Memformers for measured data, and steps of the optimisers beside them."""

# Rare tasks with a nearly singular context dominate the gradients of deep models with Bm free, so these clip harder.
_BLOCK_CLIP = {1: 1.0, 2: 1.0, 3: 0.03, 4: 0.01}
_BLOCK_BATCH = {1: 256, 2: 256, 3: 128, 4: 128}


@dataclass(frozen=True)
class Budget:
    """How much the main job does.

    Attributes:
        response_steps: optimiser steps of a response-only model.
        block_steps: optimiser steps of the deepest model with Bm free; shallower ones need fewer.
        real_steps: optimiser steps of a model for measured data.
        tasks: fresh tasks that response-only models and conjugate gradient are judged on.
        block_tasks: fresh tasks that models with Bm free are judged on.
        classical_tasks: fresh tasks that gradient descent, momentum and Nesterov are judged on; their step sizes need
            every task's eigenvalues, which take longest.
        sets: the measured sets.
        contexts: contexts drawn from each measured set.
    """

    response_steps: int = 1500
    block_steps: int = 2500
    real_steps: int = 600
    tasks: int = 10_000_000
    block_tasks: int = 400_000
    classical_tasks: int = 500_000
    sets: tuple[str, ...] = real.names()
    contexts: int = 2000

    @classmethod
    def quick(cls) -> Budget:
        """Seconds of work, to see that everything runs; its figures mean nothing."""
        return cls(20, 20, 20, 40_000, 2_000, 2_000, ("linnerud", "longley"), 50)


@dataclass(frozen=True)
class Run:
    """A training run of the main job: its name, which is its folder's too, and its configuration."""

    name: str
    config: TrainingConfig

    @property
    def tasks(self) -> int:
        """Tasks trained on."""
        return self.config.steps * self.config.batch


def depth_runs(budget: Budget, seed: int) -> dict[str, list[Run]]:
    """LFOM Memformers of every depth on the non-isotropic tasks: "response-only", and "block" with Bm free."""
    response, block = [], []
    for depth in DEPTHS:
        config = TrainingConfig(layers=depth, steps=budget.response_steps, seed=seed, rotation_seed=seed)
        response.append(Run(f"response-only-{depth}", config))
        config = replace(
            config,
            structure="block",
            batch=_BLOCK_BATCH[depth],
            steps=budget.block_steps * (depth + 1) // (DEPTHS[-1] + 1),
            learning_rate=0.06,
            clip=_BLOCK_CLIP[depth],
            warmup=100,
        )
        block.append(Run(f"block-{depth}", config))
    return {"response-only": response, "block": block}


def real_runs(sets: Sequence[RegressionSet], budget: Budget, seed: int) -> dict[int, Run]:
    """One LFOM Memformer with Bm free for each d among the measured sets, by d."""
    runs = {}
    for d in sorted({dataset.x.shape[1] for dataset in sets}):
        config = TrainingConfig(
            d=d,
            n=context_length([dataset for dataset in sets if dataset.x.shape[1] == d]),
            layers=REAL_LAYERS,
            structure="block",
            tasks="standardised",
            queries=QUERIES,
            batch=64,
            steps=budget.real_steps,
            learning_rate=0.03,
            clip=0.1,
            warmup=50,
            seed=seed,
        )
        runs[d] = Run(f"measured-d{d}", config)
    return runs
