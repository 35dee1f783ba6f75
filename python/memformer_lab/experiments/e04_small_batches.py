"""Experiment 4: training on few fixed tasks, and the learned coefficients as an optimiser of their own."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from memformer_kernels import lfom_solve
from memformer_lab.experiments.common import NONISOTROPIC, gaussian_tasks
from memformer_lab.reports.curves import series
from memformer_lab.reports.protocol import Experiment, Setting
from memformer_lab.reports.results import Panel, Results
from memformer_lab.reports.verdicts import Check, all_below, at_most
from memformer_lab.runs.fitting import Recipe, fit_fixed, memformer
from memformer_lab.solvers.estimates import log_of
from memformer_lab.solvers.first_order import first_order_method
from memformer_lab.solvers.judging import classical_estimates, memformer_estimates, quadratics_of, query_errors
from memformer_lab.solvers.optimizers import conjugate_gradient
from memformer_lab.tasks.gaussian import GaussianTasks, TaskBatch
from memformer_lab.tasks.seeds import generator_for

_LAYERS = 4
_BATCHES = (1, 10, 50, 100, 1000)


def run(setting: Setting) -> Results:
    """Trains one model for each number of tasks and seed; the tasks stay the same in every step."""
    tasks = gaussian_tasks(NONISOTROPIC, setting.seed)
    recipe = Recipe(setting.pick(tiny=3, quick=1000, full=5000), learning_rate=0.03)
    count = setting.pick(tiny=500, quick=50_000, full=1_000_000)
    training, fresh, cgd, apart = [], [], [], 0.0
    fresh_cgd = 0.0
    for seed in setting.seeds:
        rows: tuple[list[float], list[float], list[float]] = ([], [], [])
        models = []
        for index, batch in enumerate(_BATCHES):
            fixed = tasks.tokens(batch, generator_for("training", seed, 1 + index), queries=1)
            model = memformer(seed, tasks.d, _LAYERS, rule="lfom")
            fit_fixed(model, fixed, recipe, seed)
            models.append(model)
            with torch.no_grad():
                rows[0].append(log_of(float(model.loss(fixed.z, fixed.target, context=fixed.context))))
            rows[1].append(log_of(_cgd_loss(fixed)))
        found = memformer_estimates(models, tasks, count, setting.seed)
        rows[2].extend(one[0].log_mean for one in found)
        training.append(rows[0])
        cgd.append(rows[1])
        fresh.append(rows[2])
        method = first_order_method(models[-1])
        assert method is not None
        apart = max(apart, _stand_alone_difference(models[-1], tasks, seed))
        if seed == setting.seeds[0]:
            fresh_cgd = classical_estimates(["conjugate_gradient"], tasks, _LAYERS, count, setting.seed)[-1]
    panel = Panel(
        "batches",
        f"LFOM with {_LAYERS} layers trained on B fixed tasks",
        "B",
        "ln mean squared error",
        (
            series("LFOM, training tasks", _BATCHES, training),
            series("LFOM, fresh tasks", _BATCHES, fresh),
            series(f"CGD, {_LAYERS} steps, the same training tasks", _BATCHES, cgd),
            series(f"CGD, {_LAYERS} steps, fresh tasks", _BATCHES, [fresh_cgd] * len(_BATCHES)),
        ),
        log_x=True,
    )
    name = "largest relative difference of the stand-alone optimiser's predictions from the network's"
    return Results((panel,), {name: apart})


def judge(results: Results) -> Sequence[Check]:
    """Better than CGD on its training tasks for small B; fresh tasks need a large B; the method stands alone."""
    panel = results["batches"]
    training, fresh = panel["LFOM, training tasks"], panel["LFOM, fresh tasks"]
    cgd, fresh_cgd = (panel[f"CGD, {_LAYERS} steps, {kind}"] for kind in ("the same training tasks", "fresh tasks"))
    checks = all_below("training loss is below CGD's on the same tasks, B = {}", training, cgd, _BATCHES[:2])
    checks += all_below("fresh loss is below CGD's, B = {}", fresh, fresh_cgd, _BATCHES, essential=False)
    apart = next(iter(results.numbers.values()))
    checks.append(at_most("the learned coefficients run alone give the network's predictions", apart, 1e-3))
    return checks


def find(results: Results) -> str:
    """Training and fresh losses by B."""
    panel = results["batches"]
    return (
        f"B = {', '.join(map(str, _BATCHES))}: training {panel['LFOM, training tasks'].shown()}; fresh "
        f"{panel['LFOM, fresh tasks'].shown()}; CGD on fresh tasks {panel.series[-1].mean(1):.2f}"
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
    return float((alone - network).norm() / network.norm())


EXPERIMENT = Experiment(
    number=4,
    name="small-batches",
    title="Few training tasks, and the learned optimiser on its own",
    claim="Trained on a small batch, an LFOM Memformer fits its training tasks far better than CGD does; its "
    "coefficients are an optimiser that can be run on its own.",
    source="Dutta & Sra, arXiv 2410.07263, Fig. 4",
    protocol="B tasks with one query each are drawn once and used in every step. Their loss is called training loss; "
    "the loss on fresh tasks is shown next to it, never mixed with it. CGD runs on the same tasks. The coefficients "
    "of the model with the largest B are run by lfom_solve on tokens of fresh tasks, in float64.",
    run=run,
    judge=judge,
    find=find,
)
