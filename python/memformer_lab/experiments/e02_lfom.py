"""Experiment 2: LFOM Memformers of depths 1 to 4 against the conjugate gradient method."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from memformer_lab.experiments.common import (
    CGD,
    DEPTHS,
    ISOTROPIC,
    LFOM_LIMITS,
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
from memformer_lab.reports.protocol import Experiment, Published, Setting
from memformer_lab.reports.results import Panel, Results
from memformer_lab.reports.verdicts import Check, all_below, at_most
from memformer_lab.runs.fitting import Recipe
from memformer_lab.solvers.estimates import estimate
from memformer_lab.solvers.judging import preconditioned_steps, solver_errors, steps_of
from memformer_lab.solvers.optimum import exact_optimum

HIGH = "LFOM, upper end of the 95% interval over tasks"
OWN = "CGD, preconditioned by the network's A"
_WIDTH = len(DEPTHS)


def run(setting: Setting) -> Results:
    """Trains every depth on both kinds of data; judges all seeds, the optimum and CGD on the same fresh tasks."""
    recipe = Recipe(setting.pick(tiny=3, quick=1500, full=8000), batch=setting.pick(tiny=8, quick=256, full=1024))
    count = setting.pick(tiny=500, quick=100_000, full=4_000_000)
    panels, notes, networks = [], [], []
    for kind in (NONISOTROPIC, ISOTROPIC):
        tasks = gaussian_tasks(kind, setting.seed)
        models = trained_models(setting, tasks, recipe, rule="lfom")
        networks.append(Network.of(models[0][-1], tasks, kind, "LFOM", DEPTHS[-1]))
        solvers = [solver_of(model) for row in models for model in row]
        solvers += [exact_optimum(tasks, depth).method(torch.float32).solver(layers=False) for depth in DEPTHS]
        # The network's first preconditioner, of the first seed's deepest model; its scale is nothing to CGD.
        own = -models[0][-1].q.detach()[0, 0]
        solvers += [steps_of("conjugate_gradient", _WIDTH), preconditioned_steps("conjugate_gradient", own, _WIDTH)]
        found = estimate(solver_errors(tasks, solvers), count, setting.seed)
        *rows, optimum, cgd, preconditioned = [found[k : k + _WIDTH] for k in range(0, len(found), _WIDTH)]
        panels.append(
            Panel(
                kind,
                f"LFOM on {kind} tasks, d = 5, n = 20, fresh tasks",
                "depth",
                "ln mean squared error",
                (
                    judged("LFOM", DEPTHS, rows, optimum),
                    series(HIGH, DEPTHS, [[one.high for one in row] for row in rows]),
                    series("LFOM, log of the median", DEPTHS, [[one.log_median for one in row] for row in rows]),
                    series("CGD", DEPTHS, [one.log_mean for one in cgd], sampling=half_widths([cgd])),
                    series(
                        OWN,
                        DEPTHS,
                        [one.log_mean for one in preconditioned],
                        sampling=half_widths([preconditioned]),
                    ),
                    series("CGD, reference", DEPTHS, CGD[kind], reference=True),
                ),
                digits=3,
            )
        )
        shown = (f"{one.log_mean:.3f} [{one.low:.3f}, {one.high:.3f}]" for one in rows[0])
        exact = ", ".join(f"{exact_optimum(tasks, depth).log_error:.4f}" for depth in DEPTHS)
        notes.append(
            f"First seed on {kind} tasks, depths 1 to {_WIDTH}, with the 95% bootstrap interval over {count:,} fresh "
            f"tasks: {', '.join(shown)}. The optimum's error in expectation: {exact}."
        )
    return Results(tuple(panels), {"tasks judged on": float(count)}, notes=tuple(notes), networks=tuple(networks))


def judge(results: Results) -> Sequence[Check]:
    """The claim is LFOM below CGD on non-isotropic tasks. The rest qualifies."""
    panel, isotropic = results[NONISOTROPIC], results[ISOTROPIC]
    checks = all_below("non-isotropic LFOM is below CGD at depth {}", panel["LFOM"], panel["CGD"], DEPTHS)
    for depth, limit in zip(DEPTHS, LFOM_LIMITS, strict=True):
        value = max(panel[HIGH].column(depth))
        name = f"non-isotropic LFOM reaches its limit at depth {depth}, with every seed's whole interval"
        checks.append(at_most(name, value, limit, essential=False))
    name = "non-isotropic LFOM is below CGD with the network's preconditioner at depth {}"
    checks += all_below(name, panel["LFOM"], panel[OWN], DEPTHS, essential=False)
    checks += cgd_checks(results)
    name = "isotropic LFOM is below CGD at depth {}"
    return checks + all_below(name, isotropic["LFOM"], isotropic["CGD"], DEPTHS, essential=False)


def find(results: Results) -> str:
    """The comparison at the last depth, and what it owes to the preconditioner."""
    panel, last = results[NONISOTROPIC], DEPTHS[-1]
    lfom, cgd, own = (panel[name].mean(last) for name in ("LFOM", "CGD", OWN))
    excess = panel["LFOM"].excess(last)
    return (
        f"At depth {last} LFOM reaches {lfom:.2f} on non-isotropic tasks ({excess:.3f} above the optimum) against "
        f"CGD's {cgd:.2f}; CGD with the network's preconditioner reaches {own:.2f}."
    )


EXPERIMENT = Experiment(
    number=2,
    name="lfom",
    title="LFOM Memformers against CGD",
    claim="A Memformer of L layers with free Gamma learns a linear first-order method that does better than L steps "
    "of the conjugate gradient method on non-isotropic tasks.",
    source="Dutta & Sra, arXiv 2410.07263, Fig. 2",
    protocol="Response-only Memformers with feature-wise Gamma and a free preconditioner a layer, one model a depth "
    "and seed, trained on fresh tasks with the query integrated out; judged on fresh tasks, the same for all. CGD "
    "runs on the full context with exact line searches, without a preconditioner as in the publication, and with the "
    "first A of the first seed's deepest network: the network was trained on this one covariance, plain CGD knows "
    "nothing of it. The optimum is that of A_l a multiple of Sigma^-1, in closed form. Networks without memory do "
    "better than CGD here too (experiment 1): what memory adds is experiment 8.",
    asks="CGD that is given an estimate of the covariance from as many tasks as the network was trained on",
    minutes=2,
    run=run,
    judge=judge,
    find=find,
    published=(Published("LFOM at depth 4 on non-isotropic tasks, read off the figure, about", (-2.0,)),),
)
