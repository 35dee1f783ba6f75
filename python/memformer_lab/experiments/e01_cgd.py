"""Experiment 1: cgd-like Memformers with a scalar and with a free preconditioner."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from memformer_lab.experiments.common import (
    CGD,
    DEPTHS,
    ISOTROPIC,
    NONISOTROPIC,
    cgd_checks,
    gaussian_tasks,
    trained_grid,
)
from memformer_lab.reports.curves import series
from memformer_lab.reports.protocol import Experiment, Setting
from memformer_lab.reports.results import Panel, Results
from memformer_lab.reports.verdicts import Check, all_below
from memformer_lab.runs.fitting import Recipe
from memformer_lab.solvers.judging import classical_estimates

_MODELS: dict[str, dict[str, Any]] = {
    "cgd-like, scalar preconditioner": {"rule": "cgd", "preconditioner": "scalar"},
    "cgd-like, free preconditioner": {"rule": "cgd", "preconditioner": "free"},
    "linear, scalar preconditioner": {"rule": "linear", "preconditioner": "scalar"},
    "linear, free preconditioner": {"rule": "linear", "preconditioner": "free"},
}


def run(setting: Setting) -> Results:
    """Trains the four models at every depth on both kinds of data."""
    recipe = Recipe(setting.pick(tiny=3, quick=600, full=3000), batch=setting.pick(tiny=8, quick=256, full=512))
    count = setting.pick(tiny=500, quick=100_000, full=400_000)
    panels = []
    for kind in (NONISOTROPIC, ISOTROPIC):
        tasks = gaussian_tasks(kind, setting.seed)
        curves = []
        for label, arguments in _MODELS.items():
            found = trained_grid(setting, tasks, recipe, count, **arguments)
            curves.append(series(label, DEPTHS, [[one.log_mean for one in row] for row in found]))
        cgd = classical_estimates(["conjugate_gradient"], tasks, len(DEPTHS), count, setting.seed)
        curves += [series("CGD", DEPTHS, cgd), series("CGD, reference", DEPTHS, CGD[kind], reference=True)]
        title = f"cgd-like Memformers on {kind} tasks, d = 5, n = 20, fresh tasks"
        panels.append(Panel(kind, title, "depth", "ln mean squared error", tuple(curves), digits=3))
    return Results(tuple(panels))


def judge(results: Results) -> Sequence[Check]:
    """Free preconditioners beat CGD; scalar ones come near it; memory earns its keep; CGD is what it must be."""
    panel = results[NONISOTROPIC]
    scalar, free = panel["cgd-like, scalar preconditioner"], panel["cgd-like, free preconditioner"]
    plain_scalar, plain_free = panel["linear, scalar preconditioner"], panel["linear, free preconditioner"]
    cgd = panel["CGD"]
    last = DEPTHS[-1]
    checks = all_below("free preconditioner is below CGD at depth {}", free, cgd, DEPTHS)
    name = "scalar preconditioner is no worse than CGD at depth {}"
    checks += all_below(name, scalar, cgd, DEPTHS, 0.1, essential=False)
    gains = {"scalar": plain_scalar.mean(last) - scalar.mean(last), "free": plain_free.mean(last) - free.mean(last)}
    spreads = {
        "scalar": scalar.spread(last) + plain_scalar.spread(last),
        "free": free.spread(last) + plain_free.spread(last),
    }
    for kind, gain in gains.items():
        text = f"memory gains more than the seeds' spread at depth {last}, {kind} preconditioner"
        text = f"{text}: {gain:.3f} > {spreads[kind]:.3f}"
        checks.append(Check(text, gain > spreads[kind], essential=False))
    return checks + cgd_checks(results)


def find(results: Results) -> str:
    """Means by depth on the non-isotropic tasks."""
    panel = results[NONISOTROPIC]
    names = (*_MODELS, "CGD")
    return f"non-isotropic, depths 1 to 4: {'; '.join(f'{name} {panel[name].shown()}' for name in names)}"


EXPERIMENT = Experiment(
    number=1,
    name="cgd",
    title="cgd-like Memformers against exact CGD",
    claim="A Memformer with one scalar memory weight a layer learns steps like those of the conjugate gradient "
    "method, and with free preconditioners it does better than CGD.",
    source="Dutta & Sra, arXiv 2410.07263v1, eqs. 17-18 and Fig. 1",
    protocol="Response-only models of the cgd rule and of the linear transformer, each with A_l a multiple of the "
    "identity and with A_l free. The scalar models have far fewer parameters than the free ones. CGD computes its "
    "coefficients for every task; a Memformer has one set for all tasks.",
    run=run,
    judge=judge,
    find=find,
)
