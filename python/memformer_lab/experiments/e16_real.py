"""Experiment 16: measured data, and a Memformer as a warm start for the conjugate gradient method."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from memformer_kernels import context_gram
from memformer_kernels.nn import Memformer
from memformer_lab.profiling.rates import best_milliseconds
from memformer_lab.reports.curves import series
from memformer_lab.reports.protocol import Experiment, Setting
from memformer_lab.reports.results import LABELS, Panel, Results
from memformer_lab.reports.verdicts import Check, at_least, at_most
from memformer_lab.runs.fitting import Recipe, fit_memformer, memformer
from memformer_lab.solvers.first_order import implied_weights
from memformer_lab.solvers.held_out import QUERIES, best_penalty, context_length, judge_set
from memformer_lab.solvers.judging import quadratics_of
from memformer_lab.solvers.optimizers import conjugate_gradient, ols, ridge
from memformer_lab.tasks import real
from memformer_lab.tasks.seeds import generator_for
from memformer_lab.tasks.standardised import StandardisedTasks

_LAYERS = 4
_TOLERANCE = 1e-3
_STEPS = 40


def run(setting: Setting) -> Results:
    """Trains one model for each d on random tasks alone; judges it on held-out rows of every set."""
    names = setting.pick(tiny=("linnerud", "longley"), quick=real.names(), full=real.names())
    contexts = setting.pick(tiny=10, quick=300, full=400)
    sets = [real.load(name) for name in names]
    rows: dict[str, list[list[float]]] = {}
    saved = []
    for seed in setting.seeds:
        models = {d: _trained(seed, d, sets, setting) for d in sorted({one.x.shape[1] for one in sets})}
        columns: dict[str, list[float]] = {}
        gains = []
        for one in sets:
            model, n = models[one.x.shape[1]]
            penalty = best_penalty(one.x.shape[1], n, setting.pick(tiny=200, quick=4000, full=4_000), setting.seed)
            for method, estimate in judge_set(model, one, n, contexts, penalty, seed).items():
                columns.setdefault(method, []).append(estimate.log_mean)
            gains.append(_saved_iterations(model, one, n, contexts, seed))
        for method, values in columns.items():
            rows.setdefault(method, []).append(values)
        saved.append(gains)
    costs = [_microseconds(models[one.x.shape[1]][0], one, models[one.x.shape[1]][1], contexts) for one in sets]
    places = range(len(sets))
    labels = {method: LABELS.get(method, method) for method in rows}
    panels = (
        Panel(
            "error",
            f"Held-out rows of measured data, {_LAYERS} layers or steps",
            "set",
            "ln mean squared error / variance",
            tuple(series(labels[m], places, v) for m, v in rows.items()),
            categories=tuple(names),
        ),
        Panel(
            "warm",
            f"CG iterations saved by a Memformer's start (to a gradient of {_TOLERANCE:g} of that at 0)",
            "set",
            "iterations",
            (series("saved", places, saved),),
            categories=tuple(names),
        ),
        Panel(
            "cost",
            "Microseconds a context on this machine, Gram matrix and query included, one thread",
            "set",
            "microseconds",
            tuple(series(method, places, [cost[method] for cost in costs]) for method in costs[0]),
            log_y=True,
            categories=tuple(names),
            digits=3,
        ),
    )
    return Results(panels)


def judge(results: Results) -> Sequence[Check]:
    """Against equal steps of the classical methods on most sets; OLS and ridge compared; what the warm start saves."""
    panel = results["error"]
    ours, cgd = panel[LABELS["memformer"]], panel[LABELS["conjugate_gradient"]]
    count = len(panel.categories)

    def wins(label: str, slack: float = 0.0) -> float:
        return float(sum(ours.mean(x) <= panel[label].mean(x) + slack for x in ours.x))

    checks = [
        at_least(
            f"sets where the Memformer is no worse than {LABELS[name]} by 0.02, of {count}",
            wins(LABELS[name], 0.02),
            count / 2,
        )
        for name in ("gradient_descent", "nesterov", "conjugate_gradient")
    ]
    checks.append(
        at_least(f"sets where it is below the context mean, of {count}", wins("context mean"), count, essential=False)
    )
    for name in ("ols", "ridge"):
        checks.append(
            at_least(
                f"sets where it is no worse than {LABELS[name]} by 0.02, of {count}",
                wins(LABELS[name], 0.02),
                count / 2,
                essential=False,
            )
        )
    warm = results["warm"]["saved"]
    average = sum(warm.mean(x) for x in warm.x) / count
    checks.append(at_least("CG iterations saved by the warm start, mean over sets", average, 0.0, essential=False))
    checks.append(
        at_most(
            "CGD's own error is not broken: mean over sets",
            sum(cgd.mean(x) for x in cgd.x) / count,
            0.0,
            essential=False,
        )
    )
    return checks


def find(results: Results) -> str:
    """Errors by set, and iterations saved."""
    panel, warm = results["error"], results["warm"]["saved"]
    names = [LABELS[name] for name in ("memformer", "conjugate_gradient", "ols", "ridge")]
    curves = "; ".join(f"{name} {panel[name].shown()}" for name in names)
    return f"{', '.join(panel.categories)}: {curves}; CG iterations saved {warm.shown(1)}"


def _trained(seed: int, d: int, sets: Sequence[real.RegressionSet], setting: Setting) -> tuple[Memformer, int]:
    n = context_length([one for one in sets if one.x.shape[1] == d])
    recipe = Recipe(
        setting.pick(tiny=3, quick=200, full=400), setting.pick(tiny=8, quick=64, full=128), 0.03, 0.1, warmup=5
    )
    tasks = StandardisedTasks(d, n)
    model = memformer(seed, d, _LAYERS, rule="lfom", structure="block")
    fit_memformer(model, lambda batch, generator: tasks.tokens(batch, generator, QUERIES), recipe, seed)
    return model, n


def _microseconds(model: Memformer, dataset: real.RegressionSet, n: int, count: int) -> dict[str, float]:
    batch = real.contexts(dataset, n, count, generator_for("real data", 0, 3))

    def solved(method: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
        h, b = quadratics_of(batch.z, n)
        weights = method(h.contiguous(), b.contiguous())
        return (batch.z[:, n:, :-1] @ weights.unsqueeze(-1)).squeeze(-1)

    with torch.no_grad():
        calls: dict[str, Callable[[], object]] = {
            "Memformer": lambda: model.predict(batch.z, context=n),
            "CGD": lambda: solved(lambda h, b: conjugate_gradient(h, b, _LAYERS)[-1]),
            "OLS": lambda: solved(ols),
            "ridge": lambda: solved(lambda h, b: ridge(h, b, 0.1)),
        }
        return {name: best_milliseconds(call, batch.z.device) / count * 1e3 for name, call in calls.items()}


def _saved_iterations(model: Memformer, dataset: real.RegressionSet, n: int, count: int, seed: int) -> float:
    """Mean iterations of CG to the tolerance from 0, less those from the Memformer's weights."""
    batch = real.contexts(dataset, n, count, generator_for("real data", seed, 2), dtype=torch.float64)
    gram = context_gram(batch.z, n) / n
    h, b = gram[:, :-1, :-1], gram[:, :-1, -1]
    with torch.no_grad():
        start = implied_weights(model, gram.float()).double()
    goal = _TOLERANCE * b.norm(dim=1)
    cold = _iterations(h, b, goal)
    warm = _iterations(h, b - (h @ start.unsqueeze(-1)).squeeze(-1), goal)
    return float((cold - warm).mean())


def _iterations(h: Tensor, b: Tensor, goal: Tensor) -> Tensor:
    """Steps of CG from 0 on (h, b) until the gradient's norm is at most `goal`; `_STEPS` where it never is."""
    residuals = b - torch.einsum("bij,kbj->kbi", h, conjugate_gradient(h, b, _STEPS))
    norms = torch.cat([b.norm(dim=1)[None], residuals.norm(dim=2)])
    reached = norms <= goal
    first = reached.to(torch.uint8).argmax(0)
    return torch.where(reached.any(0), first, _STEPS).double()


EXPERIMENT = Experiment(
    number=16,
    name="real",
    title="Measured data",
    claim="A Memformer trained on random tasks alone predicts held-out rows of measured data as well as classical "
    "optimisers with as many steps, and is a useful start for them.",
    source="ours; the data ship with scikit-learn and statsmodels",
    protocol="One LFOM with Bm free for each number of features, never trained on measured rows. Features are scaled "
    "by the context alone. Optimisers run as many steps as the model has layers, ridge has the penalty that is best "
    "on random tasks. Times depend on the machine and are never judged. Intervals cover the drawing of contexts and "
    "the seeds, not the choice of sets.",
    run=run,
    judge=judge,
    find=find,
)
