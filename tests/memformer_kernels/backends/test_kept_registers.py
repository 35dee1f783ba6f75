"""What the torch backend keeps of a run of all layers, in allocations: without a backward one running register."""

from typing import Any

import pytest
import torch
from torch import Tensor

from memformer_kernels import lfom_solve
from memformer_kernels.nn import RULES, Memformer
from tests.memformer_kernels.allocations import peak_bytes
from tests.memformer_kernels.cases import normal, seeded

TOKENS = 3000
ONE = [rule for rule in RULES if not rule.startswith(("lfom", "gated"))] + ["lfom_shared"]
"""Rules by which one running register is enough."""

CALLS: dict[str, Any] = {
    "stack": lambda model, z: model(z),
    "predict": lambda model, z: model.predict(z),
    "loss": lambda model, z: model.loss(z, z[:, -1:, -1]),
}


def _model(rule: str, layers: int = 4, structure: str = "block", **options: Any) -> Memformer:
    torch.manual_seed(0)
    if rule == "recursive":
        options["granularity"] = "feature"
    made = Memformer(5, layers, rule=rule, structure=structure, backend="torch", algorithm="token", **options)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter += 0.05 * torch.randn_like(parameter)
    return made


def _grown(rule: str, call: str, structure: str) -> float:
    """What 12 layers hold more than 4, in registers: of D numbers a token, or of one where features stay."""
    z = normal(seeded(0), 1, TOKENS, 6).float()
    peaks = []
    for layers in (4, 12):
        model = _model(rule, layers, structure).requires_grad_(False)
        CALLS[call](model, z)
        peaks.append(peak_bytes(lambda held=model: CALLS[call](held, z)))
    return (peaks[1] - peaks[0]) / (TOKENS * 4 * (1 if structure == "response-only" else 6))


@pytest.mark.parametrize("structure", ["block", "response-only"])
@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("rule", ONE)
def test_one_running_register_is_enough(rule: str, call: str, structure: str) -> None:
    assert _grown(rule, call, structure) < 1


@pytest.mark.parametrize("structure", ["block", "response-only"])
def test_weights_of_each_layer_for_each_register_need_them_all(structure: str) -> None:
    """And no state but the last."""
    assert _grown("lfom", "stack", structure) == pytest.approx(8, abs=1)


@pytest.mark.parametrize("algorithm", ["token", "gram"])
@pytest.mark.parametrize("structure", ["block", "response-only"])
@pytest.mark.parametrize("rule", RULES)
def test_what_is_kept_changes_no_bit(rule: str, structure: str, algorithm: str) -> None:
    model = _model(rule, structure=structure, heads=2 if rule == "gated_heads" else 1)
    model.algorithm = algorithm
    z = normal(seeded(1), 7, 20, 6).float()
    kept = model.loss(z, z[:, -1:, -1]).detach()
    with torch.no_grad():
        assert torch.equal(model.loss(z, z[:, -1:, -1]), kept)
        assert torch.equal(model.predict(z, layers=True)[-1], model.predict(z))


def test_iterates_of_a_solution_are_those_of_its_last() -> None:
    def solved(layers: bool) -> Tensor:
        h, b, a = normal(seeded(2), 3, 4, 4), normal(seeded(3), 3, 4), normal(seeded(4), 5, 4, 4)
        gamma, beta = normal(seeded(5), 1, 5, 4), normal(seeded(6), 5, 4)
        return lfom_solve(h, b, a, gamma, beta, layers=layers, backend="torch")

    assert torch.equal(solved(True)[-1], solved(False))
