"""Experiment 15: families of tasks that are not linear with Gaussian features."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Generator

from memformer_kernels.nn import Memformer
from memformer_lab.reports.curves import series
from memformer_lab.reports.protocol import Experiment, Setting
from memformer_lab.reports.results import Panel, Results
from memformer_lab.reports.verdicts import Check, at_most
from memformer_lab.runs.fitting import Recipe, fit_memformer, memformer
from memformer_lab.solvers.first_order import Draw
from memformer_lab.solvers.judging import quadratics_of, query_errors
from memformer_lab.solvers.optimizers import conjugate_gradient, gradient_descent, ols, ridge
from memformer_lab.tasks.families import FAMILIES, family_tokens
from memformer_lab.tasks.gaussian import TaskBatch
from memformer_lab.tasks.seeds import generator_for

_D, _N, _LAYERS = 5, 20, 3
_FLOOR = 1e-5
_PENALTIES = tuple(10 ** (exponent / 2) for exponent in range(-6, 3))
_LINEAR = ("linear", "sphere", "gamma-scaled")
_NONLINEAR = ("relu", "two-layer network", "sinusoid", "logistic")


def run(setting: Setting) -> Results:
    """Trains a response-only and a Bm-free LFOM on each family; baselines read the same contexts."""
    scored = setting.pick(tiny=100, quick=10_000, full=100_000)
    rows: dict[str, list[list[float]]] = {}
    for seed in setting.seeds:
        columns: dict[str, list[float]] = {}
        for name in FAMILIES:
            draw = _drawer(name)
            judged = draw(scored, generator_for("evaluation", seed))
            scale = float(judged.target.double().square().mean())
            found = _baselines(draw, judged, setting, seed)
            for label, structure in (("LFOM", "response-only"), ("LFOM, Bm free", "block")):
                found[label] = _memformer_error(draw, judged, structure, setting, seed)
            for label, value in found.items():
                relative = max(value / scale, _FLOOR)
                columns.setdefault(label, []).append(math.log(relative) if relative < math.inf else math.inf)
        for label, values in columns.items():
            rows.setdefault(label, []).append(values)
    panel = Panel(
        "families",
        f"Task families, d = {_D}, n = {_N}, {_LAYERS} layers or steps: error relative to the response's "
        "variance, fresh tasks",
        "family",
        "ln relative squared error",
        tuple(series(label, range(len(FAMILIES)), values) for label, values in rows.items()),
        categories=tuple(FAMILIES),
    )
    return Results((panel,))


def judge(results: Results) -> Sequence[Check]:
    """Linear responses: better than as many steps of GD, perhaps of CGD; others: near the best linear predictor."""
    panel = results["families"]
    places = {name: place for place, name in enumerate(FAMILIES)}
    free = panel["LFOM, Bm free"]
    checks = []
    for name in _LINEAR:
        place = places[name]
        fixed, descent = panel["LFOM"].mean(place), panel["gradient descent"].mean(place)
        # Heavy tails give every task its own scale, which gradient descent's step follows and a trained step cannot.
        light = name != "gamma-scaled"
        checks.append(at_most(f"{name}: LFOM with Bm = 0 is below gradient descent", fixed, descent, essential=light))
        cgd = panel["CGD"].mean(place)
        checks.append(at_most(f"{name}: LFOM with Bm free is below CGD", free.mean(place), cgd, essential=False))
    for name in _NONLINEAR:
        place = places[name]
        ridge_value = panel["ridge, best penalty"].mean(place)
        checks.append(at_most(f"{name}: LFOM with Bm free is no worse than ridge", free.mean(place), ridge_value, 0.03))
        checks.append(
            at_most(
                f"{name}: LFOM with Bm free is below OLS", free.mean(place), panel["OLS"].mean(place), essential=False
            )
        )
    return checks


def find(results: Results) -> str:
    """Relative errors by family."""
    panel = results["families"]
    names = ("LFOM", "LFOM, Bm free", "CGD", "ridge, best penalty")
    return f"{', '.join(panel.categories)}: {'; '.join(f'{name} {panel[name].shown()}' for name in names)}"


def _drawer(name: str) -> Draw:
    def draw(batch: int, generator: Generator) -> TaskBatch:
        return family_tokens(name, batch, generator, d=_D, n=_N, queries=1)

    return draw


def _memformer_error(draw: Draw, judged: TaskBatch, structure: str, setting: Setting, seed: int) -> float:
    block = structure == "block"
    steps = setting.pick(tiny=3, quick=200, full=500)
    recipe = Recipe(
        steps,
        setting.pick(tiny=8, quick=128, full=256),
        0.03 if block else 0.1,
        0.1 if block else 1.0,
        warmup=setting.pick(tiny=1, quick=10, full=50),
    )
    model: Memformer = memformer(seed, _D, _LAYERS, rule="lfom", structure=structure)
    fit_memformer(model, draw, recipe, seed)
    with torch.no_grad():
        predicted = model.predict(judged.z, context=judged.context)
    return float((predicted - judged.target).double().square().mean())


def _baselines(draw: Draw, judged: TaskBatch, setting: Setting, seed: int) -> dict[str, float]:
    tuning = draw(setting.pick(tiny=50, quick=4000, full=20_000), generator_for("training", seed, 1))

    def error(batch: TaskBatch, method: str, penalty: float = 1.0) -> float:
        z = batch.z.double()
        h, b = quadratics_of(z, batch.context)
        weights = {
            "OLS": lambda: ols(h, b),
            "ridge": lambda: ridge(h, b, penalty),
            "CGD": lambda: conjugate_gradient(h, b, _LAYERS)[-1],
            "gradient descent": lambda: gradient_descent(h, b, _LAYERS)[-1],
        }[method]()
        return float(query_errors(weights, z, batch.target).mean())

    penalty = min(_PENALTIES, key=lambda value: error(tuning, "ridge", value))
    found = {method: error(judged, method) for method in ("gradient descent", "CGD", "OLS")}
    return found | {"ridge, best penalty": error(judged, "ridge", penalty)}


EXPERIMENT = Experiment(
    number=15,
    name="families",
    title="Task families",
    claim="Memformers also learn to predict in context for covariates on a sphere or with heavy tails, and for relu, "
    "network, sinusoid and logistic responses.",
    source="task families of Garg et al., arXiv 2208.01066; Ahn et al., arXiv 2310.01082; Mahankali et al., arXiv "
    "2307.03576",
    protocol="One model a family, seed and structure. All methods here predict linearly in the query, so on nonlinear "
    "responses the best they can do is the best linear predictor; ridge has the penalty that is best for the family, "
    "chosen on separate tasks. OLS is exact on noiseless linear responses; errors below 1e-5 are shown as 1e-5.",
    run=run,
    judge=judge,
    find=find,
)
