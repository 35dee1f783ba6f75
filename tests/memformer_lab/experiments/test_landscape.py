from __future__ import annotations

import pytest
import torch

from memformer_lab.experiments.landscape import Landscape, fresh, gradient_noise, train
from memformer_lab.tasks.families import FamilyTasks


def _terrain(layers: int = 2) -> tuple[Landscape, torch.Tensor]:
    batch = FamilyTasks("linear", 5, 20).tokens(40, torch.Generator().manual_seed(0))
    point = torch.cat([value.detach().flatten() for value in fresh(layers, 1).parameters()]).double()
    return Landscape(layers, batch), 4 * point


def test_curvature_is_the_second_derivative_along_a_line() -> None:
    terrain, point = _terrain()
    direction = torch.randn(len(point), generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    unit, step = direction / direction.norm(), 1e-3
    ahead, here, behind = (terrain.loss(point + move * unit) for move in (step, 0.0, -step))
    assert terrain.curvature(point, 7 * direction) == pytest.approx((ahead - 2 * here + behind) / step**2, rel=1e-4)
    slope = float(terrain.gradient(point) @ unit)
    assert slope == pytest.approx((ahead - behind) / (2 * step), rel=1e-4)


def test_the_robust_condition_number_is_of_the_diagonal() -> None:
    terrain, point = _terrain(layers=1)
    diagonal = []
    for place in range(len(point)):
        unit = torch.zeros_like(point)
        unit[place] = 1e-3
        second = terrain.loss(point + unit) - 2 * terrain.loss(point) + terrain.loss(point - unit)
        diagonal.append(abs(second) / 1e-6)
    found = torch.tensor(diagonal, dtype=torch.float64)
    assert terrain.robust_condition(point) == pytest.approx(float(found.max() / found.median()), rel=1e-3)


@pytest.mark.parametrize("algorithm", ["SGD", "Adam"])
def test_a_path_has_its_checkpoints_and_the_steps_after(algorithm: str) -> None:
    model = fresh(2, 0)
    start = torch.cat([value.detach().flatten() for value in model.parameters()]).double()
    path = train(model, "linear", algorithm, 0.02, (0, 3), 0)  # type: ignore[arg-type]
    assert sorted(path.points) == [0, 1, 3, 4]
    assert not path.diverged
    assert torch.equal(path.points[0], start)
    move = path.points[1] - path.points[0]
    # The first step of SGD has at most its rate times the clipped norm; Adam's moves entries by its rate.
    if algorithm == "SGD":
        assert float(move.norm()) <= 0.02 * 1.001
    else:
        assert float(move.abs().max()) == pytest.approx(0.02, rel=0.01)
    again = train(fresh(2, 0), "linear", algorithm, 0.02, (0, 3), 0)  # type: ignore[arg-type]
    assert torch.equal(again.points[4], path.points[4])


def test_a_path_that_diverges_says_so() -> None:
    assert train(fresh(3, 0), "linear", "SGD", 1e4, (0, 40), 0).diverged


def test_noise_and_gaussian_noise_have_the_same_size() -> None:
    ours, gaussian = gradient_noise(1, "linear", 60, 0)
    assert ours.shape == gaussian.shape == (60,)
    assert float(ours.square().mean()) == pytest.approx(float(gaussian.square().mean()), rel=0.5)
