"""Experiment 1: cgd-like Memformers with a scalar and with a free preconditioner."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from memformer_lab.experiments.common import (
    CGD,
    DEPTHS,
    ISOTROPIC,
    NONISOTROPIC,
    cgd_checks,
    gaussian_tasks,
    half_widths,
    judged,
    solver_of,
    trained_models,
)
from memformer_lab.reports.curves import series
from memformer_lab.reports.networks import Network
from memformer_lab.reports.protocol import Experiment, Setting
from memformer_lab.reports.results import Panel, Results
from memformer_lab.reports.verdicts import Check, all_below
from memformer_lab.runs.fitting import Recipe
from memformer_lab.solvers.estimates import estimate
from memformer_lab.solvers.judging import solver_errors, steps_of
from memformer_lab.solvers.optimum import Optimum, exact_optimum, sampled_form
from memformer_lab.tasks.gaussian import GaussianTasks

_MODELS: dict[str, dict[str, Any]] = {
    "cgd-like, scalar preconditioner": {"rule": "cgd", "preconditioner": "scalar"},
    "cgd-like, free preconditioner": {"rule": "cgd", "preconditioner": "free"},
    "linear, scalar preconditioner": {"rule": "linear", "preconditioner": "scalar"},
    "linear, free preconditioner": {"rule": "linear", "preconditioner": "free"},
}
_WIDTH = len(DEPTHS)
_LIKE = "with a scalar preconditioner no worse than CGD, {} tasks"
_BETTER = "better than CGD with free preconditioners, {} tasks"
_SLACK = 0.1


def run(setting: Setting) -> Results:
    """Trains the four models at every depth on both kinds of data; all are judged on the same fresh tasks."""
    recipe = Recipe(setting.pick(tiny=3, quick=800, full=8000), batch=setting.pick(tiny=8, quick=256, full=512))
    count = setting.pick(tiny=500, quick=100_000, full=1_000_000)
    sample = setting.pick(tiny=2000, quick=100_000, full=2_000_000)
    panels, networks = [], []
    for kind in (NONISOTROPIC, ISOTROPIC):
        tasks = gaussian_tasks(kind, setting.seed)
        best = _optima(tasks, sample, setting.seed)
        solvers = [steps_of("conjugate_gradient", _WIDTH)]
        for label, arguments in _MODELS.items():
            rows = trained_models(setting, tasks, recipe, **arguments)
            networks.append(Network.of(rows[0][-1], tasks, kind, label, DEPTHS[-1]))
            solvers += [solver_of(model) for row in rows for model in row]
            solvers += [one.method(torch.float32).solver(layers=False) for one in best[label]]
        found = estimate(solver_errors(tasks, solvers), count, setting.seed)
        cgd, *rest = [found[k : k + _WIDTH] for k in range(0, len(found), _WIDTH)]
        curves, size = [], len(setting.seeds) + 1
        for index, label in enumerate(_MODELS):
            *estimates, optimum = rest[index * size : (index + 1) * size]
            curves.append(judged(label, DEPTHS, estimates, optimum))
        curves.append(series("CGD", DEPTHS, [one.log_mean for one in cgd], sampling=half_widths([cgd])))
        curves.append(series("CGD, reference", DEPTHS, CGD[kind], reference=True))
        title = f"cgd-like Memformers on {kind} tasks, d = 5, n = 20, fresh tasks"
        panels.append(Panel(kind, title, "depth", "ln mean squared error", tuple(curves), digits=3))
    return Results(tuple(panels), networks=tuple(networks))


def judge(results: Results) -> Sequence[Check]:
    """Scalar preconditioners against CGD, free ones against CGD on both kinds of data, and what memory is worth."""
    panel, isotropic = results[NONISOTROPIC], results[ISOTROPIC]
    scalar, free = panel["cgd-like, scalar preconditioner"], panel["cgd-like, free preconditioner"]
    checks = []
    for kind, own in ((NONISOTROPIC, panel), (ISOTROPIC, isotropic)):
        name = f"{kind}: scalar preconditioner is no worse than CGD at depth {{}}"
        checks += all_below(name, own[scalar.label], own["CGD"], DEPTHS, _SLACK, part=_LIKE.format(kind))
    for kind in (NONISOTROPIC, ISOTROPIC):
        name = f"{kind}: free preconditioner is below CGD at depth {{}}"
        own = results[kind]
        checks += all_below(name, own[free.label], own["CGD"], DEPTHS, part=_BETTER.format(kind))
    for kind in ("scalar", "free"):
        name = f"{NONISOTROPIC}, {kind} preconditioner: memory gains at depth {{}}"
        with_memory, without = (panel[f"{rule}, {kind} preconditioner"] for rule in ("cgd-like", "linear"))
        checks += all_below(name, with_memory, without, DEPTHS[-1:], essential=False)
    return checks + cgd_checks(results)


def find(results: Results) -> str:
    """The last depth: free and scalar preconditioners against CGD, and what memory changes."""
    panel, last = results[NONISOTROPIC], DEPTHS[-1]
    free, scalar, cgd = (panel[name].mean(last) for name in (*reversed(list(_MODELS)[:2]), "CGD"))
    plain = results[ISOTROPIC]
    gain = panel["linear, free preconditioner"].mean(last) - free
    return (
        f"At depth {last} on non-isotropic tasks free preconditioners reach {free:.2f}, scalar ones {scalar:.2f}, CGD "
        f"{cgd:.2f}; on isotropic tasks {plain['cgd-like, free preconditioner'].mean(last):.2f} against CGD's "
        f"{plain['CGD'].mean(last):.2f}; with free preconditioners memory takes off {round(gain, 2) + 0.0:.2f}."
    )


def _optima(tasks: GaussianTasks, sample: int, seed: int) -> dict[str, list[Optimum]]:
    """By model the optimum at every depth: in closed form where it has one, else of a sample."""
    exact = [exact_optimum(tasks, depth) for depth in DEPTHS]
    found = dict.fromkeys(_MODELS, exact)
    if tasks.weights == "inverse":
        identity = torch.eye(tasks.d, dtype=torch.float64, device="cpu")
        forms = [sampled_form(tasks, identity, depth, sample, seed) for depth in DEPTHS]
        found["cgd-like, scalar preconditioner"] = [form.best() for form in forms]
        found["linear, scalar preconditioner"] = [form.best_descent() for form in forms]
    return found


EXPERIMENT = Experiment(
    number=1,
    name="cgd",
    title="cgd-like Memformers against exact CGD",
    claim="A Memformer with one scalar memory weight a layer learns steps like those of the conjugate gradient method, "
    "and with free preconditioners it does better than CGD.",
    source="Dutta & Sra, arXiv 2410.07263v1, eqs. 17-18 and Fig. 1",
    protocol="Response-only models of the cgd rule and of the linear transformer, each with A_l a multiple of the "
    "identity and with A_l free. Errors are compared, not steps: no worse by error stands for steps like those of "
    "CGD. The scalar models have far fewer parameters than the free ones. CGD computes its coefficients for every "
    "task; a Memformer has one set for all tasks. Optima are closed forms for free A, and on isotropic tasks. There "
    "memory changes nothing: the best polynomial has real zeros, which gradient steps reach. For scalar A on "
    "non-isotropic tasks they are the least error over a sample of other tasks.",
    asks="the learned coefficients beside the average ones of CGD, and depths at which scalar ones could tell",
    minutes=2,
    run=run,
    judge=judge,
    find=find,
)
