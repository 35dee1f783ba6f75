"""Experiment 6: a mixture of experts whose gates adapt at test time."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from memformer_kernels import memformer_loss, memformer_predict
from memformer_kernels.nn import Memformer
from memformer_lab.reports.curves import series
from memformer_lab.reports.protocol import Experiment, Setting
from memformer_lab.reports.results import Panel, Results
from memformer_lab.reports.verdicts import Check, at_most
from memformer_lab.runs.fitting import Recipe, fit_on_tasks, memformer
from memformer_lab.solvers.judging import quadratics_of, query_errors
from memformer_lab.solvers.optimizers import conjugate_gradient
from memformer_lab.tasks.gaussian import GaussianTasks, TaskBatch
from memformer_lab.tasks.seeds import generator_for

_D, _N, _LAYERS = 5, 20, 3
_EXPERTS = (1.0, 2.0, 3.0)
VARIANCES = (0.5, 1.0, 1.5, 2.0, 3.0, 4.0)
MIXTURES = ("means ±0.5", "means ±1", "variances 0.5 and 3", "means ±1, variances 0.5 and 3")
_METHODS = ("adapted gates", "best single expert", "oracle gates", "equal gates", "CGD")


@dataclass(frozen=True)
class Mixture:
    """x from two Gaussians with means +-shift along all axes and two variances, equally likely; w* ~ N(0, I)."""

    shift: float
    variances: tuple[float, float]

    def tokens(self, batch: int, generator: Generator, queries: int = 1) -> TaskBatch:
        """As `GaussianTasks.tokens`."""
        rows = _N + queries
        side = torch.randint(
            2, (batch, rows, 1), generator=generator, device=generator.device, dtype=torch.int64
        ).float()
        scale = (side * self.variances[0] + (1 - side) * self.variances[1]).sqrt()
        shift = self.shift * (2 * side - 1)
        x = shift + scale * torch.randn(
            batch, rows, _D, generator=generator, device=generator.device, dtype=torch.float32
        )
        weights = torch.randn(batch, _D, generator=generator, device=generator.device, dtype=torch.float32)
        z = torch.cat([x, x @ weights.unsqueeze(-1)], dim=-1)
        target = z[:, _N:, -1].clone()
        z[:, _N:, -1] = 0
        return TaskBatch(z=z, target=target, weights=weights, context=_N)


def run(setting: Setting) -> Results:
    """Trains the experts, adapts gates on some tasks of each distribution and scores on others."""
    steps = setting.pick(tiny=3, quick=800, full=4000)
    adapting, scored = setting.pick(tiny=16, quick=1024, full=4096), setting.pick(tiny=50, quick=5000, full=30_000)
    updates = setting.pick(tiny=2, quick=40, full=200)
    shifted = [Mixture(0.5, (1, 1)), Mixture(1, (1, 1)), Mixture(0, (0.5, 3)), Mixture(1, (0.5, 3))]
    groups: dict[str, Sequence[GaussianTasks | Mixture]] = {
        "variances": [_of_variance(variance) for variance in VARIANCES],
        "mixtures": shifted,
    }
    rows: dict[str, dict[str, list[list[float]]]] = {group: {name: [] for name in _METHODS} for group in groups}
    for seed in setting.seeds:
        network = _mixture_network([_expert(seed, variance, steps, setting) for variance in _EXPERTS])
        for group, samplers in groups.items():
            found = [_compare(network, sampler, adapting, scored, updates, seed) for sampler in samplers]
            for name in _METHODS:
                rows[group][name].append([one[name] for one in found])
    panels = []
    for group, shown in (
        ("variances", "the variance of x"),
        ("mixtures", "Gaussian mixtures of shifted means and variances"),
    ):
        places: Sequence[float] = VARIANCES if group == "variances" else range(len(MIXTURES))
        panels.append(
            Panel(
                group,
                f"Experts for variances 1, 2, 3 under {shown}, fresh tasks",
                "variance" if group == "variances" else "covariates",
                "ln mean squared error",
                tuple(series(name, places, rows[group][name]) for name in _METHODS),
                categories=() if group == "variances" else MIXTURES,
            )
        )
    return Results(tuple(panels), {"tasks adapted on": float(adapting), "tasks scored on": float(scored)})


def judge(results: Results) -> Sequence[Check]:
    """Adapted gates against the best single expert everywhere, and against CGD and the oracle."""
    checks = []
    for group in ("variances", "mixtures"):
        panel = results[group]
        adapted = panel["adapted gates"]
        for place in adapted.x:
            name = f"variance {place:g}" if group == "variances" else panel.categories[int(place)]
            unseen = group == "mixtures" or place not in _EXPERTS
            single, oracle = panel["best single expert"].mean(place), panel["oracle gates"].mean(place)
            checks.append(
                at_most(
                    f"{name}: adapted gates are no worse than the best single expert",
                    adapted.mean(place),
                    single,
                    0.05,
                    essential=unseen,
                )
            )
            checks.append(
                at_most(f"{name}: within 0.1 of the oracle", adapted.mean(place), oracle, 0.1, essential=False)
            )
            checks.append(at_most(f"{name}: below CGD", adapted.mean(place), panel["CGD"].mean(place), essential=False))
    return checks


def find(results: Results) -> str:
    """Gains of the adapted gates, averaged over distributions."""
    parts = []
    for group in ("variances", "mixtures"):
        panel = results[group]
        means = {name: sum(map(panel[name].mean, panel[name].x)) / len(panel[name].x) for name in _METHODS}
        parts.append(f"{group}: " + ", ".join(f"{name} {value:.2f}" for name, value in means.items()))
    return f"means over distributions; {'; '.join(parts)}"


def _of_variance(variance: float) -> GaussianTasks:
    return GaussianTasks(_D, _N, (math.sqrt(variance),) * _D)


def _expert(seed: int, variance: float, steps: int, setting: Setting) -> Memformer:
    tasks = _of_variance(variance)
    model = memformer(seed, _D, _LAYERS, rule="lfom_residual")
    with torch.no_grad():
        model.q.div_(variance)
    recipe = Recipe(steps, setting.pick(tiny=8, quick=256, full=512), 0.1 / variance)
    fit_on_tasks(model, tasks, recipe, seed)
    return model


def _mixture_network(experts: Sequence[Memformer]) -> dict[str, Tensor]:
    """One head an expert, with its own registers and Gamma; only the gates are free at test time."""
    gammas = []
    for expert in experts:
        gamma = expert.stack_arguments()["gamma"]
        assert gamma is not None
        gammas.append(gamma.detach())
    return {"q": torch.cat([expert.q.detach() for expert in experts], dim=1), "gamma": torch.cat(gammas, dim=2)}


def _compare(
    network: dict[str, Tensor], sampler: GaussianTasks | Mixture, adapting: int, scored: int, updates: int, seed: int
) -> dict[str, float]:
    adapt = sampler.tokens(adapting, generator_for("training", seed, 1), queries=1)
    score = sampler.tokens(scored, generator_for("evaluation", seed), queries=4)
    single = [torch.eye(len(_EXPERTS), device="cpu", dtype=torch.float32)[index] for index in range(len(_EXPERTS))]
    by_expert = [_loss(network, gate, adapt) for gate in single]
    best = single[by_expert.index(min(by_expert))]
    gates = {
        "adapted gates": _adapt(network, best, adapt, updates),
        "best single expert": best,
        "oracle gates": _adapt(network, best, _first(score, 4096), updates),
        "equal gates": torch.full((len(_EXPERTS),), 1 / len(_EXPERTS), device="cpu", dtype=torch.float32),
    }
    found = {name: math.log(_loss(network, gate, score)) for name, gate in gates.items()}
    return found | {"CGD": _cgd(score)}


def _first(batch: TaskBatch, count: int) -> TaskBatch:
    return TaskBatch(batch.z[:count], batch.target[:count], batch.weights[:count], batch.context)


def _adapt(network: dict[str, Tensor], start: Tensor, batch: TaskBatch, updates: int) -> Tensor:
    """Gates for one kind of task by Adam from the best expert alone; the best gates on these tasks are kept."""
    gate = start.clone().requires_grad_()
    optimizer = torch.optim.Adam([gate], lr=0.05)
    best, least = start, math.inf
    for _ in range(updates):
        loss = memformer_loss(batch.z, batch.target, network["q"], None, network["gamma"], None, gate, context=_N)
        value = loss.item()
        if value < least:
            best, least = gate.detach().clone(), value
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        optimizer.step()
    return best


def _loss(network: dict[str, Tensor], gate: Tensor, batch: TaskBatch) -> float:
    with torch.no_grad():
        predicted = memformer_predict(batch.z, network["q"], None, network["gamma"], None, gate, context=_N)
    return float((predicted - batch.target).double().square().mean())


def _cgd(batch: TaskBatch) -> float:
    weights = conjugate_gradient(*quadratics_of(batch.z, _N), _LAYERS)[-1]
    return math.log(float(query_errors(weights, batch.z, batch.target).double().mean()))


EXPERIMENT = Experiment(
    number=6,
    name="experts",
    title="Mixture of experts with gates adapted at test time",
    claim="Heads trained on different variances and gated at test time adapt to distributions that no head was "
    "trained on.",
    source="Dutta & Sra, arXiv 2410.07263, Sec. 4 (mixture of experts)",
    protocol="Three response-only experts, trained on variances 1, 2, 3 with w* ~ N(0, I), become three heads. Gates "
    "are fitted on labelled tasks of the new distribution and scored on other tasks of it; the best single expert is "
    "chosen on the same adaptation tasks. Oracle gates are fitted on part of the scored tasks and only bound what "
    "gates can do. The mixture has three times the parameters of an expert.",
    run=run,
    judge=judge,
    find=find,
)
