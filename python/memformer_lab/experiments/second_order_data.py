"""Where order shows in the data: covariances turned from prompt to prompt, short prompts, noise."""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import Generator, Tensor

from memformer_kernels.nn import Memformer
from memformer_lab.experiments.common import half_widths
from memformer_lab.experiments.e11_condition import CONDITIONS, conditioned_tasks
from memformer_lab.experiments.rows import rows_and_longer
from memformer_lab.experiments.second_order_depth import GDPP, NAMES, mean_and_median, order_recipe
from memformer_lab.experiments.sequence_runs import sequence_recipe
from memformer_lab.reports.curves import Series, series
from memformer_lab.reports.protocol import Setting
from memformer_lab.reports.results import Panel
from memformer_lab.runs.fitting import Recipe, fit_memformer, fit_on_lengths, fit_on_tasks, memformer
from memformer_lab.solvers.estimates import estimate
from memformer_lab.solvers.first_order import Draw
from memformer_lab.solvers.judging import Solver, memformer_estimates, network_errors, solver_errors, weight_errors
from memformer_lab.solvers.optimizers import OPTIMIZERS, ols, ridge
from memformer_lab.tasks.gaussian import GaussianTasks, TaskBatch
from memformer_lab.tasks.seeds import generator_for

D, N = 5, 20
"""Features and examples of everything here."""

PROMPTS = (1, 2, 3, 4, 5, 6, 8, 10, 12, 16, 20)
"""Examples known where sequence models are judged."""

NOISES = (0.0, 0.1, 0.5, 1.0)
TURNED_LAYERS = 4
FAR = 256
"""Iterations of gradient descent that a network of `TURNED_LAYERS` is compared with."""


def turned(condition: float, d: int, n: int) -> Draw:
    """Tasks of one spectrum, whose eigenvectors are drawn anew for every prompt; w* ~ N(0, Sigma^-1).

    No fixed preconditioner helps with them. The response's variance is d at every condition number.
    """
    tasks = conditioned_tasks(condition, d, n)

    def draw(batch: int, generator: Generator) -> TaskBatch:
        drawn = tasks.tokens(batch, generator)
        square = torch.randn(batch, d, d, generator=generator, device=generator.device, dtype=drawn.z.dtype)
        rotation, triangle = torch.linalg.qr(square)
        rotation = rotation * triangle.diagonal(dim1=1, dim2=2).sign()[:, None, :]
        z = drawn.z.clone()
        z[..., :-1] = drawn.z[..., :-1] @ rotation.mT
        weights = (rotation @ drawn.weights.unsqueeze(-1)).squeeze(-1)
        return TaskBatch(z, drawn.target, weights, drawn.context)

    return draw


def condition_panels(setting: Setting) -> tuple[Panel, Panel]:
    """GD++ on covariances turned from prompt to prompt, and the iterations that algorithms need."""
    count = setting.pick(tiny=100, quick=5_000, full=50_000)
    recipe = replace(order_recipe(setting, "block"), steps=setting.pick(tiny=3, quick=300, full=6_000))

    def judged(recipe: Recipe, seed: int) -> list[float]:
        found: list[float] = []
        for condition in CONDITIONS:
            model = memformer(seed, D, TURNED_LAYERS, rule="linear", structure="block")
            fit_memformer(model, turned(condition, D, N), recipe, seed)
            found += mean_and_median(estimate(network_errors([model], turned(condition, D, N)), count, setting.seed)[0])
        return found

    rows, longer = rows_and_longer(setting, recipe, judged)
    curves = [
        series(GDPP, CONDITIONS, [row[::2] for row in rows], longer=[row[::2] for row in longer]),
        series(f"{GDPP}, median", CONDITIONS, [row[1::2] for row in rows], longer=[row[1::2] for row in longer]),
    ]
    far = setting.pick(tiny=8, quick=FAR, full=FAR)
    for name, steps in (("conjugate_gradient", TURNED_LAYERS), ("iterative_newton", 12), ("gradient_descent", far)):
        estimates = []
        for condition in CONDITIONS:
            exact = replace(conditioned_tasks(condition, D, N), dtype=torch.float64)
            estimates += estimate(solver_errors(exact, [_last(name, steps)]), count, setting.seed)
        found = list(map(mean_and_median, estimates))
        shown, sampling = FAR if name == "gradient_descent" else steps, half_widths([estimates])
        curves.append(series(f"{NAMES[name]}, {shown}", CONDITIONS, [mean for mean, _ in found], sampling=sampling))
        if name == "conjugate_gradient":
            curves.append(series(f"{NAMES[name]}, {shown}, median", CONDITIONS, [median for _, median in found]))
    title = f"Covariances turned from prompt to prompt, d = {D}, n = {N}, {TURNED_LAYERS} layers, by condition number"
    panel = Panel("turned", title, "condition number", "ln squared error", tuple(curves), log_x=True)
    return panel, _iteration_panel(setting)


def _iteration_panel(setting: Setting) -> Panel:
    count, most = setting.pick(tiny=100, quick=300, full=1_000), setting.pick(tiny=20, quick=200, full=2_000)
    goal = math.log(D) + math.log(1e-2)
    curves = []
    for name in OPTIMIZERS:
        limit = setting.pick(tiny=5, quick=60, full=60) if name in ("conjugate_gradient", "iterative_newton") else most
        needed = []
        for condition in CONDITIONS:
            # Means alone: an interval for each of thousands of iterations would take longer than they do.
            exact = replace(conditioned_tasks(condition, D, N), dtype=torch.float64)
            drawn = exact.quadratics(count, generator_for("evaluation", setting.seed))
            weights = OPTIMIZERS[name](drawn.h.contiguous(), drawn.b.contiguous(), limit)
            errors = weight_errors(weights, drawn, exact.factor).mean(1).log().tolist()
            needed.append(float(next((k for k, one in enumerate(errors, 1) if one <= goal), limit)))
        curves.append(series(NAMES.get(name, name), CONDITIONS, needed))
    return Panel(
        "iterations",
        f"Iterations to 1% of the response's variance, at most {most}, of Newton and CGD 60",
        "condition number",
        "iterations",
        tuple(curves),
        log_x=True,
        log_y=True,
        digits=3,
    )


def _last(name: str, steps: int) -> Solver:
    return lambda h, b: OPTIMIZERS[name](h, b, steps)[-1:]


def prompt_curves(setting: Setting, label: str) -> list[Series]:
    """An LFOM trained on as many tasks as sequence models, at every length from d on; and OLS, exact from there on."""
    recipe = replace(sequence_recipe(setting), learning_rate=0.06, clip=0.01)
    places = [length for length in PROMPTS if length >= D + 1]
    lengths = [GaussianTasks.isotropic(D, n) for n in range(places[0], N + 1)]
    count = setting.pick(tiny=50, quick=2_000, full=20_000)

    def judged(recipe: Recipe, seed: int) -> list[float]:
        model = memformer(seed, D, TURNED_LAYERS, rule="lfom", structure="block")
        fit_on_lengths(model, lengths, recipe, seed)
        tasks = [GaussianTasks.isotropic(D, n) for n in places]
        return [memformer_estimates([model], one, count, setting.seed)[0][0].log_mean for one in tasks]

    rows, longer = rows_and_longer(setting, recipe, judged)
    return [series(label, places, rows, longer=longer), _least_norm(setting)]


def _least_norm(setting: Setting) -> Series:
    """The minimum-norm solution below d examples, where its error is known: (1 - n / d) d."""
    places = [length for length in PROMPTS if length < D]
    return series("OLS, minimum norm", places, [math.log(D - n) for n in places], reference=True)


def noise_panel(setting: Setting) -> Panel:
    """LFOM trained on noisy tasks against OLS and the ridge penalty sigma^2 / n, which is optimal for w* ~ N(0, I)."""
    count = setting.pick(tiny=100, quick=10_000, full=50_000)
    kinds = [GaussianTasks(D, N, (1.0,) * D, noise=sigma) for sigma in NOISES]
    recipe = Recipe(
        setting.pick(tiny=3, quick=800, full=8_000), setting.pick(tiny=8, quick=128, full=256), 0.06, 0.01, 20
    )

    def judged(recipe: Recipe, seed: int) -> list[float]:
        row = []
        for tasks in kinds:
            model: Memformer = memformer(seed, D, 3, rule="lfom", structure="block")
            fit_on_tasks(model, tasks, recipe, seed)
            row.append(memformer_estimates([model], tasks, count, setting.seed)[0][0].log_mean)
        return row

    rows, longer = rows_and_longer(setting, recipe, judged)
    curves = [series("LFOM, Bm free", NOISES, rows, longer=longer)]
    for label in ("OLS", "ridge, best penalty"):
        values = []
        for tasks in kinds[1:]:
            penalty = tasks.noise**2 / N

            def solve(h: Tensor, b: Tensor, label: str = label, penalty: float = penalty) -> Tensor:
                return (ols(h, b) if label == "OLS" else ridge(h, b, penalty)).unsqueeze(0)

            values.append(estimate(solver_errors(tasks, [solve]), count, setting.seed)[0].log_mean)
        curves.append(series(label, NOISES[1:], values))
    title = f"Noisy responses, d = {D}, 3 layers, fresh noiseless queries"
    return Panel("noise", title, "noise", "ln mean squared error", tuple(curves))
