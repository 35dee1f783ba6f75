"""Experiment 14: which algorithm do the layers resemble, first or second order?"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from functools import partial

import torch
from torch import Generator, Tensor, nn

from memformer_kernels import memformer_stack
from memformer_kernels.nn import Memformer
from memformer_lab.experiments.e11_condition import CONDITIONS, conditioned_tasks
from memformer_lab.experiments.prompts import (
    Predictions,
    algorithm_predictions,
    draw_prompts,
    memformer_predictions,
    similarity,
)
from memformer_lab.experiments.sequence_models import CausalTransformer, RecurrentModel
from memformer_lab.reports.curves import Series, series
from memformer_lab.reports.protocol import Experiment, Setting
from memformer_lab.reports.results import Matrix, Panel, Results
from memformer_lab.reports.verdicts import Check, at_least, at_most
from memformer_lab.runs.fitting import Recipe, fit, fit_on_lengths, fit_on_tasks, memformer, seeded
from memformer_lab.solvers.estimates import estimate, log_of
from memformer_lab.solvers.judging import memformer_estimates, solver_errors, steps_of
from memformer_lab.solvers.optimizers import OPTIMIZERS, ols, ridge
from memformer_lab.tasks.gaussian import GaussianTasks
from memformer_lab.tasks.seeds import generator_for

_D, _N, _LAYERS = 5, 20, 4
_LENGTHS = (1, 2, 3, 4, 5, 6, 8, 10, 12, 16, 20)
_NOISES = (0.0, 0.1, 0.5, 1.0)
_FLOOR = 1e-6
_FIRST_ORDER = ("gradient_descent", "momentum", "nesterov")
_GOAL = math.log(1e-2)
_MEMFORMERS = {
    "LFOM, Bm free": ("lfom", "block"),
    "GD++": ("linear", "block"),
    "LFOM, Bm = 0": ("lfom", "response-only"),
    "LFOM, Bm free, n = 5 to 20": ("lfom", "block"),
    "LFOM, Bm free, as few tasks as sequence models": ("lfom", "block"),
}
_SHOWN = ("GD, 4 steps", "CGD, 4 steps", "Newton, 4 steps", "online GD", "OLS")
_ALL_LENGTHS = "LFOM, Bm free, n = 5 to 20"
_FEW_TASKS = "LFOM, Bm free, as few tasks as sequence models"


def run(setting: Setting) -> Results:
    """All parts, on isotropic tasks with d = 5, n = 20, but for the condition numbers."""
    tasks = GaussianTasks.isotropic(_D, _N)
    prompts = setting.pick(tiny=20, quick=300, full=1_000)
    by_length: dict[str, list[list[float]]] = {}
    by_layer: dict[str, list[list[float]]] = {}
    readouts: list[list[float]] = []
    matrices: list[list[list[float]]] = []
    names: tuple[str, ...] = ()
    for seed in setting.seeds:
        x, y = draw_prompts(tasks, prompts, generator_for("evaluation", seed))
        columns = algorithm_predictions(x, y, _LENGTHS)
        layers: Predictions = {}
        for label, (rule, structure) in _MEMFORMERS.items():
            recipe = _few_tasks(setting, 0.06, 0.01) if label == _FEW_TASKS else _recipe(setting, structure)
            model = _trained(seed, tasks, rule, structure, recipe, every_length=label == _ALL_LENGTHS)
            after = memformer_predictions(model, x, y, _LENGTHS)
            if label != _FEW_TASKS:
                layers |= {f"{label}, layer {k}": value for k, value in enumerate(after, 1)}
            columns[label] = after[-1]
            by_layer.setdefault(label, []).append([_log_error(one[-1], y[:, -1]) for one in after])
            if label == "LFOM, Bm free":
                readouts.append(_readouts(model, tasks, setting, seed))
        for label, network in _sequence_models(seed, tasks, setting).items():
            columns[label] = network
        for label, predictions in columns.items():
            if label in _SHOWN or label.startswith(("LFOM", "Transformer", "LSTM")):
                errors = [_log_error(predictions[k], y[:, length]) for k, length in enumerate(_LENGTHS)]
                by_length.setdefault(label, []).append(errors)
        shown = {label: value for label, value in columns.items() if label not in _MEMFORMERS}
        names = tuple(shown)
        truth = torch.stack([y[:, length] for length in _LENGTHS])
        matrices.append([[similarity(one, other, truth) for other in shown.values()] for one in layers.values()])
        rows = tuple(layers)
    mean = torch.tensor(matrices, device="cpu", dtype=torch.float32).mean(0).tolist()
    newton = _classical_curve(tasks, "iterative_newton", setting)
    panels = (
        Panel(
            "layers",
            "Error after each layer or iteration, isotropic, n = 20",
            "layer or iteration",
            "ln mean squared error",
            (
                *(series(label, range(1, _LAYERS + 1), rows) for label, rows in by_layer.items()),
                newton,
                _classical_curve(tasks, "conjugate_gradient", setting),
                _classical_curve(tasks, "gradient_descent", setting),
            ),
        ),
        Panel(
            "lengths",
            "Error by prompt length (Memformers trained at n = 20 but where said, sequence models at every length; "
            "errors below 1e-6 shown as 1e-6)",
            "examples",
            "ln mean squared error",
            tuple(series(label, _LENGTHS, values) for label, values in by_length.items()),
        ),
        Panel(
            "readout",
            f"Linear read-out of every layer of the {_LAYERS}-layer LFOM with Bm free, fresh tasks",
            "layer",
            "ln mean squared error",
            (
                series("linear read-out of the query token", range(1, _LAYERS + 1), readouts),
                series("the network's own prediction", range(1, _LAYERS + 1), by_layer["LFOM, Bm free"]),
            ),
        ),
        _condition_panel(setting),
        _noise_panel(setting),
    )
    title = "Similarity of errors over prompt lengths: layers against algorithms (cosine, mean over tasks and seeds)"
    matrix = Matrix("similarity", title, rows, names, tuple(tuple(row) for row in mean))
    few = _few_tasks(setting, 0.0, 0.0)
    return Results(panels, {"tasks that a sequence model is trained on": float(few.steps * few.batch)}, (matrix,))


def judge(results: Results) -> Sequence[Check]:
    """Layers with Bm free must fall as fast as Newton's iterations; what they resemble, noise and lengths qualify."""
    layers = results["layers"]
    free, newton, cgd = layers["LFOM, Bm free"], layers["iterative newton"], layers["conjugate gradient"]
    matrix = results.matrices[0]
    row = matrix.values[matrix.rows.index(f"{_ALL_LENGTHS}, layer {_LAYERS}")]
    by_name = dict(zip(matrix.columns, row, strict=True))
    newton_best = max(value for name, value in by_name.items() if name.startswith("Newton"))
    descent_best = max(value for name, value in by_name.items() if name.startswith("GD"))
    condition = results["condition"]
    low, high = CONDITIONS[0], CONDITIONS[-1]
    checks = [
        at_most(
            f"{_LAYERS} layers with Bm free are below {_LAYERS} iterations of CGD",
            free.mean(_LAYERS),
            cgd.mean(_LAYERS),
        ),
        at_least(
            "the last layer's errors resemble Newton's best iteration more than GD's, by 0.02",
            newton_best,
            descent_best + 0.02,
            essential=False,
        ),
        at_most(
            f"{_LAYERS} layers with Bm free are no worse than {_LAYERS} Newton iterations",
            free.mean(_LAYERS),
            newton.mean(_LAYERS),
        ),
        at_most(
            "Newton's iterations grow by at most 25 from condition 1 to 1000, two for each doubling and some",
            condition["iterative newton"].mean(high),
            condition["iterative newton"].mean(low) + 25,
            essential=False,
        ),
    ]
    noise = results["noise"]
    for sigma in _NOISES[2:]:
        ours, best = noise["LFOM, Bm free"].mean(sigma), noise["ridge, best penalty"].mean(sigma)
        checks.append(at_most(f"noise {sigma:g}: within 0.15 of the best ridge", ours, best, 0.15, essential=False))
    lengths = results["lengths"]
    sequence = [one for one in lengths.series if one.label.startswith(("Transformer", "LSTM"))]
    best_sequence = min(one.mean(_N) for one in sequence)
    checks.append(
        at_most(
            "n = 20: LFOM is below the sequence models, all of them trained on as many tasks",
            lengths[_FEW_TASKS].mean(_N),
            best_sequence,
            essential=False,
        )
    )
    return checks


def find(results: Results) -> str:
    """Errors after every layer, and what the last layer's errors resemble most."""
    matrix, layers = results.matrices[0], results["layers"]
    row = matrix.values[matrix.rows.index(f"{_ALL_LENGTHS}, layer {_LAYERS}")]
    nearest = max(range(len(row)), key=row.__getitem__)
    curves = "; ".join(f"{name} {layers[name].shown()}" for name in ("LFOM, Bm free", "GD++", "iterative newton"))
    like = f"{matrix.columns[nearest]} ({row[nearest]:.2f})"
    return f"after each layer or iteration: {curves}; the last layer's errors are most like those of {like}"


def _recipe(setting: Setting, structure: str) -> Recipe:
    steps, batch = setting.pick(tiny=3, quick=800, full=4000), setting.pick(tiny=8, quick=128, full=256)
    if structure == "block":
        return Recipe(steps, batch, 0.06, 0.01, warmup=setting.pick(tiny=1, quick=20, full=200))
    return Recipe(steps, batch)


def _few_tasks(setting: Setting, rate: float, clip: float) -> Recipe:
    """Brief, since steps of the sequence models take milliseconds."""
    return Recipe(
        setting.pick(tiny=2, quick=40, full=100), setting.pick(tiny=4, quick=32, full=64), rate, clip, warmup=5
    )


def _trained(
    seed: int, tasks: GaussianTasks, rule: str, structure: str, recipe: Recipe, *, every_length: bool
) -> Memformer:
    model = memformer(seed, _D, _LAYERS, rule=rule, structure=structure)

    if every_length:
        fit_on_lengths(model, [GaussianTasks.isotropic(_D, n) for n in range(_D, _N + 1)], recipe, seed)
    else:
        fit_on_tasks(model, tasks, recipe, seed)
    return model


def _sequence_models(seed: int, tasks: GaussianTasks, setting: Setting) -> Predictions:
    """Predictions by length of Transformers and an LSTM trained on the same kind of prompts, at every length."""
    sizes = setting.pick(tiny=(8,), quick=(8, 32), full=(8, 16, 32, 64))
    recipe = _few_tasks(setting, 0.003, 1.0)
    networks: dict[str, nn.Module] = {}
    for hidden in sizes:
        label = f"Transformer, hidden size {hidden}"
        networks[label] = seeded(partial(CausalTransformer, _D, hidden, 3, _N + 1), seed)
    networks[f"LSTM, hidden size {sizes[-1]}"] = seeded(partial(RecurrentModel, _D, sizes[-1]), seed)
    x, y = draw_prompts(tasks, setting.pick(tiny=20, quick=300, full=1_000), generator_for("evaluation", seed))
    found: Predictions = {}
    for label, network in networks.items():

        def loss(generator: Generator, network: nn.Module = network) -> Tensor:
            drawn, responses = draw_prompts(tasks, recipe.batch, generator)
            error: Tensor = (network(drawn, responses) - responses).square().mean()
            return error

        fit(network, loss, recipe, seed)
        with torch.no_grad():
            predictions = torch.cat(
                [network(*part) for part in zip(torch.split(x, 1000), torch.split(y, 1000), strict=True)]
            )
        found[label] = torch.stack([predictions[:, length] for length in _LENGTHS])
    return found


def _readouts(model: Memformer, tasks: GaussianTasks, setting: Setting, seed: int) -> list[float]:
    """Least-squares read-outs from [query token, layer's prediction times 1] fitted on other tasks than scored on."""
    count = setting.pick(tiny=50, quick=2000, full=10_000)
    fitted = tasks.tokens(count, generator_for("training", seed, 1))
    scored = tasks.tokens(count, generator_for("evaluation", seed, 1))
    arguments, found = model.stack_arguments(), []
    for layer in range(1, _LAYERS + 1):
        p, gamma = arguments["p"], arguments["gamma"]
        assert p is not None
        assert gamma is not None
        with torch.no_grad():
            tokens = [
                memformer_stack(
                    part.z, arguments["q"][:layer], p[:layer], gamma[:layer, :layer].contiguous(), context=part.context
                )[:, -1].double()
                for part in (fitted, scored)
            ]
        weights = torch.linalg.lstsq(tokens[0], fitted.target.double()).solution
        found.append(log_of(float((tokens[1] @ weights - scored.target).square().mean())))
    return found


def _classical_curve(tasks: GaussianTasks, name: str, setting: Setting) -> Series:
    count = setting.pick(tiny=200, quick=20_000, full=100_000)
    steps = _LAYERS if name != "iterative_newton" else 8
    found = estimate(solver_errors(tasks, [steps_of(name, steps)]), count, setting.seed)
    return series(name.replace("_", " "), range(1, steps + 1), [one.log_mean for one in found])


def _condition_panel(setting: Setting) -> Panel:
    count = setting.pick(tiny=100, quick=500, full=1_000)
    most = setting.pick(tiny=20, quick=200, full=200)
    rows: dict[str, list[float]] = {name: [] for name in OPTIMIZERS}
    for condition in CONDITIONS:
        # Newton's iteration stalls at the rounding of float32 times the condition number.
        tasks = replace(conditioned_tasks(condition), dtype=torch.float64)
        for name in OPTIMIZERS:
            limit = most if name in _FIRST_ORDER else setting.pick(tiny=5, quick=60, full=60)
            found = estimate(solver_errors(tasks, [steps_of(name, limit)]), count, setting.seed)
            target = math.log(_D) + _GOAL
            rows[name].append(float(next((k for k, one in enumerate(found, 1) if one.log_mean <= target), limit)))
    curves = tuple(series(name.replace("_", " "), CONDITIONS, values) for name, values in rows.items())
    return Panel(
        "condition",
        f"Iterations to 1% of the response's variance (at most {most}; Newton and CG 60)",
        "condition number",
        "iterations",
        curves,
        log_x=True,
        log_y=True,
        digits=3,
    )


def _noise_panel(setting: Setting) -> Panel:
    """LFOM trained on noisy tasks against OLS and the ridge penalty sigma^2 / n, which is optimal for w* ~ N(0, I)."""
    count = setting.pick(tiny=100, quick=10_000, full=50_000)
    ours: list[list[float]] = []
    for seed in setting.seeds:
        row = []
        for sigma in _NOISES:
            tasks = GaussianTasks(_D, _N, (1.0,) * _D, noise=sigma)
            model = memformer(seed, _D, 3, rule="lfom", structure="block")
            fit_on_tasks(model, tasks, _recipe(setting, "block"), seed)
            row.append(memformer_estimates([model], tasks, count, setting.seed)[0][0].log_mean)
        ours.append(row)
    curves = [series("LFOM, Bm free", _NOISES, ours)]
    for label in ("OLS", "ridge, best penalty"):
        values = []
        for sigma in _NOISES[1:]:
            tasks = GaussianTasks(_D, _N, (1.0,) * _D, noise=sigma)
            penalty = sigma**2 / _N

            def solve(h: Tensor, b: Tensor, label: str = label, penalty: float = penalty) -> Tensor:
                return (ols(h, b) if label == "OLS" else ridge(h, b, penalty)).unsqueeze(0)

            values.append(estimate(solver_errors(tasks, [solve]), count, setting.seed)[0].log_mean)
        curves.append(series(label, _NOISES[1:], values))
    return Panel(
        "noise", "Noisy responses, 3 layers, fresh noiseless queries", "noise", "ln mean squared error", tuple(curves)
    )


def _log_error(predictions: Tensor, target: Tensor) -> float:
    return log_of(max(_FLOOR, float((predictions.double() - target.double()).square().mean())))


EXPERIMENT = Experiment(
    number=14,
    name="second-order",
    title="Second-order reach",
    claim="Transformers, and linear ones with GD++, converge in depth like a second-order method (iterative Newton) "
    "and not like gradient descent.",
    source="Fu et al., arXiv 2310.17086; Vladymyrov et al., arXiv 2402.14180",
    protocol="Isotropic tasks, d = 5. Similarity of errors is the cosine between two predictors' errors over prompt "
    "lengths, mean over tasks. Memformers are trained at n = 20 alone, or at every n from 5 to 20, and tested at "
    "every length; the small softmax Transformers and the LSTM (plain PyTorch, not parameter-matched) are trained at "
    "every length, briefly; one LFOM is trained on as many tasks as they are. OLS is the minimum-norm solution where "
    "n < d. BFGS and L-BFGS use exact line searches, which makes them conjugate gradients on quadratics.",
    run=run,
    judge=judge,
    find=find,
)
