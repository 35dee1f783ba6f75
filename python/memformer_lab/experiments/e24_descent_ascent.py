"""Experiment 24: stacks of gated linear layers trained on steps of gradient descent ascent."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Generator, Tensor, nn

from memformer_lab.experiments.common import floored_log
from memformer_lab.experiments.rows import rows_and_longer
from memformer_lab.reports.curves import Series, series
from memformer_lab.reports.protocol import Experiment, Setting
from memformer_lab.reports.results import Panel, Results
from memformer_lab.reports.verdicts import Check, at_most, below
from memformer_lab.runs.fitting import Recipe, fit, seeded

_LAYERS, _RATE = 5, 0.1
_EXACT = math.log(1e-12)
_ONE, _MANY = "one layer, one step", f"{_LAYERS} layers, as many steps"
_GAME, _PUBLISHED = "gradient descent ascent", "the published target"
_APART = "ln mean squared difference of the published target from gradient descent ascent, one step"

Matrix = NDArray[np.float64]


def step(published: bool) -> Matrix:
    """(2, 2): one step on f = x^2 / 2 - y^2 / 2 + x y, of (x, y).

    x goes down its gradient x + y and y goes up its own, x - y. The published target adds y - x to y, which goes down.
    """
    gradients = np.array([[1.0, 1.0], [1.0, -1.0]])
    signs = np.array([[-1.0], [-1.0 if published else 1.0]])
    moved: Matrix = np.eye(2) + _RATE * signs * gradients
    return moved


class GatedLayers(nn.Module):
    """z + alpha (P z) * (1, -1), once a layer, of pairs z: (B, 2) float64. A layer reads its own token alone.

    Args:
        layers: layers.
    """

    def __init__(self, layers: int) -> None:
        super().__init__()
        self.p = nn.Parameter(1e-3 * torch.randn(layers, 2, 2, device="cpu", dtype=torch.float64))
        self.alpha = nn.Parameter(torch.zeros(layers, device="cpu", dtype=torch.float64))

    def forward(self, z: Tensor) -> list[Tensor]:
        """The pairs after every layer."""
        gate = z.new_tensor([1.0, -1.0])
        found = []
        for p, alpha in zip(self.p, self.alpha, strict=True):
            z = z + alpha * (z @ p.mT) * gate
            found.append(z)
        return found


def run(setting: Setting) -> Results:
    """Trains one layer and five on either target, as published: every layer on its own step."""
    recipe = Recipe(
        setting.pick(tiny=20, quick=600, full=1_800),
        setting.pick(tiny=64, quick=1_024, full=8_192),
        0.02,
    )
    curves: dict[str, list[Series]] = {_ONE: [], _MANY: []}
    for label, published in ((_GAME, False), (_PUBLISHED, True)):
        for name, layers in ((_ONE, 1), (_MANY, _LAYERS)):
            rows, longer = rows_and_longer(setting, recipe, partial(_errors, layers, published))
            curves[name].append(series(label, range(1, layers + 1), rows, longer=longer))
    panels = tuple(
        Panel(
            key,
            f"{name[0].upper()}{name[1:]}: error of every layer against its step",
            "steps",
            "ln mean squared error",
            tuple(curves[name]),
            digits=1,
        )
        for key, name in (("one", _ONE), ("many", _MANY))
    )
    apart = step(published=True) - step(published=False)
    return Results(panels, {_APART: math.log(float(np.square(apart).sum()) / 2)})


def _errors(layers: int, published: bool, recipe: Recipe, seed: int) -> list[float]:
    """ln mean squared errors of every layer of a trained stack, for z ~ N(0, I), in expectation."""
    target = torch.from_numpy(step(published))
    model = seeded(lambda: GatedLayers(layers), seed)

    def loss(generator: Generator) -> Tensor:
        z = torch.randn(recipe.batch, 2, generator=generator, dtype=torch.float64, device=generator.device)
        total, wanted = z.new_zeros(()), z
        for found in model(z):
            wanted = wanted @ target.mT
            total = total + (found - wanted).square().mean()
        return total / layers

    fit(model, loss, recipe, seed)
    identity = torch.eye(2, dtype=torch.float64, device="cpu")
    errors, wanted = [], identity
    with torch.no_grad():
        for found in model(identity):
            wanted = wanted @ target.mT
            errors.append(floored_log(float((found - wanted).square().sum()) / 2, torch.float64))
    return errors


def judge(results: Results) -> Sequence[Check]:
    """Every layer is its step, to an error of 1e-12, on the target that is gradient descent ascent."""
    one, many = results["one"], results["many"]
    checks = [below("one layer: ln error is at most that of 1e-12", one[_GAME], _EXACT, 1.0, part=_ONE)]
    name = "step {:g} of the stack: ln error is at most that of 1e-12"
    checks += [below(name.format(x), many[_GAME], _EXACT, x, part=_MANY) for x in many[_GAME].x]
    name = "step {:g} of the stack trained on the published target: ln error is at most that of 1e-12"
    checks += [below(name.format(x), many[_PUBLISHED], _EXACT, x, essential=False) for x in many[_PUBLISHED].x]
    name = "the published target is gradient descent ascent, to 1e-12"
    return [*checks, at_most(name, results.numbers[_APART], _EXACT, essential=False)]


def find(results: Results) -> str:
    """The last step's error, and how far the published target is from the game's."""
    many, last = results["many"], float(_LAYERS)
    return (
        f"{_LAYERS} layers come within a mean squared error of {math.exp(many[_GAME].mean(last)):.0e} of {_LAYERS} "
        f"steps of gradient descent ascent, and of {math.exp(many[_PUBLISHED].mean(last)):.0e} of the published "
        f"target, which is not that: its mean squared difference from it is {math.exp(results.numbers[_APART]):.2g} "
        "after one step."
    )


EXPERIMENT = Experiment(
    number=24,
    name="descent-ascent",
    title="Gradient descent ascent by gated layers",
    claim="A linear layer with the gate (1, -1) learns a step of simultaneous gradient descent ascent on a quadratic "
    "game, and a stack of them as many steps as it has layers.",
    source="programs in the authors' repository of Dutta & Sra, arXiv 2410.07263",
    protocol=f"The game is x^2 / 2 - y^2 / 2 + x y of two numbers, with steps of {_RATE}; layers, start, auxiliary "
    "losses, batches, rate and number of steps are those of the published program, but for a rate that falls to 0 "
    "and gradients clipped to norm 1. The published target takes y - x for the gradient of y and adds it, so that y "
    "goes down and not up; the same layers are trained on it and on gradient descent ascent, which decides. A layer "
    "reads one token and no context: it is a (2, 2) matrix, and that it can be fitted to another one says nothing of "
    "learning in context. Errors are expectations over N(0, I).",
    asks="games that differ from prompt to prompt, which a layer without a context cannot know",
    minutes=5,
    run=run,
    judge=judge,
    find=find,
)
