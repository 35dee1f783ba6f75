"""Tasks and parameters are what they claim and depend on the seed alone."""

import torch

from benchmarks.measure.data import make_batch, make_parameters
from benchmarks.measure.workloads import W_FULL, W

CPU = torch.device("cpu")


def test_the_target_is_the_query_under_the_weights_of_the_context() -> None:
    workload = W.with_batch(50)
    z, target = make_batch(workload, 3, CPU)
    assert z.shape == (50, 21, 6)
    assert z.dtype == torch.float32
    assert torch.count_nonzero(z[:, -1, -1]) == 0
    weights = torch.linalg.lstsq(z[:, :-1, :-1].double(), z[:, :-1, -1:].double()).solution
    torch.testing.assert_close((z[:, -1:, :-1].double() @ weights)[..., 0].float(), target, rtol=1e-4, atol=1e-4)


def test_parameters_have_gradients_and_the_workloads_shapes() -> None:
    q, gamma = make_parameters(W_FULL, 0, CPU)
    assert q.shape == (4, 1, 5, 5)
    assert gamma.shape == W_FULL.parameter_shapes["gamma"]
    assert q.requires_grad
    assert gamma.requires_grad
    assert q.is_leaf


def test_only_the_seed_decides() -> None:
    workload = W.with_batch(10)
    assert torch.equal(make_batch(workload, 5, CPU).z, make_batch(workload, 5, CPU).z)
    assert not torch.equal(make_batch(workload, 5, CPU).z, make_batch(workload, 6, CPU).z)
    assert torch.equal(make_parameters(workload, 5, CPU).q, make_parameters(workload, 5, CPU).q)
