"""Experiment 16: measured data, and a Memformer as a warm start for the conjugate gradient method."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from scipy.stats import wilcoxon
from torch import Tensor

from memformer_kernels import context_gram
from memformer_kernels.nn import Memformer
from memformer_lab.profiling.rates import best_milliseconds
from memformer_lab.reports.curves import series
from memformer_lab.reports.protocol import Experiment, Setting
from memformer_lab.reports.results import LABELS, Panel, Results
from memformer_lab.reports.verdicts import Check, at_least, below
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
_MARGIN = 0.1
"""A method whose ln error is at most this much above another's is no worse."""

_CLASSICAL = ("gradient_descent", "momentum", "nesterov", "conjugate_gradient")
_SAVED = 1.0
"""Iterations of CG that a start must save to be of use."""


def run(setting: Setting) -> Results:
    """Trains one model for each d on random tasks alone; judges it on held-out rows of every set."""
    names = setting.pick(tiny=("linnerud", "longley"), quick=real.names(), full=real.names())
    sets = [real.load(name) for name in names]
    first, recipe = setting.seeds[0], _recipe(setting)
    found = [_seed_results(sets, recipe, seed, setting) for seed in setting.seeds]
    longer = [_seed_results(sets, further, first, setting) for further in recipe.further()]
    places = range(len(sets))
    curves = []
    for method in found[0].errors:
        more = [one.errors[method] for one in longer] if method == "memformer" else []
        rows = [one.errors[method] for one in found]
        curves.append(series(LABELS.get(method, method), places, rows, longer=more))
    saved = series("saved by the start", places, [one.saved for one in found])
    spent = series("spent on the start", places, [_cost_in_iterations(one.x.shape[1]) for one in sets], reference=True)
    costs = [
        _microseconds(found[-1].models[one.x.shape[1]], one, _context(sets, one), _contexts(setting)) for one in sets
    ]
    error = Panel(
        "error",
        f"Held-out rows of measured data, {_LAYERS} layers or steps",
        "set",
        "ln mean squared error / variance",
        tuple(curves),
        categories=tuple(names),
    )
    panels = (
        error,
        _paired(error),
        Panel(
            "warm",
            f"CG iterations saved by a Memformer's start (to a gradient of {_TOLERANCE:g} of that at 0), and those "
            "that its multiplications would have paid for",
            "set",
            "iterations",
            (saved, spent),
            categories=tuple(names),
            digits=1,
        ),
        Panel(
            "net",
            "CG iterations spent on the start less those saved, over sets",
            "measure",
            "iterations",
            (series("spent less saved", (0,), [[spent.mean(x) - saved.mean(x)] for x in saved.x]),),
            categories=("all sets",),
            digits=1,
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
    return Results(panels, _signed_rank(panels[1]))


def judge(results: Results) -> Sequence[Check]:
    """Paired over sets: not worse than a method by more than `_MARGIN`; what the start saves, and what it costs."""
    paired, net, saved = results["paired"], results["net"].series[0], results["warm"].series[0]
    curve = paired.series[0]
    checks = []
    for place, label in enumerate(paired.categories):
        classical = label in [LABELS[name] for name in _CLASSICAL]
        name = f"mean over sets of ln error less that of {label}"
        part = f"no worse than {label} of as many steps" if classical else "the claim"
        checks.append(below(name, curve, _MARGIN, float(place), essential=classical, part=part))
    name = "CG iterations that the start costs less those it saves, mean over sets"
    checks.append(below(name, net, 0.0, 0.0, essential=False))
    wanted = series("iterations wanted", (0,), [[_SAVED]])
    over_sets = series("iterations saved", (0,), [[saved.mean(x)] for x in saved.x])
    name = "CG iterations that a start must save, against those it saves, mean over sets"
    checks.append(below(name, wanted, over_sets, 0, part="a useful start"))
    error, count = results["error"], len(results["error"].categories)
    mean = error[LABELS["memformer"]]
    name = f"sets where it is below the context mean, of {count}"
    won = float(sum(mean.mean(x) <= error["context mean"].mean(x) for x in mean.x))
    return [*checks, at_least(name, won, count, essential=False)]


def find(results: Results) -> str:
    """Differences over sets, and what a start saves."""
    paired, warm = results["paired"], results["warm"]
    curve, saved, spent = paired.series[0], *warm.series
    shown = []
    for label in (LABELS["conjugate_gradient"], LABELS["ridge"]):
        place = float(paired.categories.index(label))
        low, high = curve.interval(place)
        shown.append(f"{curve.mean(place):+.2f} [{low:.2f}, {high:.2f}] against {label}")
    count = len(results["error"].categories)
    return (
        f"Over {count} sets the Memformer's ln error is {' and '.join(shown)}; as a start it saves "
        f"{min(map(saved.mean, saved.x)):.1f} to {max(map(saved.mean, saved.x)):.1f} CG iterations and costs as much "
        f"as {min(map(spent.mean, spent.x)):.0f} to {max(map(spent.mean, spent.x)):.0f}"
    )


@dataclass(frozen=True)
class _SeedResults:
    """Of one seed: its models by d, log errors by method and set, and iterations saved by set."""

    models: dict[int, Memformer]
    errors: dict[str, list[float]]
    saved: list[float]


def _seed_results(sets: Sequence[real.RegressionSet], recipe: Recipe, seed: int, setting: Setting) -> _SeedResults:
    models = {d: _trained(seed, d, sets, recipe) for d in sorted({one.x.shape[1] for one in sets})}
    contexts, drawn = _contexts(setting), setting.pick(tiny=200, quick=4_000, full=4_000)
    errors: dict[str, list[float]] = {}
    saved = []
    for one in sets:
        d, n = one.x.shape[1], _context(sets, one)
        penalty = best_penalty(d, n, drawn, setting.seed)
        for method, estimate in judge_set(models[d], one, n, contexts, penalty, seed).items():
            errors.setdefault(method, []).append(estimate.log_mean)
        saved.append(_saved_iterations(models[d], one, n, contexts, seed))
    return _SeedResults(models, errors, saved)


def _contexts(setting: Setting) -> int:
    return setting.pick(tiny=10, quick=300, full=400)


def _context(sets: Sequence[real.RegressionSet], one: real.RegressionSet) -> int:
    return context_length([other for other in sets if other.x.shape[1] == one.x.shape[1]])


def _paired(error: Panel) -> Panel:
    """Ln error of the Memformer less each rival's, means over seeds; every row is a set."""
    ours = error[LABELS["memformer"]]
    rivals = [one for one in error.series if one is not ours and one.label != "context mean"]
    rows = [[ours.mean(x) - one.mean(x) for one in rivals] for x in ours.x]
    return Panel(
        "paired",
        "Ln error of the Memformer less that of a method, mean over sets (rows of this panel are sets, not seeds)",
        "method",
        "difference of ln errors",
        (series("Memformer less the method", range(len(rivals)), rows),),
        categories=tuple(one.label for one in rivals),
    )


def _signed_rank(paired: Panel) -> dict[str, float]:
    """Two-sided p-values of Wilcoxon's signed rank test over sets, by rival; 1 where all differences are 0."""
    curve = paired.series[0]
    found = {}
    for place, label in enumerate(paired.categories):
        differences = curve.column(float(place))
        usable = len(differences) > 1 and any(differences) and all(map(math.isfinite, differences))
        value = float(wilcoxon(differences).pvalue) if usable else 1.0
        found[f"Wilcoxon's p over {len(differences)} sets, against {label}"] = value
    return found


def _cost_in_iterations(d: int) -> float:
    """Multiplications of the network once the Gram matrix is known, in those of one CG iteration.

    With Bm free, layer l has X^T (H X) and X A (X^T H X) Bm^T, five products of d x d matrices, three of a matrix and
    a vector, and weights l + 1 registers of d (d + 1) numbers; the first layer's X is the identity, which saves two
    products. CG has one product of a matrix and a vector, and five operations on vectors.
    """
    layers = sum(5 * d**3 + 3 * d**2 + (layer + 1) * d * (d + 1) for layer in range(_LAYERS)) - 2 * d**3
    return layers / (d**2 + 5 * d)


def _recipe(setting: Setting) -> Recipe:
    return Recipe(
        setting.pick(tiny=3, quick=200, full=3_000), setting.pick(tiny=8, quick=64, full=128), 0.03, 0.1, warmup=5
    )


def _trained(seed: int, d: int, sets: Sequence[real.RegressionSet], recipe: Recipe) -> Memformer:
    tasks = StandardisedTasks(d, context_length([one for one in sets if one.x.shape[1] == d]))
    model = memformer(seed, d, _LAYERS, rule="lfom", structure="block")
    fit_memformer(model, lambda batch, generator: tasks.tokens(batch, generator, QUERIES), recipe, seed)
    return model


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
    protocol="One LFOM with Bm free for each number of features, never trained on measured rows; the first seed is "
    "also trained for twice the steps, at the same rate and at a third of it. Features are scaled by the context "
    "alone. Optimisers run as many steps as the model has layers, ridge has the penalty that is best on random tasks. "
    "Sets are the sample: ln errors are means over seeds and contexts of a set, their differences are paired by set, "
    "and the interval is Student's over sets; Wilcoxon's signed rank test is listed beside it. No worse means by at "
    "most 0.1. A useful start saves an iteration of CG, mean over sets. Its cost is counted in multiplications, "
    "in units of one CG iteration, with the Gram matrix given: with Bm free it is more iterations than CG needs at "
    "all, so it is listed and decides nothing. Times depend on the machine and are never judged.",
    asks="sets that no package ships, and peers that are given the network's budget for tuning",
    minutes=4,
    run=run,
    judge=judge,
    find=find,
)
