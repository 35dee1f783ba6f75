"""Experiment 17: softmax and ReLU attention, with and without a feed-forward block."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Generator, Tensor

from memformer_lab.experiments.sequence_models import Attention, AttentionStack
from memformer_lab.reports.curves import series
from memformer_lab.reports.protocol import Experiment, Setting
from memformer_lab.reports.results import Panel, Results
from memformer_lab.reports.verdicts import Check, at_most
from memformer_lab.runs.fitting import Recipe, fit, fit_on_tasks, memformer, seeded
from memformer_lab.solvers.estimates import estimate
from memformer_lab.solvers.judging import network_errors
from memformer_lab.tasks.gaussian import GaussianTasks

_KINDS: tuple[tuple[Attention, bool], ...] = (
    ("linear", False),
    ("softmax", False),
    ("relu", False),
    ("linear", True),
    ("softmax", True),
    ("relu", True),
)
_LFOM = "LFOM Memformer, dense P and Q"


def run(setting: Setting) -> Results:
    """Trains every kind of attention at two depths with the same steps, batches and rates."""
    depths = setting.pick(tiny=(1,), quick=(1, 2), full=(1, 3))
    tasks = GaussianTasks.isotropic()
    steps, batch = setting.pick(tiny=2, quick=60, full=150), setting.pick(tiny=4, quick=32, full=64)
    recipe = Recipe(steps, batch, 0.02, 0.1, warmup=setting.pick(tiny=1, quick=5, full=20))
    count = setting.pick(tiny=50, quick=4_000, full=10_000)
    rows: dict[str, list[list[float]]] = {}
    parameters: dict[str, float] = {}
    for seed in setting.seeds:
        columns: dict[str, list[float]] = {}
        for depth in depths:
            for attention, feed_forward in _KINDS:
                label = _label(attention, feed_forward)
                model = _stack(seed, depth, attention, feed_forward)
                columns.setdefault(label, []).append(_fit_and_judge(model, tasks, recipe, count, setting.seed, seed))
                parameters[f"parameters, {label}, {depth} layers"] = _size(model)
            memory = memformer(seed, 5, depth, rule="lfom", structure="dense")
            fit_on_tasks(memory, tasks, recipe, seed)

            judged = estimate(network_errors([memory], tasks.tokens), count, setting.seed)
            columns.setdefault(_LFOM, []).append(judged[0].log_mean)
            parameters[f"parameters, {_LFOM}, {depth} layers"] = _size(memory)
        for label, values in columns.items():
            rows.setdefault(label, []).append(values)
    panel = Panel(
        "attention",
        "Kinds of attention on isotropic tasks, d = 5, n = 20, fresh tasks",
        "layers",
        "ln mean squared error",
        tuple(series(label, depths, values) for label, values in rows.items()),
    )
    return Results((panel,), parameters)


def judge(results: Results) -> Sequence[Check]:
    """Linear attention suits linear regression: the others, as trained here, are not better with as many layers."""
    panel = results["attention"]
    linear, deepest = panel[_label("linear", False)], panel.series[0].x[-1]
    checks = [
        at_most(
            f"linear attention is below {kind} attention at {deepest:g} layers",
            linear.mean(deepest),
            panel[_label(kind, False)].mean(deepest),
        )
        for kind in ("softmax", "relu")
    ]
    checks += [
        at_most(
            f"a feed-forward block does not help linear attention by more than 0.2 at {deepest:g} layers",
            linear.mean(deepest),
            panel[_label("linear", True)].mean(deepest),
            0.2,
            essential=False,
        ),
        at_most(
            f"LFOM is no worse than linear attention at {deepest:g} layers",
            panel[_LFOM].mean(deepest),
            linear.mean(deepest),
            0.05,
            essential=False,
        ),
    ]
    return checks


def find(results: Results) -> str:
    """Means by layers of every kind."""
    curves = results["attention"].series
    depths = ", ".join(f"{x:g}" for x in curves[0].x)
    return f"{depths} layers: {'; '.join(f'{one.label} {one.shown()}' for one in curves)}"


def _label(attention: Attention, feed_forward: bool) -> str:
    return f"{attention} attention" + (" + feed-forward" if feed_forward else "")


def _stack(seed: int, layers: int, attention: Attention, feed_forward: bool) -> AttentionStack:
    model = seeded(lambda: AttentionStack(5, layers, attention, feed_forward=feed_forward), seed)
    assert isinstance(model, AttentionStack)
    return model


def _size(model: torch.nn.Module) -> float:
    return float(sum(value.numel() for value in model.parameters()))


def _fit_and_judge(
    model: AttentionStack, tasks: GaussianTasks, recipe: Recipe, count: int, judged: int, seed: int
) -> float:
    def errors(size: int, generator: Generator) -> Tensor:
        drawn = tasks.tokens(size, generator)
        return (model.predict(drawn.z, drawn.context) - drawn.target).square().mT

    fit(model, lambda generator: errors(recipe.batch, generator).mean(), recipe, seed)
    return estimate(errors, count, judged)[0].log_mean


EXPERIMENT = Experiment(
    number=17,
    name="attention",
    title="Softmax and ReLU attention, and a feed-forward block",
    claim="On linear regression in context linear attention does better than softmax or ReLU attention of the same "
    "depth, and a feed-forward block adds little.",
    source="compared in von Oswald et al., arXiv 2212.07677; Ahn et al., arXiv 2310.01082",
    protocol="Plain-PyTorch models in the Memformer's layout, one head, dense P and Q, the same steps, batches and "
    "learning rate for all, not tuned for each. Parameters are equal but for the feed-forward block; they are listed.",
    run=run,
    judge=judge,
    find=find,
)
