"""Experiment 4: training on few fixed tasks, and the learned coefficients as an optimiser of their own."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from memformer_kernels import lfom_solve
from memformer_kernels.nn import Memformer
from memformer_lab.experiments.common import NONISOTROPIC, floored_log, gaussian_tasks, relative_difference, solver_of
from memformer_lab.reports.curves import series
from memformer_lab.reports.protocol import Experiment, Setting
from memformer_lab.reports.results import Panel, Results
from memformer_lab.reports.verdicts import Check, all_below, at_most
from memformer_lab.runs.fitting import Recipe, fit_fixed, memformer
from memformer_lab.solvers.estimates import estimate
from memformer_lab.solvers.first_order import first_order_method
from memformer_lab.solvers.judging import quadratics_of, query_errors, solver_errors, steps_of
from memformer_lab.solvers.optimizers import conjugate_gradient
from memformer_lab.solvers.optimum import exact_optimum
from memformer_lab.tasks.gaussian import GaussianTasks, TaskBatch
from memformer_lab.tasks.seeds import generator_for

_LAYERS = 4
_BATCHES = (1, 10, 50, 100, 1000)


_FAR = 1.0
TRAINING, FRESH = "LFOM, training tasks", "LFOM, fresh tasks"
_CGD, _FRESH_CGD = f"CGD, {_LAYERS} steps, the same training tasks", f"CGD, {_LAYERS} steps, fresh tasks"
_OPTIMUM = "the optimum, fresh tasks"


def run(setting: Setting) -> Results:
    """Trains one model for each number of tasks and seed; the tasks stay the same in every step."""
    tasks = gaussian_tasks(NONISOTROPIC, setting.seed)
    recipe = Recipe(setting.pick(tiny=3, quick=1000, full=10_000), learning_rate=0.03)
    count = setting.pick(tiny=500, quick=50_000, full=1_000_000)
    width = len(_BATCHES)

    def fitted(seed: int, recipe: Recipe) -> tuple[list[Memformer], list[float]]:
        """Models by number of tasks, and their training losses."""
        models, losses = [], []
        for index, batch in enumerate(_BATCHES):
            fixed = _fixed(tasks, batch, seed, index)
            models.append(memformer(seed, tasks.d, _LAYERS, rule="lfom"))
            fit_fixed(models[-1], fixed, recipe, seed)
            with torch.no_grad():
                losses.append(
                    floored_log(float(models[-1].loss(fixed.z, fixed.target, context=fixed.context)), torch.float32)
                )
        return models, losses

    runs = [fitted(seed, recipe) for seed in setting.seeds]
    further = [fitted(setting.seeds[0], one) for one in recipe.further()]
    cgd = [
        [
            floored_log(_cgd_loss(_fixed(tasks, batch, seed, index)), torch.float32)
            for index, batch in enumerate(_BATCHES)
        ]
        for seed in setting.seeds
    ]
    solvers = [solver_of(model) for models, _ in (*runs, *further) for model in models]
    solvers.append(exact_optimum(tasks, _LAYERS).method(torch.float32).solver(layers=False))
    solvers.append(steps_of("conjugate_gradient", _LAYERS))
    found = [one.log_mean for one in estimate(solver_errors(tasks, solvers), count, setting.seed)]
    fresh = [found[start : start + width] for start in range(0, width * len(runs) + width * len(further), width)]
    optimum, fresh_cgd = found[-_LAYERS - 1], found[-1]
    panel = Panel(
        "batches",
        f"LFOM with {_LAYERS} layers trained on B fixed tasks",
        "B",
        "ln mean squared error",
        (
            series(TRAINING, _BATCHES, [losses for _, losses in runs], longer=[losses for _, losses in further]),
            series(FRESH, _BATCHES, fresh[: len(runs)], longer=fresh[len(runs) :]),
            series(_CGD, _BATCHES, cgd),
            series(_FRESH_CGD, _BATCHES, [fresh_cgd] * width),
            series(_OPTIMUM, _BATCHES, [optimum] * width, reference=True),
        ),
        log_x=True,
    )
    apart = max(
        _stand_alone_difference(models[-1], tasks, seed) for (models, _), seed in zip(runs, setting.seeds, strict=True)
    )
    name = "largest relative difference of the stand-alone optimiser's predictions from the network's"
    return Results((panel,), {name: apart})


def _fixed(tasks: GaussianTasks, batch: int, seed: int, index: int) -> TaskBatch:
    return tasks.tokens(batch, generator_for("training", seed, 1 + index), queries=1)


def judge(results: Results) -> Sequence[Check]:
    """Better than CGD on its training tasks for small B by a factor e. That the method stands alone is no finding."""
    panel = results["batches"]
    text = "training loss is far below CGD's on the same tasks, B = {}"
    checks = all_below(text, panel[TRAINING], panel[_CGD], _BATCHES[:2], -_FAR)
    checks += all_below("fresh loss is below CGD's, B = {}", panel[FRESH], panel[_FRESH_CGD], _BATCHES, essential=False)
    apart = next(iter(results.numbers.values()))
    text = "the learned coefficients run alone give the network's predictions"
    checks.append(at_most(text, apart, 1e-3, essential=False))
    return checks


def find(results: Results) -> str:
    """Training and fresh losses at a small and at the largest B."""
    panel = results["batches"]
    training, fresh, cgd, fresh_cgd, optimum = (panel[name] for name in (TRAINING, FRESH, _CGD, _FRESH_CGD, _OPTIMUM))
    few, many = _BATCHES[1], _BATCHES[-1]
    return (
        f"On {few} tasks LFOM is trained to {training.mean(few):.1f} (CGD {cgd.mean(few):.1f}), on fresh ones it is at "
        f"{fresh.mean(few):.1f}; with {many} it reaches {fresh.mean(many):.2f} on fresh tasks, against CGD's "
        f"{fresh_cgd.mean(many):.2f} and the optimum's {optimum.mean(many):.2f}."
    )


def _cgd_loss(batch: TaskBatch) -> float:
    weights = conjugate_gradient(*quadratics_of(batch.z, batch.context), _LAYERS)[-1]
    return float(query_errors(weights, batch.z, batch.target).mean())


def _stand_alone_difference(model: torch.nn.Module, tasks: GaussianTasks, seed: int) -> float:
    """`lfom_solve` with the extracted coefficients, in float64, against the network's own predictions on tokens."""
    double = model.double()
    batch = tasks.tokens(200, generator_for("evaluation", seed, 2))
    z, n, d = batch.z.double(), batch.context, tasks.d
    method = first_order_method(double)  # type: ignore[arg-type]
    assert method is not None
    with torch.no_grad():
        weights = lfom_solve(*quadratics_of(z, n), method.a, method.gamma, method.beta)
        alone = (z[:, n:, :d] * weights.unsqueeze(1)).sum(-1)
        network = double.predict(z, context=n)  # type: ignore[operator]
    return relative_difference(alone, network)


EXPERIMENT = Experiment(
    number=4,
    name="small-batches",
    title="Few training tasks, and the learned optimiser on its own",
    claim="Trained on a small batch, an LFOM Memformer fits its training tasks far better than CGD does; its "
    "coefficients are an optimiser that can be run on its own.",
    source="Dutta & Sra, arXiv 2410.07263, Fig. 4",
    protocol="B tasks with one query each are drawn once and used in every step. Their loss is called training loss; "
    "the loss on fresh tasks is shown next to it, never mixed with it, beside the optimum of any training. CGD runs on "
    "the same tasks. Losses below float32's rounding, ln of which is -31.9, are given as that. Far is a factor e. "
    "One free A has 25 numbers, so ten tasks can be fitted without memory too. "
    "Published runs show the loss on the batch trained on alone. The coefficients of the model with the largest B are "
    "run by lfom_solve on tokens of fresh tasks, in float64: that they are an optimiser of their own holds by "
    "construction, so the second half of the claim is checked and decides nothing.",
    asks="the loss between B = 1000 and fresh tasks in every step, and early stopping on the fixed batch",
    minutes=1,
    run=run,
    judge=judge,
    find=find,
)
