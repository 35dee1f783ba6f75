"""Experiment 9: depth up to 32, stability of training, and a start that needs no tricks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise

import torch

from memformer_kernels.nn import Memformer
from memformer_lab.experiments.common import NONISOTROPIC, excess, gaussian_tasks, judged, solver_of
from memformer_lab.reports.curves import series
from memformer_lab.reports.protocol import Experiment, Setting
from memformer_lab.reports.results import Panel, Results
from memformer_lab.reports.verdicts import Check, all_below, at_least, at_most, below
from memformer_lab.runs.fitting import Recipe, fit_on_tasks, memformer, seeded
from memformer_lab.solvers.estimates import estimate
from memformer_lab.solvers.judging import memformer_estimates, solver_errors
from memformer_lab.solvers.optimum import exact_optimum

_RANDOM, _CLIPPED, _OURS, _DEFAULT, _HARSH = (
    "random start, no clipping",
    "random start, clipped to 0.01",
    "gradient descent start, no clipping",
    "gradient descent start, clipped to 1, rate 0.1",
    "gradient descent start, clipped to 0.01, rate 0.1",
)
_BEST = "optimum in expectation, closed form"
_RATE = 0.1
_SLACK = 0.5


def random_start(seed: int, d: int, layers: int) -> Memformer:
    """Every entry of A is N(0, 0.5^2) and every register has weight 1: nothing ties the start to a stable optimiser."""

    def build() -> Memformer:
        model = Memformer(d, layers, rule="lfom", device="cpu", dtype=torch.float32)
        assert model.gamma is not None
        with torch.no_grad():
            torch.nn.init.normal_(model.q, std=0.5)
            model.gamma.fill_(1.0)
        return model

    model = seeded(build, seed)
    assert isinstance(model, Memformer)
    return model


def stable_start(seed: int, d: int, layers: int) -> Memformer:
    """Ours: every layer starts as the same small gradient step, whose iterates converge for any depth."""
    return memformer(seed, d, layers, rule="lfom")


Way = tuple[Callable[[int, int, int], Memformer], float, bool, float | None]
"""Start, learning rate, whether that is for two layers and falls with depth, and clipping."""

_WAYS: dict[str, Way] = {
    _RANDOM: (random_start, _RATE, False, None),
    _CLIPPED: (random_start, _RATE, False, 0.01),
    _OURS: (stable_start, 2 * _RATE, True, None),
    _DEFAULT: (stable_start, _RATE, False, 1.0),
    _HARSH: (stable_start, _RATE, False, 0.01),
}


def run(setting: Setting) -> Results:
    """Trains each way at each depth; the deepest model of our way is judged layer by layer."""
    depths = setting.pick(tiny=(1, 3), quick=(1, 2, 4, 8, 16), full=(1, 2, 4, 8, 16, 32))
    steps, batch = setting.pick(tiny=3, quick=400, full=40_000), setting.pick(tiny=8, quick=64, full=256)
    count = setting.pick(tiny=300, quick=10_000, full=400_000)
    tasks = gaussian_tasks(NONISOTROPIC, setting.seed)
    ends: dict[str, list[list[float]]] = {way: [] for way in _WAYS}
    models: dict[str, list[list[Memformer]]] = {way: [] for way in _WAYS}
    for seed in setting.seeds:
        for way, (start, rate, falls, clip) in _WAYS.items():
            row, stable = [], []
            for depth in depths:
                model = start(seed, tasks.d, depth)
                recipe = Recipe(steps, batch, rate / depth if falls else rate, clip)
                outcome = fit_on_tasks(model, tasks, recipe, seed)
                stable.append(0.0 if outcome.diverged or outcome.losses[-1] > float(tasks.d) else 1.0)
                row.append(model)
            models[way].append(row)
            ends[way].append(stable)
    # Judged together, so that all see the same tasks.
    optima = [exact_optimum(tasks, depth) for depth in depths]
    solvers = [solver_of(model) for rows in models.values() for row in rows for model in row]
    solvers += [one.method(torch.float32).solver(layers=False) for one in optima]
    found = estimate(solver_errors(tasks, solvers), count, setting.seed)
    rows = [found[k : k + len(depths)] for k in range(0, len(found), len(depths))]
    size, best = len(setting.seeds), rows[-1]
    grouped = {way: rows[k * size : (k + 1) * size] for k, way in enumerate(_WAYS)}
    deep = [row[-1] for row in models[_OURS]]
    by_layer = [
        [one.log_mean for one in row] for row in memformer_estimates(deep, tasks, count // 4, setting.seed, layers=True)
    ]
    deepest = depths[-1]
    curves = [judged(way, depths, rows, best) for way, rows in grouped.items()]
    panels = (
        Panel(
            "depth",
            "LFOM on non-isotropic tasks by depth and way of training, fresh tasks",
            "layers",
            "ln mean squared error",
            (
                *curves,
                series(_BEST, depths, [one.log_error for one in optima], reference=True),
            ),
            log_x=True,
        ),
        Panel(
            "excess",
            "Excess over the optimum on the same tasks",
            "layers",
            "difference of ln mean squared error",
            tuple(map(excess, curves)),
            log_x=True,
        ),
        Panel(
            "medians",
            "The same by the median over tasks, which rare tasks do not move",
            "layers",
            "ln median squared error",
            (
                *(
                    series(way, depths, [[one.log_median for one in row] for row in rows])
                    for way, rows in grouped.items()
                ),
                series(_BEST, depths, [one.log_median for one in best], reference=True),
            ),
            log_x=True,
        ),
        Panel(
            "stable",
            "Share of runs that end finite and below the loss of predicting 0",
            "layers",
            "share",
            tuple(series(way, depths, rows) for way, rows in ends.items()),
            log_x=True,
        ),
        Panel(
            "layers",
            f"Prediction after each layer of the {deepest}-layer models ({_OURS})",
            "layer",
            "ln mean squared error",
            (series("by layer", range(1, deepest + 1), by_layer),),
        ),
    )
    return Results(panels)


def judge(results: Results) -> Sequence[Check]:
    """Ours is stable at every depth, and depth brings it to the optimum; that random starts explode is how they are."""
    stable, losses = results["stable"], results["depth"]
    ours, deepest = losses[_OURS], losses[_OURS].x[-1]
    name = f"{_RANDOM}: share of stable runs at {deepest:g} layers"
    checks = [at_most(name, stable[_RANDOM].mean(deepest), 0.5, essential=False)]
    checks += [
        at_least(f"{_OURS}: share of stable runs at {depth:g} layers", stable[_OURS].mean(depth), 1.0)
        for depth in ours.x
    ]
    rows = [[deep - shallow for shallow, deep in pairwise(row)] for row in ours.values]
    change = series("change from the depth before", ours.x[1:], rows)
    name = f"{_OURS}: change of ln error from the depth before at {{:g}} layers"
    checks += [below(name.format(depth), change, 0.0, depth) for depth in change.x]
    left, name = results["excess"][_OURS], f"{_OURS}: excess over the optimum at {{:g}} layers"
    checks += [below(name.format(depth), left, 0.0, depth, _SLACK) for depth in left.x]
    for other in (_CLIPPED, _DEFAULT, _HARSH):
        name = f"{_OURS} is below {other} at {{}} layers"
        checks += all_below(name, ours, losses[other], [depth for depth in ours.x if depth > 4], essential=False)
    medians = results["medians"]
    name = f"{_HARSH}: at {{:g}} layers its median is below the optimum's, which minimises the mean"
    checks += [below(name.format(depth), medians[_HARSH], medians[_BEST], depth, essential=False) for depth in ours.x]
    return checks


def find(results: Results) -> str:
    """Our way, the command line's and harsh clipping at 8 layers or the deepest, by mean and median."""
    losses, medians = results["depth"], results["medians"]
    ours, deepest = losses[_OURS], losses[_OURS].x[-1]
    shown = 8.0 if 8.0 in ours.x else deepest
    unstable = 1 - results["stable"][_RANDOM].mean(deepest)
    return (
        f"At {deepest:g} layers {unstable:.0%} of unclipped random starts fail; at {shown:g} ours reaches "
        f"{ours.mean(shown):.2f}, clipped to 1 {losses[_DEFAULT].mean(shown):.2f}, to 0.01 "
        f"{losses[_HARSH].mean(shown):.2f} (median {medians[_HARSH].mean(shown):.1f}), the optimum "
        f"{losses[_BEST].mean(shown):.2f} (median {medians[_BEST].mean(shown):.1f}); at {deepest:g} ours reaches "
        f"{ours.mean(deepest):.2f}, {results['excess'][_OURS].mean(deepest):.2f} above the optimum on those tasks, a "
        f"random start clipped to 0.01 {losses[_CLIPPED].mean(deepest):.2f}."
    )


EXPERIMENT = Experiment(
    number=9,
    name="depth",
    title="Depth 1 to 32 without tricks",
    claim="Starting every layer as the same stable gradient step, with a learning rate divided by depth, trains deep "
    "Memformers without clipping, where published 10-layer runs need an extreme one.",
    source="the trouble: notebooks of Dutta & Sra, arXiv 2410.07263; the fix: ours",
    protocol="Response-only LFOM. The random start (entries of A ~ N(0, 1/4), all registers have weight 1) stands for "
    "starts that know nothing of optimisation; that it explodes is no finding and decides nothing, and it is not "
    "tried at rates that fall with depth. Ours: A_l = -I/2 plus small noise, each layer reads its own register, rate "
    "0.2 / L, no clipping. Beside it: the same start as the command line's defaults train it (rate 0.1, clipped to "
    "1), and clipped to 0.01 at that rate. The optimum is that of A_l a multiple of Sigma^-1. The deeper, the more of "
    "the mean is rare tasks, whose gradients clipping cuts: it trains for typical tasks, which the medians show. "
    "--quick ends at 16 layers.",
    asks="the publication's ten-layer runs themselves, with their batches and their parametrisation of Bm",
    minutes=6,
    run=run,
    judge=judge,
    find=find,
)
