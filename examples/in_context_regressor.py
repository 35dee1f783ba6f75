"""An in-context regressor inside a larger model, trained end to end: encoder -> Memformer -> head.

    python -m examples.in_context_regressor

A task is y = w . phi(x), with features phi that all tasks share and nobody tells the model, and w drawn again for every
task. The encoder must learn features in which a task is linear; the Memformer then solves the task's least squares in
its forward pass, and gradients reach the encoder through the tokens z. Beside it: the same Memformer on x itself, and
ridge regression on the true features, which knows phi.
"""

import argparse
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from examples.curves import RESULTS, draw
from memformer_kernels.nn import Memformer

INPUTS, FEATURES = 3, 6


class Regressor(nn.Module):
    """Predictions (B,) of the last response of tasks x (B, N, INPUTS), y (B, N), from the N - 1 before it."""

    def __init__(self, encoded: bool, layers: int) -> None:
        super().__init__()
        width = FEATURES if encoded else INPUTS
        self.encoder = (
            nn.Sequential(nn.Linear(INPUTS, 64), nn.GELU(), nn.Linear(64, 64), nn.GELU(), nn.Linear(64, width))
            if encoded
            else nn.Identity()
        )
        self.memformer = Memformer(d=width, layers=layers, rule="lfom")
        self.head = nn.Linear(1, 1)
        with torch.no_grad():
            self.head.weight.fill_(1.0)
            self.head.bias.zero_()

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        responses = torch.cat([y[:, :-1], torch.zeros_like(y[:, -1:])], 1)
        z = torch.cat([self.encoder(x), responses[..., None]], -1)
        made: Tensor = self.head(self.memformer.predict(z))[:, 0]
        return made


class Tasks:
    """y = w . phi(x) + noise: phi is a fixed random layer of sines, the same for all tasks of a seed."""

    def __init__(self, seed: int, examples: int) -> None:
        fixed = torch.Generator().manual_seed(seed)
        self.mix, self.phase = torch.randn(INPUTS, FEATURES, generator=fixed), torch.rand(FEATURES, generator=fixed)
        self.generator, self.examples = torch.Generator().manual_seed(seed + 1), examples

    def features(self, x: Tensor) -> Tensor:
        return 1.4 * torch.sin(x @ self.mix + 6.28 * self.phase)

    def draw(self, batch: int) -> tuple[Tensor, Tensor]:
        x = torch.randn(batch, self.examples + 1, INPUTS, generator=self.generator)
        w = torch.randn(batch, FEATURES, 1, generator=self.generator)
        noise = 0.1 * torch.randn(batch, self.examples + 1, generator=self.generator)
        return x, (self.features(x) @ w)[..., 0] + noise


def ridge(tasks: Tasks, x: Tensor, y: Tensor) -> Tensor:
    """Predictions of one who knows phi: ridge regression with the noise's variance."""
    known = tasks.features(x)
    gram = known[:, :-1].mT @ known[:, :-1] + 0.01 * torch.eye(FEATURES)
    w = torch.linalg.solve(gram, known[:, :-1].mT @ y[:, :-1, None])
    made: Tensor = (known[:, -1:] @ w)[:, 0, 0]
    return made


def train(encoded: bool, settings: argparse.Namespace) -> tuple[list[int], list[float]]:
    """Steps, and the mean squared errors on fresh tasks at them."""
    torch.manual_seed(settings.seed)
    model, tasks = Regressor(encoded, settings.layers), Tasks(settings.seed, settings.examples)
    x, y = Tasks(settings.seed, settings.examples).draw(4096)
    tasks.generator.manual_seed(settings.seed + 2)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, max(1, settings.steps))
    steps: list[int] = []
    errors: list[float] = []
    for step in range(settings.steps + 1):
        if step % max(1, settings.steps // 30) == 0 or step == settings.steps:
            with torch.no_grad():
                steps.append(step)
                errors.append((model(x, y) - y[:, -1]).square().mean().item())
        if step < settings.steps:
            inputs, responses = tasks.draw(settings.batch)
            loss = (model(inputs, responses) - responses[:, -1]).square().mean()
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
    return steps, errors


def main(arguments: Sequence[str] | None = None) -> dict[str, list[float]]:
    """Trains both models and draws their curves; the errors on fresh tasks by model."""
    parser = argparse.ArgumentParser(description="An in-context regressor inside a larger model.")
    parser.add_argument("--steps", type=int, default=3000, help="optimiser steps of each model")
    parser.add_argument("--batch", type=int, default=256, help="tasks a step")
    parser.add_argument("--examples", type=int, default=40, help="labelled examples of a task")
    parser.add_argument("--layers", type=int, default=4, help="layers of the Memformer: steps of its optimiser")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--figure", type=Path, default=RESULTS / "in_context_regressor.png")
    settings = parser.parse_args(arguments)
    curves = {}
    for name, encoded in (("Memformer on x itself", False), ("encoder, Memformer, head", True)):
        begun = time.perf_counter()
        steps, errors = train(encoded, settings)
        seconds = time.perf_counter() - begun
        print(f"{name}: mean squared error {errors[-1]:.3f} after {settings.steps} steps, {seconds:.0f} s")
        curves[name] = steps, errors
    tasks = Tasks(settings.seed, settings.examples)
    x, y = tasks.draw(4096)
    floor = (ridge(tasks, x, y) - y[:, -1]).square().mean().item()
    print(f"ridge regression on the true features: {floor:.3f}; the responses' variance: {y[:, -1].var().item():.3f}")
    curves["ridge on the true features"] = [0, settings.steps], [floor, floor]
    draw(settings.figure, curves, "y = w . phi(x), a new w for every task", "mean squared error", log=True)
    print(f"figure: {settings.figure}")
    return {name: errors for name, (_, errors) in curves.items()}


if __name__ == "__main__":
    main()
