"""Experiment 17: softmax and ReLU attention, softmax heads, and a feed-forward block."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from torch import Generator, Tensor, nn

from memformer_kernels.nn import Memformer
from memformer_lab.experiments.sequence_models import Attention, AttentionStack
from memformer_lab.reports.curves import Series, series
from memformer_lab.reports.protocol import Experiment, Setting
from memformer_lab.reports.results import Panel, Results
from memformer_lab.reports.verdicts import Check, below
from memformer_lab.runs.fitting import Recipe, fit, fit_on_tasks, memformer, seeded
from memformer_lab.solvers.estimates import Estimate, estimate
from memformer_lab.solvers.judging import network_errors
from memformer_lab.tasks.gaussian import GaussianTasks

_RATES = (0.003, 0.01, 0.03)
_LFOM = "LFOM Memformer, dense P and Q"


@dataclass(frozen=True)
class Kind:
    """A kind of attention stack."""

    attention: Attention
    heads: int = 1
    feed_forward: bool = False

    @property
    def label(self) -> str:
        """What tables call it."""
        heads = f", {self.heads} heads" if self.heads > 1 else ""
        return f"{self.attention} attention{heads}" + (" + feed-forward" if self.feed_forward else "")

    def build(self, layers: int, seed: int) -> AttentionStack:
        """A fresh stack with seeded parameters."""
        model = seeded(
            lambda: AttentionStack(5, layers, self.attention, heads=self.heads, feed_forward=self.feed_forward), seed
        )
        assert isinstance(model, AttentionStack)
        return model


LINEAR, SOFTMAX, RELU, TWO_HEADS = Kind("linear"), Kind("softmax"), Kind("relu"), Kind("softmax", 2)
LINEAR_WIDE, SOFTMAX_WIDE = (Kind(one, feed_forward=True) for one in ("linear", "softmax"))
KINDS = (
    LINEAR,
    SOFTMAX,
    RELU,
    TWO_HEADS,
    LINEAR_WIDE,
    SOFTMAX_WIDE,
)


@dataclass(frozen=True)
class _Cell:
    """All runs of one kind at one depth: an estimate a seed, those of longer training, and the rate chosen."""

    seeds: list[Estimate]
    longer: list[float]
    rate: float
    parameters: int


def run(setting: Setting) -> Results:
    """Trains every kind at two depths at its best of three rates."""
    depths = setting.pick(tiny=(1,), quick=(1, 2), full=(1, 3))
    tasks = GaussianTasks.isotropic()
    curves, medians, numbers = [], [], {}
    for kind in (*KINDS, None):
        label = _LFOM if kind is None else kind.label
        cells = [_cell(kind, depth, tasks, setting) for depth in depths]
        curves.append(_curve(label, depths, cells))
        medians.append(series(label, depths, _by_seed([[one.log_median for one in cell.seeds] for cell in cells])))
        for depth, cell in zip(depths, cells, strict=True):
            numbers[f"parameters, {label}, {depth} layers"] = float(cell.parameters)
            numbers[f"learning rate chosen, {label}, {depth} layers"] = cell.rate
    what = "isotropic tasks, d = 5, n = 20, fresh tasks"
    return Results(
        (
            Panel("attention", f"Kinds of attention, {what}", "layers", "ln mean squared error", tuple(curves)),
            Panel("median", f"Medians of the same, {what}", "layers", "ln median squared error", tuple(medians)),
        ),
        numbers,
    )


def judge(results: Results) -> Sequence[Check]:
    """Each half of the claim at the deepest place: one-head attention, several softmax heads, a feed-forward block."""
    panel = results["attention"]
    deepest = panel.series[0].x[-1]
    linear, softmax, two = (panel[kind.label] for kind in (LINEAR, SOFTMAX, TWO_HEADS))
    at = f"at {deepest:g} layers"
    checks = []
    for kind, part in ((SOFTMAX, "linear against softmax"), (RELU, "linear against ReLU")):
        name = f"linear attention is below {kind.attention} attention of one head {at}"
        checks.append(below(name, linear, panel[kind.label], deepest, part=part))
    part = "several softmax heads do better than one"
    checks.append(below(f"two softmax heads are below one {at}, by 0.1", two, softmax, deepest, -0.1, part=part))
    wide, part = panel[LINEAR_WIDE.label], "a feed-forward block adds little"
    for plain, with_block in ((linear, wide), (softmax, panel[SOFTMAX_WIDE.label])):
        name = f"{plain.label} is no worse than with a feed-forward block {at}, by 0.1"
        checks.append(below(name, plain, with_block, deepest, 0.1, part=part))
    name = f"two softmax heads are no worse than linear attention {at}, by 0.1"
    checks.append(below(name, two, linear, deepest, 0.1, essential=False))
    name = f"LFOM is no worse than linear attention {at}, by 0.05"
    return [*checks, below(name, panel[_LFOM], linear, deepest, 0.05, essential=False)]


def find(results: Results) -> str:
    """The deepest models side by side."""
    panel = results["attention"]
    deepest = panel.series[0].x[-1]
    median = {kind: results["median"][kind.label].mean(deepest) for kind in KINDS}
    value = {kind: panel[kind.label].mean(deepest) for kind in KINDS}
    return (
        f"At {deepest:g} layers one head of linear attention reaches {value[LINEAR]:.2f}, softmax "
        f"{value[SOFTMAX]:.2f}, ReLU {value[RELU]:.2f}; two softmax heads reach {value[TWO_HEADS]:.2f} (medians "
        f"{median[TWO_HEADS]:.2f} against {median[SOFTMAX]:.2f} of one); a feed-forward "
        f"block changes linear attention by {value[LINEAR_WIDE] - value[LINEAR]:+.2f}, softmax attention by "
        f"{value[SOFTMAX_WIDE] - value[SOFTMAX]:+.2f} (medians by {median[LINEAR_WIDE] - median[LINEAR]:+.2f} and "
        f"{median[SOFTMAX_WIDE] - median[SOFTMAX]:+.2f})"
    )


def _cell(kind: Kind | None, depth: int, tasks: GaussianTasks, setting: Setting) -> _Cell:
    """The rate is chosen by the first seed, on tasks that nothing is judged on; then all seeds train with it."""
    recipe = Recipe(
        setting.pick(tiny=2, quick=40, full=3_000),
        setting.pick(tiny=4, quick=32, full=64),
        clip=0.1,
        warmup=setting.pick(tiny=1, quick=5, full=50),
    )
    first = setting.seeds[0]
    tried = {rate: _trained(kind, depth, tasks, replace(recipe, learning_rate=rate), first) for rate in _RATES}
    # Seeds from 1000 on are those of no judging.
    scores = {rate: _judged(model, tasks, setting, 1_000 + setting.seed).log_mean for rate, model in tried.items()}
    best = min(_RATES, key=lambda rate: (math.isnan(scores[rate]), scores[rate]))
    final = replace(recipe, learning_rate=best)
    found = [tried[best], *(_trained(kind, depth, tasks, final, seed) for seed in setting.seeds[1:])]
    longer = [_trained(kind, depth, tasks, further, first) for further in final.further()]
    return _Cell(
        [_judged(model, tasks, setting, setting.seed) for model in found],
        [_judged(model, tasks, setting, setting.seed).log_mean for model in longer],
        best,
        sum(value.numel() for value in found[0].parameters()),
    )


def _trained(kind: Kind | None, depth: int, tasks: GaussianTasks, recipe: Recipe, seed: int) -> nn.Module:
    if kind is None:
        memory = memformer(seed, 5, depth, rule="lfom", structure="dense")
        fit_on_tasks(memory, tasks, recipe, seed)
        return memory
    model = kind.build(depth, seed)
    fit(model, lambda generator: _errors(model, tasks, recipe.batch, generator).mean(), recipe, seed)
    return model


def _judged(model: nn.Module, tasks: GaussianTasks, setting: Setting, seed: int) -> Estimate:
    count = setting.pick(tiny=50, quick=4_000, full=50_000)
    if isinstance(model, Memformer):
        return estimate(network_errors([model], tasks.tokens), count, seed)[0]
    assert isinstance(model, AttentionStack)
    return estimate(lambda size, generator: _errors(model, tasks, size, generator), count, seed)[0]


def _errors(model: AttentionStack, tasks: GaussianTasks, size: int, generator: Generator) -> Tensor:
    drawn = tasks.tokens(size, generator)
    errors: Tensor = (model.predict(drawn.z, drawn.context) - drawn.target).square().mT
    return errors


def _curve(label: str, depths: Sequence[int], cells: Sequence[_Cell]) -> Series:
    return series(
        label,
        depths,
        _by_seed([[one.log_mean for one in cell.seeds] for cell in cells]),
        sampling=[max(0.5 * (one.high - one.low) for one in cell.seeds) for cell in cells],
        longer=_by_seed([cell.longer for cell in cells]),
    )


def _by_seed(columns: Sequence[Sequence[float]]) -> list[list[float]]:
    return [list(row) for row in zip(*columns, strict=True)]


EXPERIMENT = Experiment(
    number=17,
    name="attention",
    title="Softmax and ReLU attention, heads, and a feed-forward block",
    claim="On linear regression in context one head of linear attention does better than one of softmax or ReLU "
    "attention of the same depth, several softmax heads do better than one, and a feed-forward block adds little.",
    source="compared in von Oswald et al., arXiv 2212.07677; Ahn et al., arXiv 2310.01082; heads: Cui et al., arXiv "
    "2401.17426; Chen et al., arXiv 2408.04532",
    protocol="Plain-PyTorch models in the Memformer's layout, dense P and Q, tokens without an embedding, the same "
    "steps and batches; every kind and depth has the best of three learning rates, chosen by the first seed on "
    "separate tasks. Softmax heads start with scores of turning signs. Parameters are equal but for heads and the "
    "feed-forward block; they are listed with the rates. The first seed is also trained for twice the steps, at that "
    "rate and at a third of it. Rules are about the deeper models.",
    asks="wider embeddings, in which one softmax head may do what two do here",
    minutes=45,
    run=run,
    judge=judge,
    find=find,
)
