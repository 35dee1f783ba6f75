"""Held-out rows of measured data: a trained model compared with least squares, ridge and the classical optimisers."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from memformer_kernels.nn import Memformer
from memformer_lab.solvers.estimates import Estimate, Tally
from memformer_lab.solvers.judging import quadratics_of, query_errors
from memformer_lab.solvers.optimizers import OPTIMIZERS, ols, ridge
from memformer_lab.tasks.real import RegressionSet
from memformer_lab.tasks.real import contexts as contexts_of
from memformer_lab.tasks.seeds import generator_for
from memformer_lab.tasks.standardised import StandardisedTasks

QUERIES = 4
"""Held-out rows that each context predicts."""

_EXAMPLES_A_FEATURE = 4
_LARGEST_SHARE = 0.75
_PENALTIES = tuple(10 ** (exponent / 4) for exponent in range(-12, 3))


def context_length(sets: Sequence[RegressionSet]) -> int:
    """Labelled rows in a context for sets with the same d: 4 d, but no more than 3/4 of the smallest set."""
    d, rows = sets[0].x.shape[1], min(len(dataset.y) for dataset in sets)
    return min(_EXAMPLES_A_FEATURE * d, int(_LARGEST_SHARE * rows))


def best_penalty(d: int, n: int, tasks: int, seed: int) -> float:
    """The ridge penalty with the least mean squared error on fresh `StandardisedTasks`, which models train on too.

    Chosen among 10^-3 ... 10^0.5, four a decade, without sight of any measured row.
    """
    drawn = StandardisedTasks(d, n, dtype=torch.float64).tokens(tasks, generator_for("real data", seed), QUERIES)
    h, b = quadratics_of(drawn.z, n)
    losses = {penalty: query_errors(ridge(h, b, penalty), drawn.z, drawn.target).mean() for penalty in _PENALTIES}
    return min(losses, key=losses.__getitem__)


def judge_set(
    model: Memformer, dataset: RegressionSet, n: int, contexts: int, penalty: float, seed: int
) -> dict[str, Estimate]:
    """Squared errors on held-out rows, averaged over contexts, in variances of the context's response.

    Every optimiser runs as many steps as the model has layers. "context mean" predicts the mean response.

    The intervals cover the drawing of contexts only: all contexts share the rows of one set.

    Args:
        model: trained for the set's d.
        dataset: the measured set.
        n: labelled rows in a context.
        contexts: contexts drawn.
        penalty: ridge's.
        seed: of the contexts.

    Returns:
        Estimates by method: "memformer", "ols", "ridge", the names of `OPTIMIZERS`, and "context mean".
    """
    generator = generator_for("real data", seed, index=1)
    batch = contexts_of(dataset, n, contexts, generator, QUERIES, dtype=torch.float64)
    h, b = quadratics_of(batch.z, n)
    weights = {"ols": ols(h, b), "ridge": ridge(h, b, penalty), "context mean": torch.zeros_like(b)}
    weights |= {method: optimise(h, b, model.layers)[-1] for method, optimise in OPTIMIZERS.items()}
    errors = {method: query_errors(solution, batch.z, batch.target) for method, solution in weights.items()}
    with torch.no_grad():
        prediction = model.predict(batch.z.to(model.q.dtype), context=n)
    errors["memformer"] = (prediction - batch.target).square().mean(1)
    estimates = Tally.of(torch.stack(list(errors.values())), block=1).estimates(seed)
    return dict(zip(errors, estimates, strict=True))
