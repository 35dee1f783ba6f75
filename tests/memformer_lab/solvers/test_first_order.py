from __future__ import annotations

import pytest
import torch

from memformer_kernels.nn import RULES, Memformer
from memformer_lab.solvers.first_order import first_order_method, implied_weights, reads_statistics_alone
from memformer_lab.solvers.judging import quadratics_of
from memformer_lab.tasks.gaussian import GaussianTasks


@pytest.mark.parametrize("structure", ["response-only", "block"])
def test_weights_give_the_predictions_of_the_network(structure: str) -> None:
    torch.manual_seed(0)
    model = Memformer(4, 3, rule="lfom", structure=structure, dtype=torch.float64)
    batch = GaussianTasks.isotropic(4, 15, dtype=torch.float64).tokens(20, torch.Generator().manual_seed(0), queries=3)
    context = batch.z[:, :15]
    with torch.no_grad():
        weights = implied_weights(model, context.mT @ context / 15)
        expected = model.predict(batch.z, context=15)
    found = (batch.z[:, 15:, :-1] @ weights.unsqueeze(-1)).squeeze(-1)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("heads", [1, 3])
@pytest.mark.parametrize("rule", RULES)
def test_a_response_only_model_is_its_first_order_method(rule: str, heads: int) -> None:
    torch.manual_seed(0)
    model = Memformer(4, 3, heads=heads, rule=rule, granularity="feature", dtype=torch.float64)  # type: ignore[arg-type]
    with torch.no_grad():
        for name, entries in model.trainable_entries().items():
            parameter = model.get_parameter(name)
            parameter += 0.1 * torch.randn_like(parameter) * entries
    method = first_order_method(model)
    if heads > 1 and rule == "gated_heads":
        assert method is None, "each head has its own registers"
        return
    assert method is not None
    batch = GaussianTasks.isotropic(4, 15, dtype=torch.float64).tokens(20, torch.Generator().manual_seed(0), queries=3)
    h, b = (one.contiguous() for one in quadratics_of(batch.z, 15))
    with torch.no_grad():
        expected = model.predict(batch.z, context=15, layers=True)
        weights = method.solver(layers=True)(h, b)
    found = (batch.z[:, 15:, :-1] @ weights.unsqueeze(-1)).squeeze(-1)
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-11)


def test_a_model_of_several_responses_reads_no_task_of_one() -> None:
    one, several = (Memformer(3, 2, responses=m, device="cpu", dtype=torch.float64) for m in (1, 2))
    assert reads_statistics_alone(one)
    assert first_order_method(one) is not None
    assert not reads_statistics_alone(several)
    assert first_order_method(several) is None
