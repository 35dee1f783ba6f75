"""`python -m benchmarks.gpu.small_run`: every kernel once on a few hundred tasks, for tools that watch memory."""

import torch
import typer
from torch import Tensor

from memformer_kernels import (
    Adam,
    FixedTasks,
    GaussianStatistics,
    TrainState,
    context_gram,
    lfom_solve,
    memformer_layer,
    memformer_loss,
    memformer_stack,
    train_steps,
)
from memformer_kernels.calls.checks import Backend
from memformer_kernels.training.steps import Backend as TrainingBackend

TASKS = 333
"""Not a multiple of any thread block, so that tails run too."""


def run(device: torch.device, backend: Backend, tasks: int = TASKS) -> int:
    """Forward and backward of every operation, structure and space; returns how many gradients were made."""
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int, scale: float = 1.0) -> Tensor:
        drawn = torch.randn(shape, generator=generator, device=generator.device, dtype=torch.float32)
        return (scale * drawn).to(device).requires_grad_()

    made = 0

    def pull_back(value: Tensor, *leaves: Tensor | None) -> None:
        nonlocal made
        made += len(torch.autograd.grad(value.square().sum(), [x for x in leaves if x is not None]))

    for width, tokens in ((2, 5), (6, 21), (9, 40), (16, 33)):
        d = width - 1
        z, target = draw(tasks, tokens, width, scale=0.3), draw(tasks, 1)
        for block in (False, True):
            p = draw(3, 2, d, d, scale=0.1) if block else None
            for rows in (1, tokens):
                q, gamma = draw(3, 2, d, d, scale=0.1), draw(3, 3, 1, rows, width, scale=0.3)
                pull_back(memformer_loss(z, target, q, p, gamma, backend=backend), q, p, gamma)
                pull_back(memformer_loss(z, target, q, p, gamma, backend=backend), z, target)
                pull_back(memformer_stack(z, q, p, gamma, backend=backend), z, q, p, gamma)
        past, weights = draw(tasks, 1, tokens, width), draw(2, 1, 1, width)
        matrix = draw(1, width, width, scale=0.1)
        moved, register = memformer_layer(z, matrix, matrix, [past], weights, backend=backend)
        pull_back(moved + register[:, 0], z, matrix, past, weights)
        h, b, a = draw(tasks, d, d, scale=0.3), draw(tasks, d), draw(3, d, d, scale=0.3)
        pull_back(lfom_solve(h, b, a, backend=backend), h, b, a)
        pull_back(context_gram(z, tokens - 1), z)
    return made


def train(device: torch.device, backend: TrainingBackend) -> int:
    """Two steps of two models with every kind of task, in one turn of thread blocks and in many; returns the steps."""
    generator = torch.Generator().manual_seed(0)
    z, target = (
        torch.randn(shape, generator=generator, device=generator.device, dtype=torch.float32).to(device)
        for shape in ((TASKS, 13, 4), (TASKS, 1))
    )
    taken = 0
    for sampler in (GaussianStatistics(5, 20, TASKS), GaussianStatistics(3, 9, 9 * TASKS), FixedTasks(z, target, 12)):
        q = (-0.1 * torch.eye(sampler.d, device="cpu", dtype=torch.float32)).expand(3, 1, -1, -1).to(device)
        state = TrainState.of([{"q": q}] * 2)
        taken += len(train_steps(state, sampler, 2, optimizer=Adam(0.01, clip=1.0), backend=backend))
    return taken


def main() -> None:
    """Run on the GPU with the CUDA library."""
    made = run(torch.device("cuda"), "cuda")
    train(torch.device("cuda"), "cuda")
    torch.cuda.synchronize()
    typer.echo(f"{made} gradients")


if __name__ == "__main__":
    typer.run(main)
