"""The PyTorch backend on an NVIDIA GPU: agreement with the CPU, error budgets, half precision, large batches."""

import pytest
import torch

from memformer_kernels import memformer_loss, memformer_stack
from memformer_kernels.testing import Case, public, relative_error, results, twin_violations
from tests.gpu.gpus import Gpu

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no NVIDIA GPU that torch can use"),
]

NVIDIA = Gpu("torch", virtual=False)


def _case(batch: int) -> Case:
    generator = torch.Generator().manual_seed(5)

    def draw(*shape: int) -> torch.Tensor:
        return 0.4 * torch.randn(shape, generator=generator, dtype=torch.float64)

    z = draw(batch, 21, 6) / 0.4
    return Case(z, draw(4, 2, 5, 5), draw(4, 2, 5, 5), 0.3 * draw(4, 4, 1, 1, 6), draw(4, 1, 1, 6), draw(2), context=19)


@pytest.mark.parametrize("algorithm", ["gram", "token"])
def test_float64_results_equal_those_of_the_cpu(algorithm: str) -> None:
    case = _case(64)
    expected = results(public("torch", algorithm), case.to(torch.float64))
    made = results(public("torch", algorithm), NVIDIA.moved(case).to(torch.float64))
    for name, value in expected.items():
        assert relative_error(made[name].cpu(), value) < 1e-10, name


@pytest.mark.parametrize("algorithm", ["gram", "token"])
def test_float32_errors_are_within_the_twin_budget(algorithm: str) -> None:
    assert twin_violations(public("torch", algorithm), NVIDIA.moved(_case(1024))) == {}


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_tokens_with_float32_parameters(dtype: torch.dtype) -> None:
    case = NVIDIA.moved(_case(32)).to(torch.float32)
    tokens = memformer_stack(case.z.to(dtype), case.q, *case.parameters, context=19)
    assert tokens.dtype == dtype
    assert torch.isfinite(tokens).all()


@pytest.mark.parametrize("batch", [65_536, 1_000_003])
def test_large_batches_equal_their_chunks(batch: int) -> None:
    z = NVIDIA.draw(batch, 21, 6)
    q = -0.3 * torch.eye(5, device="cuda").expand(4, 1, 5, 5)
    whole = memformer_stack(z, q)
    parts = torch.cat([memformer_stack(chunk, q) for chunk in z.split(10_000)])
    torch.testing.assert_close(whole, parts)


def test_ragged_contexts_are_not_range_checked_on_the_host() -> None:
    z = torch.randn(4, 9, 4, device="cuda")
    q = -0.3 * torch.eye(3, device="cuda").expand(2, 1, 3, 3)
    lengths = torch.tensor([2, 5, 8, 3], device="cuda")
    target = torch.zeros(4, 1, device="cuda")
    torch.cuda.set_sync_debug_mode("error")
    try:
        loss = memformer_loss(z, target, q, context=lengths)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert torch.isfinite(loss)
