"""Experiment 5: what heads add, and when they add nothing."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch

from memformer_kernels.nn import Memformer
from memformer_lab.experiments.common import NONISOTROPIC, gaussian_tasks, relative_difference
from memformer_lab.reports.curves import series
from memformer_lab.reports.protocol import Experiment, Setting
from memformer_lab.reports.results import Panel, Results
from memformer_lab.reports.verdicts import Check, all_below, at_most, below
from memformer_lab.runs.fitting import Recipe, fit_on_tasks, memformer
from memformer_lab.solvers.judging import Distribution, distributions, network_errors
from memformer_lab.solvers.spectral import best_network, exact_spectrum
from memformer_lab.tasks.gaussian import GaussianTasks
from memformer_lab.tasks.seeds import generator_for

_HEADS = (1, 2, 5)
_LAYERS = 2
_WIDE, _DEEP, _BRIEF, _BEST = (
    "2 layers, more heads",
    "one head, more layers",
    "after brief training",
    "best coefficients",
)
_GAIN = 0.02
"""Five heads contain one: less than this is none."""

_COLLAPSE = "largest relative difference of 5 heads and the one head they sum to, response-only"
_SHOWN = {
    "log_trimmed": "ln mean squared error without the largest 0.1%",
    "log_median": "ln median squared error",
    "tail_index": "tail index of the squared error",
}

Shapes = Sequence[tuple[int, int]]


def run(setting: Setting) -> Results:
    """Trains models with Bm free of 1, 2 and 5 heads, and one-head models with as many (d, d) matrices by depth."""
    tasks = gaussian_tasks(NONISOTROPIC, setting.seed)
    count = setting.pick(tiny=200, quick=20_000, full=200_000)
    steps, batch = setting.pick(tiny=3, quick=600, full=12_000), setting.pick(tiny=8, quick=128, full=512)
    brief = setting.pick(tiny=2, quick=200, full=600)
    many: Shapes = [(_LAYERS, heads) for heads in _HEADS]
    shapes = {_WIDE: many, _DEEP: [(_LAYERS * heads, 1) for heads in _HEADS], _BRIEF: many}

    def recipe(layers: int, label: str) -> Recipe:
        rate, clip = 0.06 * 2 / max(2, layers), 1.0 if layers <= _LAYERS else 0.01
        warmup = setting.pick(tiny=1, quick=20, full=200)
        return Recipe(brief if label == _BRIEF else steps, batch, rate, clip, warmup)

    def judged(label: str, seed: int, change: Callable[[Recipe], Recipe]) -> list[Distribution]:
        models = [
            _trained(tasks, layers, heads, change(recipe(layers, label)), seed) for layers, heads in shapes[label]
        ]
        return distributions(network_errors(models, tasks.compressed), count, setting.seed)

    rows = {label: [judged(label, seed, lambda same: same) for seed in setting.seeds] for label in shapes}
    longer = {
        label: [judged(label, setting.seeds[0], partial(_further, which)) for which in (0, 1)] for label in shapes
    }
    one_head = best_network(exact_spectrum(tasks.d, tasks.n, _LAYERS), _LAYERS, memory=True, random=10).network(tasks)
    best = distributions(network_errors([one_head], tasks.compressed), count, setting.seed)[0]
    panels = []
    for name, shown in _SHOWN.items():
        curves = [
            series(
                label,
                _HEADS,
                [[getattr(one, name) for one in row] for row in rows[label]],
                longer=[] if name == "tail_index" else [[getattr(one, name) for one in row] for row in longer[label]],
            )
            for label in shapes
        ]
        curves.append(series(f"2 layers, one head, {_BEST}", (1,), [getattr(best, name)]))
        title = f"LFOM with Bm free on non-isotropic tasks: heads against depth at equal numbers of matrices, {shown}"
        panels.append(Panel(name, title, "(d, d) matrices in each of Q and P / 2", shown, tuple(curves), digits=3))
    collapse = max(_collapse(seed) for seed in setting.seeds)
    return Results(tuple(panels), {_COLLAPSE: collapse, "steps of brief training": float(brief)})


def _further(which: int, recipe: Recipe) -> Recipe:
    """The recipe of longer training (0) or of gentler training (1)."""
    return recipe.further()[which]


def _trained(tasks: GaussianTasks, layers: int, heads: int, recipe: Recipe, seed: int) -> Memformer:
    model = memformer(seed, tasks.d, layers, heads=heads, rule="lfom", structure="block")
    fit_on_tasks(model, tasks, recipe, seed)
    return model


def judge(results: Results) -> Sequence[Check]:
    """More heads help where features move, trained out; what the same size as depth does qualifies it."""
    checks = []
    for name, shown in (("log_trimmed", "trimmed mean"), ("log_median", "median")):
        panel = results[name]
        heads, brief, best = panel[_WIDE], panel[_BRIEF], panel[f"2 layers, one head, {_BEST}"].mean(1)
        for curve, essential in ((heads, True), (brief, False)):
            # One head can be what the best coefficients are: a head that training has not brought there loses nothing.
            known = [[row[0]] for row in curve.longer] + [[best]]
            one = series("one head", (5,), [[value] for value in curve.column(1)], longer=known)
            text = f"5 heads are below 1 by {_GAIN}, {curve.label} ({shown})"
            checks.append(below(text, curve, one, 5, -_GAIN, essential=essential))
        checks.append(below(f"5 heads are below one head with {_BEST} ({shown})", heads, best, 5, essential=False))
        text = f"{{}} heads are below one head {{}} times as deep ({shown})".replace("{} times", "as many times")
        checks += all_below(text, heads, panel[_DEEP], _HEADS[1:], essential=False)
    collapse = results.numbers[_COLLAPSE]
    text = "heads collapse exactly in response-only models, in float64"
    checks.append(at_most(text, collapse, 1e-12, essential=False))
    return checks


def find(results: Results) -> str:
    """Trimmed means by heads, trained out and briefly trained."""
    panel = results["log_trimmed"]
    heads, brief, best = panel[_WIDE], panel[_BRIEF], panel[f"2 layers, one head, {_BEST}"]
    gain = heads.mean(1) - heads.mean(5)
    ended = "" if heads.converged(5) and heads.converged(1) else ", not trained to the end"
    return (
        f"Two layers with Bm free reach {heads.mean(1):.2f} with one head and {heads.mean(5):.2f} with five (gain "
        f"{gain:.2f}{ended}), briefly trained {brief.mean(1):.2f} and {brief.mean(5):.2f}; the best coefficients of "
        f"one head {best.mean(1):.2f}."
    )


def _collapse(seed: int) -> float:
    """Response-only, gamma shared by heads: H heads against one head with the sum of their A."""
    tasks = gaussian_tasks(NONISOTROPIC, seed)
    many = memformer(seed, tasks.d, 4, heads=5, rule="lfom", dtype=torch.float64)
    one = memformer(seed, tasks.d, 4, heads=1, rule="lfom", dtype=torch.float64)
    batch = tasks.tokens(100, generator_for("evaluation", seed))
    with torch.no_grad():
        for parameter in (many.q, many.gamma):
            assert parameter is not None
            generator = generator_for("initialisation", seed)
            noise = torch.randn(parameter.shape, generator=generator, device=generator.device, dtype=torch.float32)
            parameter.add_(0.1 * noise)
        one.q.copy_(many.q.sum(1, keepdim=True))
        assert one.gamma is not None
        assert many.gamma is not None
        one.gamma.copy_(many.gamma)
        z = batch.z.double()
        expected = one.predict(z, context=batch.context)
        found = many.predict(z, context=batch.context)
    return relative_difference(found, expected)


EXPERIMENT = Experiment(
    number=5,
    name="heads",
    title="Heads: 1, 2 and 5",
    claim="Several attention heads lower the test loss of Memformers.",
    source="Dutta & Sra, arXiv 2410.07263, Fig. 5",
    protocol="Bm free, 2 layers, 1, 2 or 5 heads: not parameter-matched among each other. Beside each a one-head "
    "model with the same number of (d, d) matrices in Q and P, spent on depth (its Gamma is larger by some scalars), "
    "and for one head the best coefficients for the exact expectation. The models of several heads are judged after "
    "brief training as well, as undertrained published runs are. Errors have heavy tails, so rules read medians and "
    "means without the largest 0.1%. In response-only models whose Gamma is shared by heads, the sum of the heads' A "
    "is one head: checked in float64.",
    asks="heads in networks with dense P and Q, and with tokens wider than the features",
    minutes=4,
    run=run,
    judge=judge,
    find=find,
)
