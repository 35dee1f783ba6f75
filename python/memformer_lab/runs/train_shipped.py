"""Trains the networks that `MemformerRegressor` uses: `python -m memformer_lab.runs.train_shipped [file]`.

Every network is trained on `StandardisedTasks` alone. All of them take some minutes.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from safetensors.torch import save
from torch import Tensor

from memformer_lab.runs.files import write_atomically
from memformer_lab.runs.fitting import Recipe, fit_memformer
from memformer_lab.solvers.shipped import FILE, LARGEST_D, RATIOS, blank, key
from memformer_lab.tasks.gaussian import TaskBatch
from memformer_lab.tasks.standardised import StandardisedTasks

STEPS = 800
QUERIES = 8
_BATCH = {4: 64, 16: 32, 64: 16}


def train_network(d: int, ratio: int, steps: int) -> dict[str, Tensor]:
    """The parameters for d features and `ratio` rows a feature, by name in the file, float32."""
    tasks = StandardisedTasks(d, max(4, ratio * d))
    network = blank(d)

    def draw(batch: int, generator: torch.Generator) -> TaskBatch:
        return tasks.tokens(batch, generator, QUERIES)

    recipe = Recipe(steps, _BATCH[ratio], 0.03, 0.1, warmup=min(50, steps // 2))
    fitted = fit_memformer(network, draw, recipe, seed=100 * ratio + d)
    if fitted.diverged:
        raise ArithmeticError(
            f"training for d = {d} and {ratio} rows a feature diverged after {len(fitted.losses)} steps"
        )
    return {key(d, ratio, name): value.detach().clone() for name, value in network.state_dict().items()}


def main() -> None:
    """Train all networks and write them to the file named, or into the package."""
    path = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parents[1] / "data" / FILE
    tensors: dict[str, Tensor] = {}
    for d in range(1, LARGEST_D + 1):
        for ratio in RATIOS:
            tensors |= train_network(d, ratio, STEPS)
        print(f"d = {d} done", flush=True)
    write_atomically(path, save(tensors))


if __name__ == "__main__":
    main()
