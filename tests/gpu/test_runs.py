"""How both GPU backends run: large batches, offsets, graphs, streams, devices, repeatability."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from memformer_kernels import memformer_loss, memformer_predict, memformer_stack
from memformer_kernels.testing import public, relative_error, results
from tests.gpu.gpus import ALGORITHMS, Gpu, by_backend
from tests.marks import slow_but
from tests.memformer_kernels.cases import make_case


def _parameters(gpu: Gpu, width: int, layers: int, token_axis: bool = False) -> tuple[Tensor, Tensor]:
    """q and gamma, with gradients, of a stable response-only network."""
    q = -0.05 * torch.eye(width - 1, device=gpu.device) + 0.01 * gpu.draw(layers, 1, width - 1, width - 1, seed=2)
    gamma = 0.3 * gpu.draw(layers, layers, 1, 21 if token_axis else 1, width, seed=3)
    return q.requires_grad_(), gamma.requires_grad_()


@by_backend("batch", cuda=slow_but((1, 31, 33), (1, 31, 33, 1023, 1025, 65_536, 1_000_003)), triton=(65_536, 1_000_003))
@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_every_batch_equals_its_chunks(gpu: Gpu, batch: int, algorithm: str) -> None:
    batch = gpu.size(batch, batch if batch < 2000 else batch // 100, batch // 1000)
    z, (q, gamma) = gpu.draw(batch, 21, 6), _parameters(gpu, 6, 4)
    options: dict[str, Any] = {"gamma": gamma, "backend": gpu.backend, "algorithm": algorithm}
    with torch.no_grad():
        whole = memformer_stack(z, q, **options)
        parts = [memformer_stack(part, q, **options) for part in z.split(gpu.size(10_007, 307))]
    assert torch.equal(whole, torch.cat(parts))


@by_backend(
    "batch,token_axis",
    cuda=slow_but(lambda batch, _: batch == 65_536, [(n, axis) for n in (65_536, 1_000_003) for axis in (False, True)]),
    triton=[(65_536, False), (1_000_003, False)],
)
def test_losses_of_large_batches_are_the_means_of_their_parts(gpu: Gpu, batch: int, token_axis: bool) -> None:
    """A loss in float32 and its gradients to q and gamma against the means of chunks in float64."""
    batch, chunk = gpu.size(batch, batch // 60, batch // 1000), gpu.size(50_000, 300)
    tokens, answers = 0.5 * gpu.draw(batch, 21, 6), gpu.draw(batch, 1, seed=1)
    network = _parameters(gpu, 6, 4, token_axis)

    def run(z: Tensor, target: Tensor, dtype: torch.dtype, backend: str) -> list[Tensor]:
        q, gamma = (x.detach().to(dtype).requires_grad_() for x in network)
        loss = memformer_loss(z.to(dtype), target.to(dtype), q, gamma=gamma, backend=backend)
        return [loss.detach(), *torch.autograd.grad(loss, [q, gamma])]

    exact = [torch.zeros_like(x, dtype=torch.float64) for x in (tokens.new_empty(()), *network)]
    for part, answer in zip(tokens.split(chunk), answers.split(chunk), strict=True):
        for total, share in zip(exact, run(part, answer, torch.float64, "torch"), strict=True):
            total += share * (len(part) / batch)
    for made, expected in zip(run(tokens, answers, torch.float32, gpu.backend), exact, strict=True):
        assert relative_error(made, expected) < 1e-5


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_offsets_past_two_to_the_31(nvidia: Gpu, algorithm: str) -> None:
    """2^31 + 2^16 numbers of tokens: the last tasks lie past what 32 bits address; gradients of tokens too."""
    batch = 2**25 + 1024
    z = torch.zeros(batch, 8, 8, device="cuda", dtype=torch.float16)
    assert z.numel() > 2**31
    z[-3:] = nvidia.draw(3, 8, 8).half()
    q = -0.3 * torch.eye(7, device="cuda").expand(2, 1, 7, 7)
    options: dict[str, Any] = {"backend": nvidia.backend, "algorithm": algorithm}
    made = memformer_predict(z, q, **options)
    assert torch.equal(made[-3:], memformer_predict(z[-3:].clone(), q, **options))
    assert not made[:-3].any()
    last = z[-3:].clone().requires_grad_()
    z.requires_grad_()
    (grad,) = torch.autograd.grad(memformer_predict(z, q, **options).sum(), z)
    (expected,) = torch.autograd.grad(memformer_predict(last, q, **options).sum(), last)
    assert torch.equal(grad[-3:], expected)


def _loss(gpu: Gpu, width: int, moves: bool, token_axis: bool) -> Callable[[], tuple[Tensor, ...]]:
    """A loss and its gradients in the parameters. moves: whether features move too."""
    tasks = gpu.size(100_003 if gpu.backend == "cuda" else 5000, 35, 300 if width == 6 else 20)
    tokens = 100 if width == 64 else 21
    z, target = 0.5 * gpu.draw(tasks, tokens, width), gpu.draw(tasks, 1, seed=1)
    q, gamma = _parameters(gpu, width, 3, token_axis)
    p = (0.05 * gpu.draw(3, 1, width - 1, width - 1, seed=4)).requires_grad_() if moves else None

    def run() -> tuple[Tensor, ...]:
        loss = memformer_loss(z, target, q, p, gamma, backend=gpu.backend)
        return loss.detach(), *torch.autograd.grad(loss, [x for x in (q, p, gamma) if x is not None])

    return run


NETWORKS: dict[str, list[tuple[int, bool, bool]]] = {
    "cuda": [(width, moves, axis) for width in (6, 12) for axis in (False, True) for moves in (False, True)],
    "triton": [(width, moves, False) for width in (6, 64) for moves in (False, True)],
}
"""Of `_loss`: width, whether features move, whether gamma has a token axis."""


@by_backend("width,moves,token_axis", **NETWORKS)
def test_thirty_runs_give_the_same_bits(gpu: Gpu, width: int, moves: bool, token_axis: bool) -> None:
    """On a virtual GPU, which repeats itself, three; other orders of warps and blocks show more: tests/virtual_cuda."""
    run = _loss(gpu, width, moves, token_axis)
    first = run()
    for _ in range(gpu.size(29, 2)):
        for once, again in zip(first, run(), strict=True):
            assert torch.equal(once, again)


@by_backend("width,moves,token_axis", only_real=True, **NETWORKS)
def test_graphs_replay_what_they_captured(gpu: Gpu, width: int, moves: bool, token_axis: bool) -> None:
    run = _loss(gpu, width, moves, token_axis)
    expected = run()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = run()
    for x in captured:
        x.zero_()
    graph.replay()
    torch.cuda.synchronize()
    for made, exact in zip(captured, expected, strict=True):
        assert torch.equal(made, exact)


def test_calls_wait_for_nothing(nvidia: Gpu) -> None:
    run = _loss(nvidia, 6, False, False) if nvidia.backend == "cuda" else _loss(nvidia, 64, True, False)
    run()
    torch.cuda.set_sync_debug_mode("error")
    try:
        run()
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_work_is_on_the_current_stream(nvidia: Gpu) -> None:
    z, (q, gamma) = 0.5 * nvidia.draw(500_000, 21, 6), _parameters(nvidia, 6, 4)
    expected = memformer_predict(z, q, gamma=gamma, backend=nvidia.backend)
    stream, late = torch.cuda.Stream(), torch.zeros_like(z)
    torch.cuda.synchronize()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(10_000_000)
        late.copy_(z)
        made = memformer_predict(late, q, gamma=gamma, backend=nvidia.backend)
    stream.synchronize()
    assert torch.equal(made, expected)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="one GPU alone: none can be the wrong one")
def test_the_current_device_may_be_another(nvidia: Gpu) -> None:
    z = torch.randn(7, 9, 4, device="cuda:1", requires_grad=True)
    q = -0.3 * torch.eye(3, device="cuda:1").expand(2, 1, 3, 3)
    with torch.cuda.device(0):
        made = memformer_stack(z, q, backend=nvidia.backend)
        (grad,) = torch.autograd.grad(made.sum(), z)
        assert torch.cuda.current_device() == 0
    assert made.device == grad.device == z.device
    assert relative_error(made, memformer_stack(z, q, backend="torch")) < 1e-5


def test_results_do_not_depend_on_what_memory_held(nvidia: Gpu) -> None:
    """Scratch memory is not cleared: after NaN has filled and left torch's cache, the bits are the same."""
    case = nvidia.moved(make_case(structure="block", width=6, tokens=21, tasks=3000))
    expected = results(public(nvidia.backend, "gram"), case.to(torch.float32))
    filled = [torch.full((2**20,), torch.nan, device="cuda") for _ in range(64)]
    del filled
    for name, value in results(public(nvidia.backend, "gram"), case.to(torch.float32)).items():
        assert torch.equal(value, expected[name])


def test_tensors_on_the_cpu_are_refused(nvidia: Gpu) -> None:
    said = {"cuda": "backend='cuda' serves tensors on CUDA GPUs", "triton": "TRITON_INTERPRET=1"}[nvidia.backend]
    with pytest.raises(RuntimeError, match=said):
        memformer_stack(torch.zeros(2, 3, 4), torch.zeros(1, 1, 3, 3), backend=nvidia.backend)


@by_backend("sizes", only_real=True, cuda=[((64, 8192, 1_000_000),)], triton=[((64, 8192),), ((1_000_000,),)])
def test_compiled_callers_see_one_graph(gpu: Gpu, sizes: tuple[int, ...]) -> None:
    q = -0.3 * torch.eye(5, device="cuda").expand(2, 1, 5, 5)
    compiled = torch.compile(lambda z: memformer_predict(z, q, backend=gpu.backend).square().sum(), fullgraph=True)
    for batch in sizes:
        z = gpu.draw(batch, 21, 6)
        assert relative_error(compiled(z), memformer_predict(z, q, backend="torch").square().sum()) < 1e-5
