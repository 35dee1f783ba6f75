"""Experiment 2: LFOM Memformers of depths 1 to 4 against the conjugate gradient method."""

from __future__ import annotations

from collections.abc import Sequence

from memformer_lab.experiments.common import (
    CGD,
    DEPTHS,
    ISOTROPIC,
    LFOM_LIMITS,
    NONISOTROPIC,
    cgd_checks,
    gaussian_tasks,
    trained_grid,
)
from memformer_lab.reports.curves import series
from memformer_lab.reports.protocol import Experiment, Published, Setting
from memformer_lab.reports.results import Panel, Results
from memformer_lab.reports.verdicts import Check, all_below, at_most
from memformer_lab.runs.fitting import Recipe
from memformer_lab.solvers.judging import classical_estimates

HIGH = "LFOM, upper end of the 95% interval over tasks"


def run(setting: Setting) -> Results:
    """Trains every depth on both kinds of data; judges all seeds on the same fresh tasks."""
    recipe = Recipe(setting.pick(tiny=3, quick=1500, full=8000), batch=setting.pick(tiny=8, quick=256, full=1024))
    count = setting.pick(tiny=500, quick=200_000, full=10_000_000)
    panels, notes = [], []
    for kind in (NONISOTROPIC, ISOTROPIC):
        tasks = gaussian_tasks(kind, setting.seed)
        rows, width = trained_grid(setting, tasks, recipe, count, rule="lfom"), len(DEPTHS)
        cgd = classical_estimates(["conjugate_gradient"], tasks, width, count, setting.seed)
        panels.append(
            Panel(
                kind,
                f"LFOM on {kind} tasks, d = 5, n = 20, fresh tasks",
                "depth",
                "ln mean squared error",
                (
                    series("LFOM", DEPTHS, [[one.log_mean for one in row] for row in rows]),
                    series(HIGH, DEPTHS, [[one.high for one in row] for row in rows]),
                    series("LFOM, log of the median", DEPTHS, [[one.log_median for one in row] for row in rows]),
                    series("CGD", DEPTHS, cgd),
                    series("CGD, reference", DEPTHS, CGD[kind], reference=True),
                ),
                digits=3,
            )
        )
        shown = (f"{one.log_mean:.3f} [{one.low:.3f}, {one.high:.3f}]" for one in rows[0])
        notes.append(
            f"First seed on {kind} tasks, depths 1 to {width}, with the 95% bootstrap interval over {count:,} fresh "
            f"tasks: {', '.join(shown)}."
        )
    return Results(tuple(panels), {"tasks judged on": float(count)}, notes=tuple(notes))


def judge(results: Results) -> Sequence[Check]:
    """The claim is LFOM below CGD on non-isotropic tasks; known limits, CGD's own figures and isotropic data qualify"""
    checks = []
    for depth, limit in zip(DEPTHS, LFOM_LIMITS, strict=True):
        value = max(results[NONISOTROPIC][HIGH].column(depth))
        name = f"non-isotropic LFOM reaches its limit at depth {depth}, with every seed's whole interval"
        checks.append(at_most(name, value, limit, essential=False))
    panel, isotropic = results[NONISOTROPIC], results[ISOTROPIC]
    checks += all_below("non-isotropic LFOM is below CGD at depth {}", panel["LFOM"], panel["CGD"], DEPTHS)
    checks += cgd_checks(results)
    name = "isotropic LFOM is below CGD at depth {}"
    return checks + all_below(name, isotropic["LFOM"], isotropic["CGD"], DEPTHS, essential=False)


def find(results: Results) -> str:
    """Means by depth on both kinds of data."""
    parts = (f"{kind}: LFOM {results[kind]['LFOM'].shown()}; CGD {results[kind]['CGD'].shown()}" for kind in CGD)
    return f"depths 1 to 4, {'; '.join(parts)}"


EXPERIMENT = Experiment(
    number=2,
    name="lfom",
    title="LFOM Memformers against CGD",
    claim="A Memformer of L layers with free Gamma learns a linear first-order method that does better than L steps "
    "of the conjugate gradient method on non-isotropic tasks.",
    source="Dutta & Sra, arXiv 2410.07263, Fig. 2",
    protocol="Response-only Memformers with feature-wise Gamma and a free preconditioner a layer, one model a depth "
    "and seed, trained on fresh tasks with the query integrated out; judged on fresh tasks, the same for all. CGD "
    "runs on the full context with exact line searches. Known limits for a well-trained model: 0.15, -0.99, -1.96, "
    "-2.75.",
    run=run,
    judge=judge,
    find=find,
    published=(Published("LFOM at depth 4 on non-isotropic tasks, read off the figure, about", (-2.0,)),),
)
