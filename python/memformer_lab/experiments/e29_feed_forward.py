"""Experiment 29: does a feed-forward block make layers of linear attention learn a second-order method?"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Generator, Tensor

from memformer_kernels.nn import Memformer
from memformer_lab.experiments.common import network
from memformer_lab.experiments.e03_gdpp import block_recipe
from memformer_lab.experiments.sequence_models import FeedForwardMemformer
from memformer_lab.reports.curves import Series, series
from memformer_lab.reports.protocol import Experiment, Setting
from memformer_lab.reports.results import Panel, Results
from memformer_lab.reports.verdicts import Check, all_below
from memformer_lab.runs.fitting import Recipe, fit, fit_on_tasks, memformer, seeded
from memformer_lab.solvers.estimates import ErrorSampler
from memformer_lab.solvers.judging import (
    Distribution,
    Predictor,
    distributions,
    network_errors,
    quadratics_of,
    query_errors,
)
from memformer_lab.solvers.optimizers import OPTIMIZERS
from memformer_lab.solvers.spectral import SpectralNetwork, best_network, folded, sampled_spectrum
from memformer_lab.tasks.gaussian import GaussianTasks, TaskBatch

ZERO, FREE = "Bm = 0", "Bm free"
STRUCTURES = {ZERO: "response-only", FREE: "block"}
"""Structure of the attention's matrices, by kind of network; panels are named after it."""

PLAIN = {ZERO: "Bm = 0", FREE: "GD++"}
WIDE = {kind: f"{label} + feed-forward" for kind, label in PLAIN.items()}
"""How the networks without and with a feed-forward block are called."""

BEST = "GD++, best coefficients"
LAYERS = (2, 3, 4)
_RANDOM, _GROWN = "random start", "start without a block"
_CGD, _NEWTON = "CGD", "Newton"
_ALGORITHMS = {_CGD: "conjugate_gradient", _NEWTON: "iterative_newton"}
_D, _N, _QUERIES = 5, 20, 5
_MARGIN = 0.1
_SHOWN = {"log_median": "ln median squared error", "log_trimmed": "ln mean squared error without the largest 0.1%"}
_ELSEWHERE = 1_000
"""Seeds from here on are those of no judging: starts are chosen on them."""

_ADDS = {kind: f"with {kind} it does better than without a block" for kind in PLAIN}
_AHEAD = f"with {ZERO} it does better than conjugate gradients"

Grid = dict[tuple[str, int], list[Memformer | FeedForwardMemformer]]
"""Networks by label and layers: one a seed, or one a further training of the first seed's."""


def run(setting: Setting) -> Results:
    """Trains both kinds of networks without a block and, from two starts, with one; judges all on the same tokens."""
    tasks = GaussianTasks.isotropic(_D, _N)
    panels: list[Panel] = []
    numbers: dict[str, float] = {}
    for kind, structure in STRUCTURES.items():
        models, further = _without(kind, tasks, setting)
        chosen = _with(kind, models, further, tasks, setting)
        numbers |= {f"{WIDE[kind]}, {layers} layers: the {_GROWN} is chosen": one for layers, one in chosen.items()}
        for label in (PLAIN[kind], WIDE[kind]):
            parameters = models[label, LAYERS[-1]][0].parameters()
            numbers[f"parameters, {label}, {LAYERS[-1]} layers"] = float(sum(one.numel() for one in parameters))
        panels += _panels(kind, structure, models, further, tasks, setting)
    return Results(tuple(panels), numbers)


def judge(results: Results) -> Sequence[Check]:
    """By median and trimmed mean at every number of layers; what GD++ and Newton's iteration do are controls."""
    checks = []
    for name, shown in (("log_median", "median"), ("log_trimmed", "trimmed mean")):
        for kind, structure in STRUCTURES.items():
            panel = results[f"{structure}-{name}"]
            wide = panel[WIDE[kind]]
            # Best coefficients are what further training of GD++ can come to, so a rule on it as trained stays open.
            rivals = {PLAIN[kind]: kind == ZERO, **({BEST: True} if kind == FREE else {})}
            for rival, essential in rivals.items():
                text = f"{wide.label} is below {rival}, by {_MARGIN}, at {{}} layers ({shown})"
                checks += all_below(text, wide, panel[rival], LAYERS, -_MARGIN, essential=essential, part=_ADDS[kind])
            # With Bm free it shows nothing: GD++ is ahead of CGD without a block.
            text = f"{wide.label} is below as many iterations of CGD, by {_MARGIN}, at {{}} layers ({shown})"
            checks += all_below(text, wide, panel[_CGD], LAYERS, -_MARGIN, essential=kind == ZERO, part=_AHEAD)
            text = f"{wide.label} is no worse than as many iterations of Newton, by {_MARGIN}, at {{}} layers ({shown})"
            checks += all_below(text, wide, panel[_NEWTON], LAYERS, _MARGIN, essential=False)
            for rival in (_CGD, _NEWTON):
                text = f"control, {PLAIN[kind]} is below as many iterations of {rival}, at {{}} layers ({shown})"
                checks += all_below(text, panel[PLAIN[kind]], panel[rival], LAYERS, essential=False)
    return checks


def find(results: Results) -> str:
    """The medians of the deepest networks."""
    last = LAYERS[-1]
    panels = [results[f"{structure}-log_median"] for structure in STRUCTURES.values()]
    median = {one.label: one.mean(last) for panel in panels for one in panel.series}
    return (
        f"At {last} layers the medians with and without a block are {median[WIDE[ZERO]]:.2f} and "
        f"{median[PLAIN[ZERO]]:.2f} with Bm = 0, {median[WIDE[FREE]]:.2f} and {median[BEST]:.2f} with Bm free (best "
        f"coefficients without, {median[PLAIN[FREE]]:.2f} as trained); of {last} iterations CGD has "
        f"{median[_CGD]:.2f}, Newton {median[_NEWTON]:.2f}"
    )


def plain_recipe(kind: str, layers: int, setting: Setting) -> Recipe:
    """How networks without a block are trained."""
    if kind == FREE:
        return block_recipe(setting, layers)
    return Recipe(setting.pick(tiny=3, quick=400, full=3_000), setting.pick(tiny=8, quick=128, full=512))


def wide_recipe(start: str, setting: Setting) -> Recipe:
    """How networks with a block are trained; one that begins trained takes small steps, as in experiment 3."""
    return Recipe(
        setting.pick(tiny=2, quick=60, full=1_500),
        setting.pick(tiny=4, quick=32, full=128),
        learning_rate={_RANDOM: 0.01, _GROWN: 1e-4}[start],
        clip=0.1,
        warmup=setting.pick(tiny=1, quick=5, full=50),
    )


def _without(kind: str, tasks: GaussianTasks, setting: Setting) -> tuple[Grid, Grid]:
    """Networks without a block, and further ones of the first seed: trained natively; and those of best coefficients.

    With Bm free they are trained with a scale of each layer's response and features, as in experiment 3, and folded.
    Those of best coefficients are trained further with all their matrices free, as those with a block are.
    """
    first = setting.seeds[0]
    models: Grid = {}
    further: Grid = {}
    for layers in LAYERS:
        recipe = plain_recipe(kind, layers, setting)

        def trained(recipe: Recipe, seed: int, layers: int = layers) -> Memformer:
            if kind == ZERO:
                model = memformer(seed, _D, layers, rule="linear", structure="response-only")
            else:
                model = network(seed, _D, layers, structure="block", rule="lfom", registers=1)
            fit_on_tasks(model, tasks, recipe, seed)
            return model if kind == ZERO else folded(model)

        models[PLAIN[kind], layers] = [trained(recipe, seed) for seed in setting.seeds]
        further[PLAIN[kind], layers] = [trained(one, first) for one in recipe.further()]
        if kind == FREE:
            best = _best_networks(layers, tasks, setting)
            gentle = [_copy(best[0]) for _ in range(2)]
            for model, one in zip(gentle, wide_recipe(_GROWN, setting).further(), strict=True):
                fit_on_tasks(model, tasks, one, first)
            models[BEST, layers] = list(best)
            further[BEST, layers] = list(gentle)
            further[PLAIN[kind], layers] += [best[0], *gentle]
    return models, further


def _best_networks(layers: int, tasks: GaussianTasks, setting: Setting) -> list[Memformer]:
    """GD++ whose few numbers are fitted to the mean error over a sample of spectra, one a seed."""
    found: list[SpectralNetwork] = []
    for seed in setting.seeds:
        spectrum = sampled_spectrum(_D, _N, setting.pick(tiny=50, quick=500, full=5_000), seed)
        found.append(best_network(spectrum, layers, memory=False, starts=found[:1], random=0))
    return [folded(one.network(tasks)) for one in found]


def _copy(model: Memformer) -> Memformer:
    made = memformer(0, model.d, model.layers, rule="linear", structure=model.structure)
    made.load_arguments(dict(model.named_parameters()))
    return made


def _with(kind: str, models: Grid, further: Grid, tasks: GaussianTasks, setting: Setting) -> dict[int, float]:
    """Add networks with a block to both grids, and say for each number of layers whether they start without one.

    The better start is that of the first seed's lower trimmed mean, on tasks that nothing is judged on; then all seeds
    train from it.
    """
    chosen = {}
    first, *others = setting.seeds
    count = setting.pick(tiny=50, quick=2_000, full=10_000)
    for layers in LAYERS:
        begin = {
            _RANDOM: [memformer(seed, _D, layers, rule="linear", structure=STRUCTURES[kind]) for seed in setting.seeds],
            _GROWN: _plain_of(models, kind, layers),
        }
        tried: dict[str, FeedForwardMemformer] = {}
        scores: dict[str, float] = {}
        for start, made in begin.items():
            tried[start] = _trained(made[0], tasks, wide_recipe(start, setting), first)
            models[f"{WIDE[kind]}, {start}", layers] = [tried[start]]
            (found,) = _judged([tried[start]], tasks, count, _ELSEWHERE + setting.seed)
            scores[start] = found.log_trimmed
        better = min(scores, key=lambda start: (scores[start] != scores[start], scores[start]))
        chosen[layers] = float(better == _GROWN)
        recipe, made = wide_recipe(better, setting), begin[better]
        rest = [_trained(one, tasks, recipe, seed) for one, seed in zip(made[1:], others, strict=True)]
        models[WIDE[kind], layers] = [tried[better], *rest]
        further[WIDE[kind], layers] = [_trained(made[0], tasks, one, first) for one in recipe.further()]
    return chosen


def _plain_of(models: Grid, kind: str, layers: int) -> list[Memformer]:
    """The best networks without a block that are known, one a seed."""
    found = models[BEST if kind == FREE else PLAIN[kind], layers]
    return [one for one in found if isinstance(one, Memformer)]


def _trained(start: Memformer, tasks: GaussianTasks, recipe: Recipe, seed: int) -> FeedForwardMemformer:
    model = seeded(lambda: FeedForwardMemformer(start), seed)
    assert isinstance(model, FeedForwardMemformer)
    errors = network_errors([model], _drawn(tasks))
    fit(model, lambda generator: errors(recipe.batch, generator).mean(), recipe, seed)
    return model


def _drawn(tasks: GaussianTasks) -> Callable[[int, Generator], TaskBatch]:
    return lambda batch, generator: tasks.tokens(batch, generator, _QUERIES)


def _judged(models: Sequence[Predictor], tasks: GaussianTasks, count: int, seed: int) -> list[Distribution]:
    """All on the same tokens, whichever call they are judged in."""
    return distributions(network_errors(models, _drawn(tasks)), count, seed)


def _algorithm_errors(tasks: GaussianTasks) -> ErrorSampler:
    """Errors on those tokens of each algorithm after `LAYERS` iterations, flat, in float64."""

    def sample(batch: int, generator: Generator) -> Tensor:
        drawn = _drawn(tasks)(batch, generator)
        z, target = drawn.z.double(), drawn.target.double()
        h, b = (part.contiguous() for part in quadratics_of(z, drawn.context))
        rows = []
        for name in _ALGORITHMS.values():
            weights = OPTIMIZERS[name](h, b, LAYERS[-1])
            rows += [query_errors(weights[layers - 1], z, target) for layers in LAYERS]
        return torch.stack(rows)

    return sample


def _panels(
    kind: str, structure: str, models: Grid, further: Grid, tasks: GaussianTasks, setting: Setting
) -> list[Panel]:
    """A panel a figure of merit; rows are seeds."""
    count = setting.pick(tiny=300, quick=5_000, full=20_000)
    labels = list(dict.fromkeys(label for label, _ in models))
    grids: list[Mapping[tuple[str, int], list[Distribution]]] = [
        {key: _judged(found, tasks, count, setting.seed) for key, found in grid.items()} for grid in (models, further)
    ]
    algorithms = distributions(_algorithm_errors(tasks), count, setting.seed)
    panels = []
    for name, shown in _SHOWN.items():
        curves = [
            series(label, LAYERS, _rows(grids[0], label, name), longer=_rows(grids[1], label, name)) for label in labels
        ]
        curves += _curves_of_algorithms(algorithms, name)
        title = f"{kind}, isotropic tasks, d = {_D}, n = {_N}: {shown}, fresh tasks of {_QUERIES} queries"
        panels.append(Panel(f"{structure}-{name}", title, "layers or iterations", shown, tuple(curves)))
    return panels


def _rows(grid: Mapping[tuple[str, int], list[Distribution]], label: str, name: str) -> list[list[float]]:
    """A row a network of every number of layers; none where there are no such networks."""
    columns = [[getattr(one, name) for one in grid.get((label, layers), [])] for layers in LAYERS]
    return [list(row) for row in zip(*columns, strict=True)]


def _curves_of_algorithms(found: Sequence[Distribution], name: str) -> list[Series]:
    width = len(LAYERS)
    return [
        series(label, LAYERS, [getattr(one, name) for one in found[place * width : (place + 1) * width]])
        for place, label in enumerate(_ALGORITHMS)
    ]


EXPERIMENT = Experiment(
    number=29,
    name="feed-forward",
    title="A feed-forward block between layers",
    claim="A feed-forward block after each layer of linear attention makes a network learn a second-order method: with "
    "Bm = 0, where it is first-order without, it does better than that and than conjugate gradients of as many steps, "
    "and with Bm free better than GD++.",
    source="asked of Fu et al., arXiv 2310.17086, and Giannou et al., arXiv 2403.03183, whose Transformers have such "
    "blocks; without them: Vladymyrov et al., arXiv 2402.14180",
    protocol=f"Linear Transformers without memory on isotropic tasks, d = {_D}, n = {_N}, where no covariance can be "
    f"learned that would put first-order methods ahead of CGD; {LAYERS[0]} to {LAYERS[-1]} "
    "layers. A block adds W2 max(W1 z, 0) to every token, 4 D wide. Networks without a block are trained in whole "
    "native steps, with Bm free as in experiment 3 and also at the best coefficients found there; those with one in "
    f"PyTorch, on {_QUERIES} queries a task, from a random start and from the best network without a block, W2 = 0, so "
    "that they can be no worse but for training. The better start is chosen by the first seed on separate tasks, for "
    "each number of layers; the first seed is shown from both. Further training: twice the steps, at the rate and at a "
    "third of it; of best coefficients, all matrices trained on as those with a block are. All are judged on the same "
    "tokens, by median and by the mean without the largest 0.1%, which rare tasks leave alone, and must be ahead by "
    f"{_MARGIN}; with Bm free the rival is GD++ at its best coefficients. Newton's iteration for the inverse, M_0 = "
    "alpha H with each task's best alpha, is a control: at so few iterations first-order methods are ahead of it, so "
    "that it shows no order to be ahead of it too. Nor does it to be ahead of CGD with Bm free, as GD++ is.",
    asks="wider tokens, in which attention can carry a matrix, and prompts of every length, whose errors show which "
    "iteration the layers resemble",
    minutes=18,
    run=run,
    judge=judge,
    find=find,
)
