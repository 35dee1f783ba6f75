"""Experiment 26: classification in context by one-hot responses, against Bayes rules and classical classifiers."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial

import torch
from torch import Generator, Tensor

from memformer_kernels.nn import Memformer
from memformer_lab.experiments.common import change_of
from memformer_lab.reports.curves import Series, series
from memformer_lab.reports.protocol import Experiment, Setting
from memformer_lab.reports.results import Panel, Results
from memformer_lab.reports.verdicts import Check, all_below, below
from memformer_lab.runs.fitting import Recipe, fit, memformer
from memformer_lab.solvers.classes import by_known_means, discriminant, in_context_optimum, logistic, ridge_classes
from memformer_lab.tasks.mixtures import MixtureBatch, MixtureTasks
from memformer_lab.tasks.seeds import generator_for

_D, _CLASSES, _RADIUS, _SCALES = 5, 3, 2.0, (1.0, 1.0, 0.7, 0.5, 1.0)
_LAYERS = (1, 2, 4)
_SHALLOW, _DEEP = (f"LFOM, {layers} layer{'' if layers == 1 else 's'}" for layers in (_LAYERS[0], _LAYERS[-1]))
_FLIPPED = 0.2
_NEAR, _NEAR_FLIPPED, _SHORT = 0.05, 0.1, 4 * _D
KNOWN, OPTIMUM = "known means", "Bayes optimum in context"
LDA, RIDGE, LOGISTIC, NEAREST = "LDA", "ridge classifier", "logistic regression", "nearest class mean"
_RIVALS = (LDA, RIDGE, LOGISTIC)
_APPROACHES = "long prompts bring one layer to the Bayes-optimal classifier"
_AHEAD = "ahead of classical classifiers on short prompts"
_NOISY = "flipped labels in a long prompt cost little"
_WIDTH = 1.96

Classifier = Callable[[MixtureBatch], Tensor]
"""The classes that it gives to the queries of a batch of tasks, (B, queries)."""

Penalised = Callable[[MixtureBatch, float], Tensor]
"""Likewise, with a penalty to be tuned."""


def run(setting: Setting) -> Results:
    """Trains on prompts of every length; all classifiers read the same prompts and answer the same queries."""
    lengths = setting.pick(tiny=(10, 20, 40), quick=(10, 20, 40, 160), full=(10, 20, 40, 80, 160, 320, 640))
    tasks = MixtureTasks(_D, _CLASSES, _RADIUS, _SCALES, rotation_seed=setting.seed)
    first = setting.seeds[0]
    networks: dict[str, list[Memformer]] = {}
    for layers in _LAYERS:
        recipe = _recipe(setting, layers)
        trained = [_trained(tasks, lengths, layers, recipe, seed) for seed in setting.seeds]
        networks[_label(layers)] = trained + [
            _trained(tasks, lengths, layers, further, first) for further in recipe.further()
        ]
    tuned = [_tuned(setting, tasks, n, place) for place, n in enumerate(lengths)]
    found = [_judged(setting, tasks, networks, tuned[place], n, place) for place, n in enumerate(lengths)]
    longest, last = lengths[-1], len(lengths)
    shares = (0.0, 0.1, _FLIPPED, 0.3)
    classical = {name: tuned[-1][name] for name in (LDA, RIDGE)}
    flips = [
        _judged(setting, tasks, networks, classical, longest, last + place, flipped=share)
        for place, share in enumerate(shares)
    ]
    said = f"{_CLASSES} classes, d = {_D}"
    less = "less that of who knows the means"
    title = f"Wrong answers by the number of examples, {said}"
    panels = (
        _panel("examples", title, "examples", lengths, found, log_x=True),
        _panel("excess", f"The same {less}", "examples", lengths, found, KNOWN, log_x=True),
        _by_layers(lengths, found),
        _panel("flips", f"{longest} examples, some flipped, {less}", "share of flipped labels", shares, flips, KNOWN),
    )
    return Results(panels)


def judge(results: Results) -> Sequence[Check]:
    """By ln of the share of wrong answers: against known means, against classical classifiers, and with flips."""
    excess, flips = results["excess"], results["flips"]
    places = excess.places
    shallow, deep, longest = excess[_SHALLOW], excess[_DEEP], places[-1]
    name = f"{_SHALLOW}: wrong at most 5% more often than {KNOWN} after {{}} examples"
    checks = all_below(name, shallow, 0.0, [longest], _NEAR, part=_APPROACHES)
    name = f"{_SHALLOW}: its excess over {KNOWN} after {{}} examples less that at the length before"
    change = change_of(shallow)
    checks += all_below(name, change, 0.0, change.x, part=_APPROACHES)
    for rival in _RIVALS:
        name = f"{_DEEP}: wrong less often than {rival} after {{}} examples"
        checks += all_below(name, deep, excess[rival], [n for n in places if n <= _SHORT], part=_AHEAD)
        checks += all_below(name, deep, excess[rival], [n for n in places if n > _SHORT], essential=False)
        name = f"{_SHALLOW}: wrong less often than {rival} after {{}} examples"
        checks += all_below(name, shallow, excess[rival], places, essential=False)
    name = f"{_SHALLOW}: with {_FLIPPED:.0%} of the labels flipped wrong at most 10% more often than {KNOWN}"
    checks.append(below(name, flips[_SHALLOW], 0.0, _FLIPPED, _NEAR_FLIPPED, part=_NOISY))
    for rival in (LDA, RIDGE):
        name = f"{_SHALLOW}: with {_FLIPPED:.0%} of the labels flipped wrong less often than {rival}"
        checks.append(below(name, flips[_SHALLOW], flips[rival], _FLIPPED, essential=False))
    name = f"{_DEEP}: wrong at most 5% more often than the {OPTIMUM} after {{}} examples"
    checks += all_below(name, deep, excess[OPTIMUM], places, _NEAR, essential=False)
    name = f"{_DEEP}: wrong less often than {_SHALLOW} after {{}} examples"
    return [*checks, *all_below(name, deep, shallow, places, essential=False)]


def find(results: Results) -> str:
    """Right answers at the fewest and the most examples, and with flipped labels."""
    error, flips = results["examples"], results["flips"]
    few, many = error.places[0], error.places[-1]

    def right(label: str, n: float) -> str:
        return f"{1 - math.exp(error[label].mean(n)):.1%}"

    def told(labels: Iterable[str], n: float) -> str:
        return ", ".join(f"{label} {right(label, n)}" for label in labels)

    more = math.expm1(flips[_SHALLOW].mean(_FLIPPED))
    return (
        f"Right after {few:g} examples: {told((_SHALLOW, _DEEP, OPTIMUM, *_RIVALS), few)}; after {many:g}: "
        f"{told((_SHALLOW, _DEEP, KNOWN), many)}; with {_FLIPPED:.0%} of {many:g} labels flipped one layer is wrong "
        f"{more:.0%} more often than {KNOWN}."
    )


def _label(layers: int) -> str:
    return f"LFOM, {layers} layer{'' if layers == 1 else 's'}"


def _recipe(setting: Setting, layers: int) -> Recipe:
    steps, batch = setting.pick(tiny=3, quick=100, full=1500), setting.pick(tiny=8, quick=32, full=64)
    return Recipe(steps, batch, 0.1 / layers, 1.0, warmup=setting.pick(tiny=1, quick=20, full=100))


def _trained(tasks: MixtureTasks, lengths: Sequence[int], layers: int, recipe: Recipe, seed: int) -> Memformer:
    """One scalar weight a register, so that classes are alike; every step has prompts of a length drawn evenly."""
    model = memformer(seed, _D, layers, rule="lfom", granularity="scalar", responses=_CLASSES)

    def loss(generator: Generator) -> Tensor:
        place = torch.randint(len(lengths), (), generator=generator, device=generator.device, dtype=torch.int64)
        drawn = tasks.draw(recipe.batch, generator, lengths[int(place)], queries=8)
        z, target = drawn.tokens()
        return model.loss(z, target, context=drawn.context)

    fit(model, loss, recipe, seed)
    return model


def _tuned(setting: Setting, tasks: MixtureTasks, n: int, place: int) -> dict[str, Classifier]:
    """Classical classifiers, each with the penalty that is best at this length on tasks that no one is judged on."""
    grids: dict[str, tuple[Penalised, tuple[float, ...], int]] = {
        LDA: (discriminant, (0.01, 0.03, 0.1, 0.3, 1.0), setting.pick(tiny=20, quick=500, full=2000)),
        RIDGE: (ridge_classes, (0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0), setting.pick(tiny=20, quick=500, full=2000)),
        LOGISTIC: (logistic, (0.1, 1.0, 10.0), setting.pick(tiny=4, quick=20, full=60)),
    }
    found: dict[str, Classifier] = {}
    for name, (classifier, grid, count) in grids.items():
        drawn = tasks.draw(count, generator_for("training", setting.seed, 1 + place), n, queries=16)
        best = min(grid, key=partial(_rate, classifier, drawn))
        found[name] = partial(_with, classifier, best)
    return found


def _rate(classifier: Penalised, drawn: MixtureBatch, value: float) -> float:
    """Share of wrong answers with a value of the penalty."""
    return float(_wrong(classifier(drawn, value), drawn).mean())


def _with(classifier: Penalised, value: float, drawn: MixtureBatch) -> Tensor:
    return classifier(drawn, value)


Rates = dict[str, Tensor]
"""By label (rows, tasks): the share of a task's queries that is answered wrongly; a row a network."""


def _judged(
    setting: Setting,
    tasks: MixtureTasks,
    networks: Mapping[str, Sequence[Memformer]],
    classical: Mapping[str, Classifier],
    n: int,
    place: int,
    *,
    flipped: float = 0.0,
) -> Rates:
    """All on the same tasks; logistic regression, of a fit a task, on the first of them."""
    count, few = setting.pick(tiny=60, quick=1_000, full=6_000), setting.pick(tiny=10, quick=60, full=600)
    chunk = setting.pick(tiny=60, quick=500, full=500)
    fixed: dict[str, Classifier] = {
        KNOWN: partial(by_known_means, tasks=tasks),
        NEAREST: partial(discriminant, shrinkage=1.0),
        **{name: one for name, one in classical.items() if name != LOGISTIC},
    }
    if not flipped:
        fixed[OPTIMUM] = partial(in_context_optimum, tasks=tasks)
    parts: dict[str, list[Tensor]] = {}
    for index, start in enumerate(range(0, count, chunk)):
        generator = generator_for("evaluation", setting.seed, 1000 * place + index)
        drawn = tasks.draw(min(chunk, count - start), generator, n, queries=16, flipped=flipped)
        for label, models in networks.items():
            parts.setdefault(label, []).append(_network_errors(models, drawn))
        for label, classifier in fixed.items():
            parts.setdefault(label, []).append(_wrong(classifier(drawn), drawn)[None])
        if LOGISTIC in classical and start < few:
            some = MixtureBatch(drawn.x[: few - start], drawn.labels[: few - start], drawn.means[: few - start], n)
            parts.setdefault(LOGISTIC, []).append(_wrong(classical[LOGISTIC](some), some)[None])
    return {label: torch.cat(found, dim=1) for label, found in parts.items()}


def _network_errors(models: Sequence[Memformer], drawn: MixtureBatch) -> Tensor:
    z, target = drawn.tokens()
    with torch.no_grad():
        given = [model.predict(z, context=drawn.context, queries=target.shape[1]).argmax(-1) for model in models]
    return torch.stack([_wrong(one, drawn) for one in given])


def _wrong(given: Tensor, drawn: MixtureBatch) -> Tensor:
    """(B,) the share of wrong answers of each task, float64."""
    return (given != drawn.labels[:, drawn.context :]).double().mean(1)


def _curve(
    label: str, x: Sequence[float], found: Sequence[Tensor], less: Sequence[Tensor] | None, seeds: int
) -> Series:
    """ln of the share of wrong answers, or of its ratio to another's on the same tasks, from (rows, tasks) a place.

    `sampling` is the widest row's by the delta method over tasks.
    """
    values, widths = [], []
    for place, rates in enumerate(found):
        tasks = rates.shape[1]
        floor = 0.5 / (16 * tasks)
        mean = rates.mean(1, keepdim=True).clamp(min=floor)
        spread, value = rates / mean, mean.log()
        if less is not None:
            other = less[place][:, :tasks]
            base = other.mean(1, keepdim=True).clamp(min=floor)
            spread, value = spread - other / base, value - base.log()
        values.append(value[:, 0].tolist())
        widths.append(_WIDTH * float(spread.std(1).max()) / math.sqrt(tasks))
    rows = [list(row) for row in zip(*values, strict=True)]
    return series(label, x, rows[:seeds], sampling=widths, longer=rows[seeds:])


def _panel(
    name: str,
    title: str,
    x_label: str,
    x: Sequence[float],
    found: Sequence[Rates],
    less: str | None = None,
    *,
    log_x: bool = False,
) -> Panel:
    base = None if less is None else [one[less] for one in found]
    # Labels that every place has; rows past the seeds are those of longer training.
    labels = [label for label in found[0] if label != less and all(label in one for one in found)]
    curves = [_curve(label, x, [one[label] for one in found], base, _seeds(found[0][label])) for label in labels]
    y_label = "ln share of wrong answers" if less is None else "difference of ln share of wrong answers"
    return Panel(name, title, x_label, y_label, tuple(curves), log_x=log_x, digits=3)


def _by_layers(lengths: Sequence[int], found: Sequence[Rates]) -> Panel:
    """The networks again, by depth, at the fewest and the most examples."""
    curves = []
    for n, rates in ((lengths[0], found[0]), (lengths[-1], found[-1])):
        single = [
            _curve("", [layers], [rates[_label(layers)]], None, _seeds(rates[_label(layers)])) for layers in _LAYERS
        ]
        curves.append(
            series(
                f"LFOM, {n} examples",
                _LAYERS,
                [[one.values[row][0] for one in single] for row in range(len(single[0].values))],
                sampling=[one.sampling[0] for one in single],
                longer=[[one.longer[row][0] for one in single] for row in range(len(single[0].longer))],
            )
        )
    return Panel("layers", "Wrong answers by depth", "layers", "ln share of wrong answers", tuple(curves), digits=3)


def _seeds(rates: Tensor) -> int:
    """How many of the rows are seeds: all but two, those of longer training, or the one of a classifier."""
    return max(1, len(rates) - 2)


EXPERIMENT = Experiment(
    number=26,
    name="classification",
    title="Classes in context",
    claim="Trained on mixtures of Gaussian classes, a linear Transformer classifies in context: with long prompts one "
    "layer comes to the Bayes-optimal classifier, also where labels in the prompt are flipped, and a network is ahead "
    "of classifiers that are fitted to the prompt alone.",
    source="one layer: Shen et al., arXiv 2410.11778; flipped labels: Frei & Vardi, arXiv 2410.01774, who show it in "
    "many dimensions; against classical classifiers: ours",
    protocol=f"{_CLASSES} classes, labels uniform, x ~ N(mu, Sigma) with one Sigma for all tasks, d = {_D}; whitened "
    f"means are uniform on the sphere of radius {_RADIUS:g}, drawn for every task. A class is a response, 1 less 1 / m "
    "in its rows, and the largest prediction is taken. Networks are response-only LFOM with scalar memory weights, "
    "trained by squared error on prompts of 10 to 640 examples, of one length in a step. Rules read ln of the share of "
    "wrong answers: near means 5% more of them than who knows the means and Sigma gives, 10% where a fifth of the "
    f"labels is flipped, at 640 examples; short prompts have at most {_SHORT}. The optimum in context knows Sigma and "
    "averages over the means. Rivals have the penalty that is best at each length, tuned on other tasks: LDA with "
    "shrinkage, ridge on one-hot labels, and logistic regression, this one judged on a tenth of the tasks. They do not "
    "know Sigma, which a network learns: that is what is claimed. The network of four layers decides on short prompts, "
    "that of one layer on long ones. The first seed is also trained for twice the steps, at the same rate and at a "
    "third of it.",
    asks="whether flipped examples are memorised in many dimensions, classes of unequal means and priors, and rivals "
    "that are given an estimate of Sigma from other tasks",
    minutes=8,
    run=run,
    judge=judge,
    find=find,
)
