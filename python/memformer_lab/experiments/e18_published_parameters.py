"""Experiment 18: the authors' parameter layouts, loaded into our modules."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import get_args

import torch
from torch import Tensor

from memformer_lab.reports.curves import series
from memformer_lab.reports.protocol import Experiment, Setting
from memformer_lab.reports.results import Panel, Results
from memformer_lab.reports.verdicts import Check, at_most
from memformer_lab.solvers.published import PublishedRule, load_published
from memformer_lab.tasks.gaussian import GaussianTasks
from memformer_lab.tasks.seeds import generator_for

_D, _N, _LAYERS = 5, 20, 4
_RULES: tuple[PublishedRule, ...] = get_args(PublishedRule)


def literal_forward(z: Tensor, arrays: Mapping[str, Tensor], rule: PublishedRule) -> Tensor:
    """Z_L by the published formulas, with the n-by-n matrix formed and the query masked out: the slow reference."""
    layers, heads, _, d, _ = arrays["allparam"].shape
    tokens = z.shape[1]
    mask = torch.ones(tokens, dtype=z.dtype, device=z.device)
    mask[-1] = 0
    registers: list[Tensor] = []
    for layer in range(layers):
        attention = torch.zeros_like(z)
        for head in range(heads):
            p, q = z.new_zeros(d + 1, d + 1), z.new_zeros(d + 1, d + 1)
            p[:d, :d], p[d, d] = arrays["allparam"][layer, head, 0], 1.0
            q[:d, :d] = arrays["allparam"][layer, head, 1]
            attention = attention + (z @ q @ z.mT) * mask @ (z @ p.mT) / (tokens - 1)
        if rule == "cgd":
            if registers:
                attention = attention + arrays["gamma"][layer] * registers[-1]
            z = z + arrays["alpha"][layer] * attention
        registers.append(attention)
        if rule == "linear":
            z = z + attention
        elif rule == "sum":
            z = z + sum((arrays["alpha"][j, 0] * registers[j] for j in range(layer + 1)), torch.zeros_like(z))
        elif rule == "residual":
            z = z + sum((arrays["alpha"][j, 0] * registers[j] for j in range(layer)), attention)
    return z


def random_arrays(rule: PublishedRule, seed: int) -> dict[str, Tensor]:
    """Parameters of a published layout around a gradient step, float64."""
    generator = generator_for("initialisation", seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64, device=generator.device)

    matrices = 0.1 * normal(_LAYERS, 1, 2, _D, _D)
    matrices[:, :, 1] -= 0.3 * torch.eye(_D, dtype=torch.float64, device=matrices.device)
    arrays = {"allparam": matrices}
    if rule == "cgd":
        arrays |= {"alpha": 1 + 0.2 * normal(_LAYERS), "gamma": 0.3 * normal(_LAYERS)}
    elif rule != "linear":
        arrays["alpha"] = 0.3 * normal(_LAYERS, 1, _N + 1, _D + 1)
    return arrays


def run(setting: Setting) -> Results:
    """Compares loaded modules with the literal formulas, on tokens and on predictions."""
    batch = setting.pick(tiny=8, quick=200, full=2000)
    tasks = GaussianTasks.isotropic(_D, _N, dtype=torch.float64)
    rows = []
    for seed in setting.seeds:
        row = []
        for rule in _RULES:
            arrays = random_arrays(rule, seed)
            z = tasks.tokens(batch, generator_for("evaluation", seed)).z
            expected = literal_forward(z, arrays, rule)
            with torch.no_grad():
                model = load_published(arrays, rule)
                found, predicted = model(z), model.predict(z)[:, 0]
            apart = (found - expected).norm() / expected.norm()
            row.append(max(float(apart), float((predicted + expected[:, -1, -1]).norm() / expected[:, -1, -1].norm())))
        rows.append(row)
    panel = Panel(
        "layouts",
        "Relative difference of loaded modules from the published formulas, float64",
        "rule",
        "relative difference",
        (series("module against literal form", range(len(_RULES)), rows),),
        log_y=True,
        categories=_RULES,
        digits=2,
    )
    return Results((panel,))


def judge(results: Results) -> Sequence[Check]:
    """To rounding, for every layout."""
    curve = results["layouts"].series[0]
    return [at_most(f"{rule}: relative difference", curve.mean(place), 1e-10) for place, rule in enumerate(_RULES)]


def find(results: Results) -> str:
    """The largest difference of any layout."""
    curve = results["layouts"].series[0]
    return f"largest relative difference {max(map(curve.mean, curve.x)):.1g} over {len(curve.x)} layouts"


EXPERIMENT = Experiment(
    number=18,
    name="published",
    title="Published parameter layouts",
    claim="The authors' parameters (allparam, alpha, gamma) load into these modules and compute the same.",
    source="notebooks of Dutta & Sra, arXiv 2410.07263",
    protocol="The notebooks publish code and no trained parameters that this run could read, so random parameters in "
    "each of their four layouts are run through the published formulas, with the n-by-n matrix formed, and through "
    "loaded modules. The layouts are described in memformer_lab.solvers.published; the project's tests load "
    "parameters and outputs that the published code made.",
    run=run,
    judge=judge,
    find=find,
)
