"""The JAX peers compute the published form's loss and gradients, in one block of tasks or several, in both dtypes."""

from dataclasses import replace

import pytest
import torch

from benchmarks.measure.data import Batch, make_batch, make_parameters
from benchmarks.measure.harness import BUDGETS, errors, reference_outcome
from benchmarks.measure.providers import Outcome, select
from benchmarks.measure.workloads import W_FULL, W, Workload
from benchmarks.peers.formulations import UNROLLED_CONTEXT, published

pytest.importorskip("jax")

from benchmarks.peers import jax_formulations

CPU = torch.device("cpu")


@pytest.mark.parametrize("batch", [40, 64])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(
    "workload",
    [W, replace(W, heads=3), replace(W, n=UNROLLED_CONTEXT + 1), W_FULL, replace(W_FULL, granularity="token")],
    ids=lambda w: f"{w.granularity}-{w.heads}-{w.n}",
)
def test_equals_the_published_form(workload: Workload, dtype: str, batch: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jax_formulations, "BLOCK", 16)
    workload = replace(workload, batch=batch, dtype=dtype)
    (provider,) = (p for p in select(["JAX"]) if p.supports(workload, CPU))
    parameters, tasks = make_parameters(workload, 0, CPU), make_batch(workload, 1, CPU)
    found = provider.outcome(provider.build(workload, parameters)(tasks))
    loss = published(*(t.double() for t in (*tasks, *parameters)), n=workload.n)
    q, gamma = torch.autograd.grad(loss, list(parameters))
    assert found.loss.dtype == workload.torch_dtype
    loss_budget, gradient_budget = BUDGETS[workload.parameter_dtype]
    if dtype == "float64":
        expected = Outcome(loss.detach(), {"q": q, "gamma": gamma})
        assert errors(found, expected)[0] <= loss_budget
    assert errors(found, reference_outcome(workload, tasks, parameters))[0] <= loss_budget
    assert errors(found, reference_outcome(workload, tasks, parameters))[1] <= gradient_budget


def test_arrays_share_the_tensors_memory_and_a_new_batch_is_seen() -> None:
    workload = W.with_batch(16)
    parameters = make_parameters(workload, 0, CPU)
    first, second = make_batch(workload, 1, CPU), make_batch(workload, 2, CPU)
    (provider,) = (p for p in select(["JAX"]) if p.supports(workload, CPU))
    step = provider.build(workload, parameters)

    def loss(batch: Batch) -> float:
        return provider.outcome(step(batch)).loss.item()

    assert loss(first) != loss(second)
    assert loss(first) == loss(Batch(first.z.clone(), first.target.clone()))
    array = jax_formulations._to_jax(first.z)
    assert array.unsafe_buffer_pointer() == first.z.data_ptr()


def test_a_platform_without_devices_is_named_with_its_reason() -> None:
    assert jax_formulations.missing("cpu") == ""
    missing = jax_formulations.missing("abacus")
    assert "has no abacus device: " in missing
    (provider,) = (p for p in select(["JAX"]) if p.supports(W, CPU))
    if not torch.cuda.is_available():
        assert "has no cuda device" in provider.supports(W, torch.device("cuda")).reason


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no NVIDIA GPU that torch can use")
@pytest.mark.parametrize("workload", [W, W_FULL], ids=lambda w: w.name)
def test_on_a_gpu(workload: Workload) -> None:
    device, workload = torch.device("cuda"), workload.with_batch(1000)
    peers = [provider for provider in select(["JAX"]) if provider.supports(workload, device)]
    if not peers:
        pytest.skip(jax_formulations.missing("cuda"))
    parameters, tasks = make_parameters(workload, 0, device), make_batch(workload, 1, device)
    found = peers[0].outcome(peers[0].build(workload, parameters)(tasks))
    assert found.loss.is_cuda
    loss_error, gradient_error = errors(found, reference_outcome(workload, tasks, parameters))
    assert loss_error <= BUDGETS[torch.float32][0]
    assert gradient_error <= BUDGETS[torch.float32][1]
