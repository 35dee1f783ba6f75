"""The registry for people who live in pytest: `pytest benchmarks --benchmark-only` (small batches, every provider)."""

from dataclasses import replace

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture

from benchmarks.measure.data import make_batch, make_parameters
from benchmarks.measure.harness import BUDGETS, errors, reference_outcome
from benchmarks.measure.providers import PROVIDERS, Provider
from benchmarks.measure.workloads import WORKLOADS, Workload

CPU = torch.device("cpu")
BATCH = 256
CASES = [
    pytest.param(workload, provider, id=f"{workload.name}-{provider.name}")
    for workload in (replace(w, batch=BATCH) for w in WORKLOADS.values())
    for provider in PROVIDERS
    if provider.supports(workload, CPU)
]


@pytest.mark.parametrize(("workload", "provider"), CASES)
def test_provider(benchmark: BenchmarkFixture, workload: Workload, provider: Provider) -> None:
    torch.compiler.reset()
    parameters = make_parameters(workload, seed=0, device=CPU)
    batch = make_batch(workload, seed=1, device=CPU)
    step = provider.build(workload, parameters)
    loss_error, gradient_error = errors(provider.outcome(step(batch)), reference_outcome(workload, batch, parameters))
    loss_budget, gradient_budget = BUDGETS[workload.parameter_dtype]
    assert loss_error <= loss_budget
    assert gradient_error <= gradient_budget
    benchmark.group = f"{workload.name}, B = {workload.batch}"
    benchmark(step, batch)
