"""Experiment 18: the authors' parameter layouts, loaded into our modules."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from memformer_lab.experiments.common import relative_difference, worst
from memformer_lab.reports.curves import series
from memformer_lab.reports.protocol import Experiment, Setting
from memformer_lab.reports.results import Panel, Results
from memformer_lab.reports.verdicts import Check, at_least, at_most
from memformer_lab.solvers.published import LAYOUTS, PublishedRule, load_published
from memformer_lab.tasks.gaussian import GaussianTasks
from memformer_lab.tasks.seeds import generator_for

_D, _N, _LAYERS = 5, 20, 4
_RULES: tuple[PublishedRule, ...] = tuple(LAYOUTS)
_HEADS = {"experts": 3}
_MISREAD = "scaled_cgd read as cgd, its beta dropped"


def literal_forward(z: Tensor, arrays: Mapping[str, Tensor], rule: PublishedRule) -> Tensor:
    """Z_L by the published formulas, with the n-by-n matrix formed and the query masked out: the slow reference."""
    layers, heads = arrays["allparam"].shape[:2]
    kept: list[Tensor] = []
    for layer in range(layers):
        by_head = torch.stack([_attention(z, *arrays["allparam"][layer, head]) for head in range(heads)])
        if rule == "experts":
            past = sum((arrays["gamma"][j][:, 0, None] * kept[j] for j in range(layer)), torch.zeros_like(by_head))
            z = z + (arrays["gate"][:, None, None, None] * (by_head + past)).sum(0)
            kept.append(by_head)
            continue
        attention = by_head.sum(0)
        if rule in ("cgd", "scaled_cgd", "recursive"):
            last = kept[-1] if kept else torch.zeros_like(z)
            scale, kept_share = (arrays["gamma"], arrays["beta"]) if rule == "scaled_cgd" else (None, arrays["gamma"])
            attention = (attention if scale is None else scale[layer] * attention) + kept_share[layer] * last
            z = z + arrays["alpha"][layer] * attention
        kept.append(attention)
        if rule == "linear":
            z = z + attention
        elif rule == "sum":
            z = z + sum((arrays["alpha"][j, 0] * kept[j] for j in range(layer + 1)), torch.zeros_like(z))
        elif rule == "residual":
            z = z + sum((arrays["alpha"][j, 0] * kept[j] for j in range(layer)), attention)
    return z


def random_arrays(rule: PublishedRule, seed: int) -> dict[str, Tensor]:
    """Parameters of a published layout around a gradient step, float64."""
    generator = generator_for("initialisation", seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64, device=generator.device)

    heads = _HEADS.get(rule, 1)
    matrices = 0.1 * normal(_LAYERS, heads, 2, _D, _D)
    matrices[:, :, 1] -= 0.3 * torch.eye(_D, dtype=torch.float64, device=matrices.device)
    sizes = {"L": _LAYERS, "H": heads, "1": 1, "N": _N + 1, "D": _D + 1}
    arrays = {"allparam": matrices}
    for name, letters in LAYOUTS[rule].arrays.items():
        arrays[name] = 0.3 * normal(*(sizes[letter] for letter in letters))
        if letters == ("L",) and (name == "alpha" or rule == "scaled_cgd"):
            arrays[name] += 1
    if rule == "experts":
        arrays["gate"] += 1 / heads
    return arrays


def run(setting: Setting) -> Results:
    """Compares loaded modules with the literal formulas, on tokens and on predictions."""
    batch = setting.pick(tiny=8, quick=200, full=2000)
    tasks = GaussianTasks.isotropic(_D, _N, dtype=torch.float64)
    rows, misread = [], []
    for seed in setting.seeds:
        row = []
        z = tasks.tokens(batch, generator_for("evaluation", seed)).z
        for rule in _RULES:
            arrays = random_arrays(rule, seed)
            expected = literal_forward(z, arrays, rule)
            with torch.no_grad():
                model = load_published(arrays, rule)
                found, predicted = model(z), model.predict(z)[:, 0]
            row.append(max(relative_difference(found, expected), relative_difference(-predicted, expected[:, -1, -1])))
            if rule == "scaled_cgd":
                del arrays["beta"]
                with torch.no_grad():
                    misread.append(
                        relative_difference(-load_published(arrays, "cgd").predict(z)[:, 0], expected[:, -1, -1])
                    )
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
    return Results((panel,), {_MISREAD: min(misread)})


def judge(results: Results) -> Sequence[Check]:
    """To rounding, every layout a part of its own; a layout read by another's rule is far off."""
    curve = results["layouts"].series[0]
    largest = {place: worst(curve.column(place)) for place in curve.x}
    checks = [
        at_most(f"{rule}: relative difference, the worst seed", largest[place], 1e-10, part=f"the {rule} layout")
        for place, rule in enumerate(_RULES)
    ]
    name = f"{_MISREAD}: least relative difference"
    return [*checks, at_least(name, results.numbers[_MISREAD], 0.01, essential=False)]


def find(results: Results) -> str:
    """The largest difference of any layout, and what reading one as another does."""
    curve = results["layouts"].series[0]
    largest = worst(value for x in curve.x for value in curve.column(x))
    return (
        f"The {len(curve.x)} layouts load and are within {largest:.0e} of the published formulas; alpha, beta and "
        f"gamma read as alpha and gamma would be off by at least {100 * results.numbers[_MISREAD]:.0f}%"
    )


def _attention(z: Tensor, p: Tensor, q: Tensor) -> Tensor:
    """(B, N, D), of one head with the blocks p and q."""
    tokens, d = z.shape[1], z.shape[2] - 1
    mask = torch.ones(tokens, dtype=z.dtype, device=z.device)
    mask[-1] = 0
    wide_p, wide_q = z.new_zeros(d + 1, d + 1), z.new_zeros(d + 1, d + 1)
    wide_p[:d, :d], wide_p[d, d] = p, 1.0
    wide_q[:d, :d] = q
    return (z @ wide_q @ z.mT) * mask @ (z @ wide_p.mT) / (tokens - 1)


EXPERIMENT = Experiment(
    number=18,
    name="published",
    title="Published parameter layouts",
    claim="Parameters in each of the seven layouts of the authors' notebooks load into these modules and compute the "
    "same.",
    source="notebooks of Dutta & Sra, arXiv 2410.07263",
    protocol="The notebooks publish code and no trained parameters that this run could read, so random parameters in "
    "each layout are run through the published formulas, with the n-by-n matrix formed, and through loaded modules. "
    "The layouts are described in memformer_lab.solvers.published, and arrays that a rule does not read are refused. "
    "The project's tests write the formulas out once more, and load parameters and outputs that the published code "
    "made.",
    asks="trained parameters from the authors, of which none are published",
    minutes=1,
    run=run,
    judge=judge,
    find=find,
)
