from __future__ import annotations

import pytest
import torch

from memformer_kernels.nn import Memformer
from memformer_lab.solvers.first_order import implied_weights
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
