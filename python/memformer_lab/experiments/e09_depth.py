"""Experiment 9: depth up to 32, stability of training, and a start that needs no tricks."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from memformer_kernels.nn import Memformer
from memformer_lab.experiments.common import NONISOTROPIC, gaussian_tasks
from memformer_lab.reports.curves import series
from memformer_lab.reports.protocol import Experiment, Setting
from memformer_lab.reports.results import Panel, Results
from memformer_lab.reports.verdicts import Check, at_least, at_most
from memformer_lab.runs.fitting import Recipe, fit_on_tasks, memformer, seeded
from memformer_lab.solvers.judging import memformer_estimates

_RANDOM, _CLIPPED, _OURS = (
    "random start, no clipping",
    "random start, clipped to 0.01",
    "gradient descent start, no clipping",
)
_RATE = 0.1


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


def run(setting: Setting) -> Results:
    """Trains three ways at each depth; the deepest model of our way is judged layer by layer."""
    depths = setting.pick(tiny=(1, 3), quick=(1, 2, 4, 8, 16), full=(1, 2, 4, 8, 16, 32))
    steps, batch = setting.pick(tiny=3, quick=400, full=8000), setting.pick(tiny=8, quick=128, full=256)
    count = setting.pick(tiny=300, quick=20_000, full=400_000)
    tasks = gaussian_tasks(NONISOTROPIC, setting.seed)
    ways: dict[str, tuple[Callable[[int, int, int], Memformer], Callable[[int], Recipe]]] = {
        _RANDOM: (random_start, lambda _: Recipe(steps, batch, _RATE, None)),
        _CLIPPED: (random_start, lambda _: Recipe(steps, batch, _RATE, 0.01)),
        _OURS: (stable_start, lambda layers: Recipe(steps, batch, 2 * _RATE / layers, None)),
    }
    losses: dict[str, list[list[float]]] = {way: [] for way in ways}
    stable: dict[str, list[list[float]]] = {way: [] for way in ways}
    by_layer = []
    for seed in setting.seeds:
        for way, (start, recipe) in ways.items():
            models, ends = [], []
            for depth in depths:
                model = start(seed, tasks.d, depth)
                outcome = fit_on_tasks(model, tasks, recipe(depth), seed)
                variance = float(tasks.d)
                ends.append(0.0 if outcome.diverged or outcome.losses[-1] > variance else 1.0)
                models.append(model)
            estimates = memformer_estimates(models, tasks, count, setting.seed)
            losses[way].append([one[0].log_mean for one in estimates])
            stable[way].append(ends)
        by_layer.append(
            [one.log_mean for one in memformer_estimates(models[-1:], tasks, count, setting.seed, layers=True)[0]]
        )
    deepest = depths[-1]
    panels = (
        Panel(
            "depth",
            "LFOM on non-isotropic tasks by depth and way of training, fresh tasks",
            "layers",
            "ln mean squared error",
            tuple(series(way, depths, rows) for way, rows in losses.items()),
            log_x=True,
        ),
        Panel(
            "stable",
            "Share of runs that end finite and below the loss of predicting 0",
            "layers",
            "share",
            tuple(series(way, depths, rows) for way, rows in stable.items()),
            log_x=True,
        ),
        Panel(
            "layers",
            f"Prediction after each layer of the {deepest}-layer models ({_OURS})",
            "layer",
            "ln mean squared error",
            (series(f"{deepest} layers", range(1, deepest + 1), by_layer),),
        ),
    )
    return Results(panels)


def judge(results: Results) -> Sequence[Check]:
    """Published trouble shows in the random start; ours trains at every depth without clipping, and depth pays."""
    stable, losses = results["stable"], results["depth"]
    ours, deepest = losses[_OURS], losses[_OURS].x[-1]
    checks = [
        at_least(f"{_OURS}: share of stable runs at {depth:g} layers", stable[_OURS].mean(depth), 1.0)
        for depth in ours.x
    ]
    checks += [
        at_most(f"{_OURS}: {deep:g} layers are no worse than {shallow:g}", ours.mean(deep), ours.mean(shallow))
        for shallow, deep in zip(ours.x[:-1], ours.x[1:], strict=True)
    ]
    checks.append(
        at_most(
            f"{_RANDOM}: share of stable runs at {deepest:g} layers",
            stable[_RANDOM].mean(deepest),
            0.5,
            essential=False,
        )
    )
    checks.append(
        at_most(
            f"ours is below the clipped random start at {deepest:g} layers",
            ours.mean(deepest),
            losses[_CLIPPED].mean(deepest),
            essential=False,
        )
    )
    return checks


def find(results: Results) -> str:
    """Means by depth of the three ways."""
    curves = results["depth"].series
    depths = ", ".join(f"{x:g}" for x in curves[0].x)
    return f"{depths} layers: {'; '.join(f'{one.label} {one.shown()}' for one in curves)} (inf: diverged)"


EXPERIMENT = Experiment(
    number=9,
    name="depth",
    title="Depth 1 to 32 without tricks",
    claim="Deep Memformers are hard to train (published 10-layer runs diverge without extreme clipping); starting "
    "every layer as the same stable gradient step, with a learning rate divided by depth, trains them without "
    "clipping.",
    source="the trouble: notebooks of Dutta & Sra, arXiv 2410.07263; the fix: ours",
    protocol="Response-only LFOM. The random start (entries of A ~ N(0, 1/4), all registers have weight 1) stands for "
    "starts that know nothing of optimisation. Ours: A_l = -I/2 plus small noise, each layer reads its own register, "
    "rate 0.2 / L, no clipping. --quick ends at 16 layers.",
    run=run,
    judge=judge,
    find=find,
)
