"""What the Triton backend alone has on a GPU: golden files, few and wide tasks, attention, updates, captures.

With MEMFORMER_TEST_TRITON=1 the contract's own tests run on an NVIDIA GPU too: see
tests/memformer_kernels/conftest.py.
"""

import pytest
import torch
from torch import Tensor

from memformer_kernels import (
    linear_attention,
    memformer_loss,
    reference,
    register_update,
    warmup,
)
from memformer_kernels.backends.triton.backend import TritonBackend
from memformer_kernels.testing import FLOAT64_ERROR, float64_violations, public, relative_error
from tests.gpu.gpus import Gpu
from tests.memformer_kernels import golden
from tests.memformer_kernels.cases import make_case


@pytest.mark.parametrize(("name", "algorithm"), golden.IN_SPACES)
def test_golden_files(name: str, algorithm: str, gpu: Gpu) -> None:
    """In float64: a file holds a dozen tasks, and the budget of float32 is one of a thousand."""
    file = golden.load(name)
    case = file.own_case()
    case = gpu.moved(case)
    assert case.target is not None
    loss = memformer_loss(case.z, case.target, case.q, *case.parameters, backend="triton", algorithm=algorithm)
    assert relative_error(loss.detach().cpu(), file.loss) <= FLOAT64_ERROR
    for key, grad in zip(file.leaves, torch.autograd.grad(loss, list(file.leaves.values())), strict=True):
        assert relative_error(grad, file.grads[key]) <= FLOAT64_ERROR, key


@pytest.mark.parametrize("tasks", [1, 4])
@pytest.mark.parametrize("structure", ["response-only", "block"])
def test_few_tasks_with_long_contexts(structure: str, tasks: int, gpu: Gpu) -> None:
    case = gpu.moved(
        make_case(structure=structure, width=17, tokens=gpu.size(6000, 600), tasks=tasks, layers=2, heads=1)
    )
    assert float64_violations(public("triton", "gram"), case) == {}


@pytest.mark.parametrize(("algorithm", "rule"), [("gram", "lfom"), ("gram", "recursive"), ("token", "lfom")])
def test_tasks_wider_than_a_tile(rule: str, algorithm: str, gpu: Gpu) -> None:
    width, tokens = gpu.size(200, 140), gpu.size(300, 20)
    case = make_case(rule=rule, structure="block", width=width, tokens=tokens, tasks=3, layers=2, heads=1)
    assert float64_violations(public("triton", algorithm), gpu.moved(case)) == {}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("causal", [False, True])
def test_attention_at_full_size(causal: bool, dtype: torch.dtype, gpu: Gpu) -> None:
    shape = 2, gpu.size(3000, 300), gpu.size(4, 1), 64
    leaves = [gpu.draw(*shape, seed=seed, dtype=dtype).requires_grad_() for seed in range(3)]
    wide = [x.detach().double().requires_grad_() for x in leaves]
    out = linear_attention(*leaves, causal=causal, backend="triton")
    exact = reference.linear_attention(*wide, causal=causal)
    tolerance = 1e-5 if dtype == torch.float32 else 0.02
    assert relative_error(out, exact) < tolerance
    grads, expected = torch.autograd.grad(out.sum(), leaves), torch.autograd.grad(exact.sum(), wide)
    for grad, value in zip(grads, expected, strict=True):
        assert relative_error(grad, value) < tolerance


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_register_updates_at_full_size(dtype: torch.dtype, gpu: Gpu) -> None:
    shape = gpu.size(8, 2), gpu.size(2000, 50), gpu.size(512, 130)
    tokens = [gpu.draw(*shape, seed=seed, dtype=dtype).requires_grad_() for seed in range(4)]
    leaves = [*tokens, gpu.draw(3, shape[2], seed=5).requires_grad_()]
    wide = [x.detach().double().requires_grad_() for x in leaves]
    out = register_update(leaves[0], leaves[1:-1], leaves[-1], backend="triton")
    exact = reference.register_update(wide[0], wide[1:-1], wide[-1])
    rounding = 1e-6 if dtype == torch.float32 else 2.0**-7
    assert relative_error(out, exact) < rounding
    grads, expected = torch.autograd.grad(out.sin().sum(), leaves), torch.autograd.grad(exact.sin().sum(), wide)
    for grad, value in zip(grads, expected, strict=True):
        assert relative_error(grad, value) < 4 * rounding


@pytest.mark.parametrize(("width", "structure"), [(5, "response-only"), (19, "block")])
def test_warmup_is_enough_before_a_capture(width: int, structure: str, nvidia: Gpu) -> None:
    """Sizes that no other test has, so that nothing but `warmup` has loaded their kernels."""
    z, target = 0.3 * nvidia.draw(300, 21, width), nvidia.draw(300, 1, seed=1)
    q = (-0.05 * nvidia.draw(2, 1, width - 1, width - 1, seed=2)).requires_grad_()
    p = None if structure == "response-only" else q

    def run() -> tuple[Tensor, Tensor]:
        loss = memformer_loss(z, target, q, p, backend="triton")
        return loss.detach(), torch.autograd.grad(loss, q)[0]

    assert warmup(z, target, q, p, backend="triton").backend == "triton"
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = run()
    graph.replay()
    torch.cuda.synchronize()
    for made, exact in zip(captured, run(), strict=True):
        assert torch.equal(made, exact)


@pytest.mark.parametrize("batch", [65_536, 1_000_003])
def test_gram_matrices_of_large_batches_are_those_of_their_chunks(batch: int, gpu: Gpu) -> None:
    z, run = gpu.draw(gpu.size(batch, batch // 1000), 21, 6), TritonBackend()
    grams = torch.cat([run.context_gram(part, None, 20) for part in z.split(gpu.size(10_000, 300))])
    assert relative_error(run.context_gram(z, None, 20), grams) < 1e-6
