"""Experiment 25: the error at every prompt length, of networks trained on all lengths and on the longest alone."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

import torch
from torch import Generator, Tensor

from memformer_kernels import GaussianTokens, TrainState, train_steps
from memformer_kernels.nn import Memformer
from memformer_lab.experiments.common import change_of, half_widths
from memformer_lab.reports.curves import Series, series
from memformer_lab.reports.protocol import Experiment, Setting
from memformer_lab.reports.results import Panel, Results
from memformer_lab.reports.verdicts import Check, all_below, below
from memformer_lab.runs.fitting import Recipe, memformer
from memformer_lab.solvers.estimates import Estimate, estimate
from memformer_lab.solvers.judging import quadratics_of
from memformer_lab.solvers.optimizers import conjugate_gradient, gradient_descent, ols, ridge
from memformer_lab.solvers.optimum import common_errors, exact_optimum
from memformer_lab.tasks.gaussian import GaussianTasks, step_sampler
from memformer_lab.tasks.seeds import seed_for

_D, _LONGEST, _HALF, _STEPS = 5, 20, 10, 4
_CLEAN, _NOISY = "noise free", "noise"
_NOISE: Mapping[str, float] = MappingProxyType({_CLEAN: 0.0, _NOISY: 1.0})
_FLOOR = 1e-4
_CLOSE, _NO_WORSE = 0.05, 0.1
SHALLOW, DEEP, BLOCK = "LFOM, 4 layers", "LFOM, 8 layers", "LFOM with Bm free, 4 layers"
_ALONE = f"{{}}, {_LONGEST} examples alone"
LEAST_SQUARES, RIDGE = "least squares", "ridge of the best penalty"
_GD, _CG = f"GD, {_STEPS} steps", f"CG, {_STEPS} steps"
_LIKE = "close to least squares at every length"
_LIKE_FIXED, _LIKE_FREE = f"{_LIKE}, Bm = 0", f"{_LIKE}, Bm free"
_LIKE_NOISY = "close to the best ridge at every length, under noise"
_COST_FIXED, _COST_FREE = "no worse at the longest prompt, Bm = 0", "no worse at the longest prompt, Bm free"
_GAIN = "better at prompts up to half as long"
_FALLS = "every example lowers the error"


@dataclass(frozen=True)
class Kind:
    """A kind of network.

    Attributes:
        structure: of the Memformer.
        layers: of it.
        alone: trained on the longest prompt alone; else on every length.
        noisy: trained under noise too.
    """

    structure: str
    layers: int
    alone: bool = False
    noisy: bool = True

    @property
    def has_optimum(self) -> bool:
        """Whether its best coefficients are known."""
        return self.structure == "response-only"


KINDS: Mapping[str, Kind] = MappingProxyType(
    {
        SHALLOW: Kind("response-only", 4),
        DEEP: Kind("response-only", 8),
        BLOCK: Kind("block", 4, noisy=False),
        _ALONE.format(SHALLOW): Kind("response-only", 4, alone=True),
        _ALONE.format(BLOCK): Kind("block", 4, alone=True, noisy=False),
    }
)


def run(setting: Setting) -> Results:
    """Trains every kind of network without and with noise; all read the same prompts, the query integrated out."""
    return Results(tuple(panel for noise in _NOISE for panel in _panels(setting, noise)))


def judge(results: Results) -> Sequence[Check]:
    """The error against least squares in shares of the response's variance, against one's own by its logarithm."""
    share, noisy, logs = (
        results[name] for name in (_name("share", _CLEAN), _name("share", _NOISY), _name("ln", _CLEAN))
    )
    seen = [t for t in share.places if t <= _LONGEST]
    checks = []
    for label, part in ((DEEP, _LIKE_FIXED), (BLOCK, _LIKE_FREE)):
        name = f"{label}: within {_CLOSE:g} of the variance of {LEAST_SQUARES} after {{}} examples"
        checks += all_below(name, share[label], share[LEAST_SQUARES], seen, _CLOSE, part=part)
    name = f"{_NOISY}, {DEEP}: within {_CLOSE:g} of the variance of {RIDGE} after {{}} examples"
    checks += all_below(name, noisy[DEEP], noisy[RIDGE], seen, _CLOSE, part=_LIKE_NOISY)
    for label, part in ((SHALLOW, _COST_FIXED), (BLOCK, _COST_FREE)):
        ours, alone = logs[label], logs[_ALONE.format(label)]
        name = f"{label}: trained on all lengths no worse after {{}} examples than on these alone"
        checks += all_below(name, ours, alone, [_LONGEST], _NO_WORSE, part=part)
        name = f"{label}: trained on all lengths better after {{}} examples than on {_LONGEST} alone"
        checks += all_below(name, ours, alone, [t for t in seen if t <= _HALF], part=_GAIN)
        between = [t for t in seen if _HALF < t < _LONGEST]
        checks += all_below(name, ours, alone, between, essential=False)
    for label in (SHALLOW, DEEP, BLOCK):
        change, name = change_of(logs[label]), f"{label}: ln error after {{:g}} examples less that at the length before"
        for t in change.x:
            checks.append(below(name.format(t), change, 0.0, t, essential=t <= _LONGEST, part=_FALLS))
    return [*checks, *_qualifying(results, seen)]


def _qualifying(results: Results, seen: Sequence[float]) -> Iterator[Check]:
    """Rules on the shallow network, least squares and one length under noise, steps of CG, and prompts beyond."""
    share, noisy = results[_name("share", _CLEAN)], results[_name("ln", _NOISY)]
    name = f"{SHALLOW}: within {_CLOSE:g} of the variance of {LEAST_SQUARES} after {{}} examples"
    yield from all_below(name, share[SHALLOW], share[LEAST_SQUARES], seen, _CLOSE, essential=False)
    name = f"{_NOISY}, {DEEP}: below {LEAST_SQUARES} after {{}} examples"
    yield from all_below(name, noisy[DEEP], noisy[LEAST_SQUARES], seen, essential=False)
    ours, alone = noisy[SHALLOW], noisy[_ALONE.format(SHALLOW)]
    name = f"{_NOISY}, {SHALLOW}: trained on all lengths no worse after {{}} examples than on these alone"
    yield from all_below(name, ours, alone, [_LONGEST], _NO_WORSE, essential=False)
    for label in (SHALLOW, BLOCK):
        name = f"{label}: below {_CG} after {{}} examples"
        yield from all_below(name, share[label], share[_CG], [_LONGEST], essential=False)
    for label in (DEEP, BLOCK):
        name = (
            f"{label}: within {_CLOSE:g} of the variance of {LEAST_SQUARES} after {{}} examples, more than trained on"
        )
        beyond = [t for t in share.places if t > _LONGEST]
        yield from all_below(name, share[label], share[LEAST_SQUARES], beyond, _CLOSE, essential=False)


def find(results: Results) -> str:
    """Without noise: the error in shares of the variance after d, 2 d and 4 d examples, and what one length gives."""
    share = results[_name("share", _CLEAN)]
    shown = [float(t) for t in (_D, 2 * _D, 4 * _D)]

    def told(label: str) -> str:
        return ", ".join(f"{share[label].mean(t):.2g}" for t in shown)

    return (
        f"After {', '.join(f'{t:g}' for t in shown)} examples the error is {told(DEEP)} of the response's variance "
        f"with 8 layers and Bm = 0, {told(BLOCK)} with 4 and Bm free, {told(_CG)} after 4 steps of CG, and 0 by least "
        f"squares; trained on {_LONGEST} examples alone, 4 layers reach {told(_ALONE.format(SHALLOW))} with Bm = 0 "
        f"(on all lengths {told(SHALLOW)}) and {told(_ALONE.format(BLOCK))} with Bm free."
    )


def _name(kind: str, noise: str) -> str:
    return kind if noise == _CLEAN else f"{kind}-{noise}"


def _tasks(n: int, noise: str) -> GaussianTasks:
    return GaussianTasks(_D, n, (1.0,) * _D, noise=_NOISE[noise])


def _panels(setting: Setting, noise: str) -> tuple[Panel, ...]:
    """Errors by length: shares of the response's variance, logarithms of means, and of medians."""
    lengths = setting.pick(
        tiny=(1, 5, 10, 20, 30),
        quick=(1, 2, 3, 4, 5, 6, 8, 10, 15, 20, 30),
        full=(*range(1, 13), 14, 16, 18, 20, 25, 30),
    )
    kinds = {label: kind for label, kind in KINDS.items() if noise == _CLEAN or kind.noisy}
    seeds = setting.seeds
    models: dict[str, list[Memformer]] = {}
    for label, kind in kinds.items():
        recipe = _recipe(setting, kind)
        models[label] = _trained(kind, noise, recipe, seeds)
        if not kind.has_optimum:
            models[label] += [one for further in recipe.further() for one in _trained(kind, noise, further, seeds[:1])]
    flat = [model for group in models.values() for model in group]
    columns = [map(_floored, _judged(setting, flat, noise, length)) for length in lengths]
    rows = [list(row) for row in zip(*columns, strict=True)]
    curves: dict[str, list[list[Estimate]]] = {}
    place = 0
    for label, group in models.items():
        curves[label] = rows[place : place + len(group)]
        place += len(group)
    references = {label: [row] for label, row in zip(_references(noise), rows[place:], strict=True)}
    share, logs, medians = [], [], []
    for label, found in (curves | references).items():
        trained = found[: len(seeds)]
        logs.append(
            series(
                label,
                lengths,
                [[one.log_mean for one in row] for row in trained],
                sampling=half_widths(trained),
                longer=[[one.log_mean for one in row] for row in found[len(seeds) :]] if label in kinds else (),
                optimum=[math.log(best) for best in _optimum(kinds[label], noise, lengths)]
                if label in kinds and kinds[label].has_optimum
                else (),
            )
        )
        share.append(_shares(logs[-1]))
        medians.append(series(label, lengths, [[one.log_median for one in row] for row in trained]))
    text = "without noise" if noise == _CLEAN else f"labels with noise of variance {_NOISE[noise] ** 2:g}"
    said = f"by the number of examples, {text}, d = {_D}, fresh tasks"
    return (
        Panel(_name("share", noise), f"Error {said}", "examples", "squared error over the response's variance",
              tuple(share), log_x=True, log_y=True, digits=3),
        Panel(_name("ln", noise), f"The same as a logarithm {said}", "examples", "ln mean squared error", tuple(logs)),
        Panel(_name("medians", noise), f"Medians over tasks {said}", "examples", "ln median squared error",
              tuple(medians)),
    )  # fmt: skip


def _floored(one: Estimate) -> Estimate:
    """What is below the floor is shown at it: least squares is exact, and its rounding says nothing."""
    floor = math.log(_FLOOR * _D)
    # A NaN stays one: it is not below the floor.
    mean, low, high, median = (max(value, floor) for value in (one.log_mean, one.low, one.high, one.log_median))
    return Estimate(one.tasks, mean, low, high, median)


def _shares(logs: Series) -> Series:
    """A curve of ln errors in shares of the response's variance d; the floor is 0."""

    def share(value: float) -> float:
        return math.exp(value) / _D if value < 700 else value

    # The width of ln of a mean, times the mean, is that of the mean.
    means = [share(logs.mean(x)) for x in logs.x]
    sampling = [width * mean if math.isfinite(mean) else 0.0 for width, mean in zip(logs.sampling, means, strict=True)]
    return series(
        logs.label,
        logs.x,
        [list(map(share, row)) for row in logs.values],
        sampling=sampling,
        longer=[list(map(share, row)) for row in logs.longer],
        optimum=list(map(share, logs.optimum)),
    )


def _optimum(kind: Kind, noise: str, lengths: Sequence[int]) -> list[float]:
    """Exact errors of the coefficients that are the best for what the kind is trained on; NaN where that says nothing.

    One set of coefficients serves all lengths, so at a single length others may do better.
    """
    if kind.alone:
        best = exact_optimum(_tasks(_LONGEST, noise), kind.layers).error
        return [best if length == _LONGEST else math.nan for length in lengths]
    return common_errors(_tasks(_LONGEST, noise), range(1, _LONGEST + 1), kind.layers, lengths)


def _recipe(setting: Setting, kind: Kind) -> Recipe:
    block = kind.structure == "block"
    steps = setting.pick(tiny=3, quick=200, full=4000 if block and not kind.alone else 6000)
    batch = setting.pick(tiny=8, quick=64, full=256 if kind.alone else 128)
    rate, clip = (0.02, 0.1) if block else (0.2 / kind.layers, 1.0)
    return Recipe(steps, batch, rate, clip, warmup=setting.pick(tiny=1, quick=20, full=100))


def _trained(kind: Kind, noise: str, recipe: Recipe, seeds: Sequence[int]) -> list[Memformer]:
    """One model a seed, all in one call; each has its own tasks."""
    models = [memformer(seed, _D, kind.layers, rule="lfom", structure=kind.structure) for seed in seeds]
    state = TrainState.of(models, seeds=[seed_for("training", seed) >> 1 for seed in seeds], streams=[0] * len(seeds))
    if kind.alone:
        sampler = step_sampler(_tasks(_LONGEST, noise), recipe.batch, statistics=True)
    else:
        sampler = GaussianTokens(_D, 1, recipe.batch, queries=_LONGEST, query="prefixes", noise=_NOISE[noise])
    train_steps(state, sampler, recipe.steps, optimizer=recipe.optimizer(), max_skipped=1)
    for place, model in enumerate(models):
        state.into(place, model)
    return models


def _references(noise: str) -> tuple[str, ...]:
    return (LEAST_SQUARES, _GD, _CG) if noise == _CLEAN else (LEAST_SQUARES, RIDGE, _GD, _CG)


def _judged(setting: Setting, models: Sequence[Memformer], noise: str, length: int) -> list[Estimate]:
    """All models, then all of `_references`, after so many examples of the same prompts at every length."""
    tasks = _tasks(30, noise)
    unit = torch.eye(_D, _D + 1, dtype=torch.float32, device="cpu")

    def sample(batch: int, generator: Generator) -> Tensor:
        drawn = tasks.tokens(batch, generator, queries=0)
        examples = drawn.z[:, :length]
        # Predictions are linear in the query: those of unit queries are the weights.
        z = torch.cat([examples, unit.expand(batch, -1, -1)], dim=1)
        weights = [model.predict(z, context=length, queries=_D) for model in models]
        h, b = quadratics_of(examples.double(), length)
        weights.append(ols(h, b))
        if noise == _NOISY:
            weights.append(ridge(h, b, _NOISE[noise] ** 2 / length))
        weights += [gradient_descent(h, b, _STEPS)[-1], conjugate_gradient(h, b, _STEPS)[-1]]
        return torch.stack([(one.double() - drawn.weights).square().sum(-1) for one in weights])

    return estimate(sample, setting.pick(tiny=200, quick=5_000, full=120_000), setting.seed)


EXPERIMENT = Experiment(
    number=25,
    name="prompt-lengths",
    title="The error at every prompt length",
    claim="A Transformer trained on prompts of every length predicts linear functions in context about as well as "
    "least squares at each number of examples, or under noise as the best ridge; such a network is no worse at the "
    "longest prompt than one trained there alone and better at shorter ones, and every further example lowers its "
    "error.",
    source="the first half: Garg et al., arXiv 2208.01066, who claim it for Transformers with softmax attention and "
    "feed-forward blocks, see also Fu et al., arXiv 2310.17086; the second: ours",
    protocol=f"x ~ N(0, I), w* ~ N(0, I), d = {_D}; the error of a random query in expectation over it, on the same "
    f"tasks at every length. Networks of linear attention with memory learn from prompts of 1 to {_LONGEST} examples "
    f"at once, each counted alike, or from {_LONGEST} alone. Least squares, of minimum norm, is the optimum without "
    "noise; ridge with penalty 1 / n that with noise of variance 1, where least squares has no mean at d and d + 1 "
    "examples. Close means within "
    f"{_CLOSE:g} of the response's variance, about what one sees in a figure of it; no worse means by ln at most "
    f"{_NO_WORSE:g}. The gain is asked up to half of the longest prompt. Rules on least squares read the deepest "
    "network with Bm = 0 and the one with Bm free, which is not trained under noise. With Bm = 0 and A a multiple of I "
    "the best coefficients for what a network is trained on are known exactly, for all lengths together too, and stand "
    "for what training might still reach; with Bm free longer training does. Errors below 1e-4 of the variance are "
    "shown as that. Prompts beyond the trained lengths, medians and the shallow network's distance from least squares "
    "decide nothing.",
    asks="networks of softmax attention of the published depth, and a curriculum of lengths",
    minutes=7,
    run=run,
    judge=judge,
    find=find,
)
