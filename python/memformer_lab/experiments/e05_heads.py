"""Experiment 5: what heads add, and when they add nothing."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from memformer_lab.experiments.common import NONISOTROPIC, gaussian_tasks
from memformer_lab.reports.curves import series
from memformer_lab.reports.protocol import Experiment, Setting
from memformer_lab.reports.results import Panel, Results
from memformer_lab.reports.verdicts import Check, at_most
from memformer_lab.runs.fitting import Recipe, fit_on_tasks, memformer
from memformer_lab.solvers.judging import distributions, network_errors
from memformer_lab.tasks.seeds import generator_for

_HEADS = (1, 2, 5)
_LAYERS = 2
_COLLAPSE = "largest relative difference of 5 heads and the one head they sum to, response-only"


def run(setting: Setting) -> Results:
    """Trains models with Bm free of 1, 2 and 5 heads, and one-head models with as many (d, d) matrices by depth."""
    tasks = gaussian_tasks(NONISOTROPIC, setting.seed)
    count = setting.pick(tiny=200, quick=20_000, full=200_000)
    steps, batch = setting.pick(tiny=3, quick=600, full=6000), setting.pick(tiny=8, quick=128, full=256)
    many = [(_LAYERS, heads) for heads in _HEADS]
    shapes = {"heads": many, "brief": many, "depth": [(_LAYERS * heads, 1) for heads in _HEADS]}
    brief = setting.pick(tiny=2, quick=200, full=600)
    rows: dict[str, list[list[float]]] = {name: [] for name in shapes}
    for seed in setting.seeds:
        for name, pairs in shapes.items():
            models = []
            for layers, heads in pairs:
                model = memformer(seed, tasks.d, layers, heads=heads, rule="lfom", structure="block")
                clip = 1.0 if layers <= _LAYERS else 0.01
                recipe = Recipe(
                    brief if name == "brief" else steps,
                    batch,
                    0.06 * 2 / max(2, layers),
                    clip,
                    warmup=setting.pick(tiny=1, quick=20, full=200),
                )
                fit_on_tasks(model, tasks, recipe, seed)
                models.append(model)
            found = distributions(network_errors(models, tasks.compressed), count, setting.seed)
            rows[name].append([one.log_median for one in found])
            rows.setdefault(f"{name}, mean", []).append([one.log_mean for one in found])
    panels = tuple(
        Panel(
            key,
            f"LFOM with Bm free on non-isotropic tasks: heads against depth at equal numbers of matrices ({shown})",
            "(d, d) matrices in each of Q and P / 2",
            f"ln {shown} squared error",
            (
                series("2 layers, more heads", _HEADS, rows[f"heads{suffix}"]),
                series("one head, more layers", _HEADS, rows[f"depth{suffix}"]),
            ),
        )
        for key, shown, suffix in (("mean", "mean", ", mean"), ("median", "median", ""))
    )
    title = f"The same 2-layer models after {brief} steps in place of {steps}"
    curves = (series("2 layers, more heads", _HEADS, rows["brief, mean"]),)
    short = Panel("brief", title, "heads", "ln mean squared error", curves)
    return Results((*panels, short), {_COLLAPSE: max(_collapse(seed) for seed in setting.seeds)})


def judge(results: Results) -> Sequence[Check]:
    """More heads help where features move; depth of the same size is compared; without Bm heads collapse into one."""
    heads = results["mean"]["2 layers, more heads"]
    checks = [
        at_most("5 heads are better than 1, both with 2 layers", heads.mean(5), heads.mean(1)),
        at_most("heads collapse exactly in response-only models, in float64", results.numbers[_COLLAPSE], 1e-12),
    ]
    brief = results["brief"].series[0]
    checks.append(
        at_most("5 heads are better than 1 after brief training", brief.mean(5), brief.mean(1), essential=False)
    )
    # Deep models with Bm free have means that a handful of tasks decide, so the fair comparison reads medians.
    heads, depth = results["median"]["2 layers, more heads"], results["median"]["one head, more layers"]
    for count in _HEADS[1:]:
        name = f"{count} heads are no worse than one head {count} times as deep, the same number of matrices (medians)"
        checks.append(at_most(name, heads.mean(count), depth.mean(count), essential=False))
    return checks


def find(results: Results) -> str:
    """Means and medians by heads and by depth."""
    mean, median = results["mean"], results["median"]
    heads, depth = (one.label for one in mean.series)
    return (
        f"2 layers with 1, 2, 5 heads: {mean[heads].shown()} (medians {median[heads].shown()}), after brief training "
        f"{results['brief'].series[0].shown()}; one head with 2, 4, 10 "
        f"layers: {mean[depth].shown()} (medians {median[depth].shown()})"
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
    return float((found - expected).norm() / expected.norm())


EXPERIMENT = Experiment(
    number=5,
    name="heads",
    title="Heads: 1, 2 and 5",
    claim="Several attention heads lower the test loss of Memformers.",
    source="Dutta & Sra, arXiv 2410.07263, Fig. 5",
    protocol="Bm free, 2 layers, 1, 2 or 5 heads: not parameter-matched among each other. Beside each a one-head "
    "model with the same number of (d, d) matrices in Q and P, spent on depth (its Gamma is larger by some scalars). "
    "The models of several heads are judged after brief training as well. In response-only models whose Gamma is "
    "shared by heads, the sum of the heads' A is one head: checked in float64.",
    run=run,
    judge=judge,
    find=find,
)
