"""How the Triton backend runs on a GPU: large batches, offsets, graphs, streams, devices, repeatability."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from memformer_kernels import memformer_loss, memformer_predict, memformer_stack, warmup
from memformer_kernels.backends.triton.backend import TritonBackend
from memformer_kernels.testing import relative_error
from tests.gpu.large_batches import last_tasks_lie_past_two_to_the_31, losses_are_means_of_parts
from tests.gpu.tensors import NVIDIA, Gpu
from tests.gpu.triton.gpus import ALGORITHMS, on_nvidia_alone


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("batch", [65_536, 1_000_003])
def test_large_batches_equal_their_chunks(batch: int, algorithm: str, gpu: Gpu) -> None:
    batch, chunk = gpu.size(batch, batch // 1000), gpu.size(10_000, 300)
    z, q = gpu.draw(batch, 21, 6), -0.3 * torch.eye(5, device=gpu.device).expand(4, 1, 5, 5)
    run = TritonBackend()
    whole = memformer_stack(z, q, backend="triton", algorithm=algorithm)
    parts = [memformer_stack(part, q, backend="triton", algorithm=algorithm) for part in z.split(chunk)]
    assert torch.equal(whole, torch.cat(parts))
    grams = torch.cat([run.context_gram(part, None, 20) for part in z.split(chunk)])
    assert relative_error(run.context_gram(z, None, 20), grams) < 1e-6


@pytest.mark.parametrize("batch", [65_536, 1_000_003])
def test_losses_of_large_batches_are_the_means_of_their_parts(batch: int, gpu: Gpu) -> None:
    batch, chunk = gpu.size(batch, batch // 1000), gpu.size(50_000, 300)
    z, target = 0.5 * gpu.draw(batch, 21, 6), gpu.draw(batch, 1, seed=1)
    q, gamma = -0.05 * gpu.draw(4, 1, 5, 5, seed=2), 0.3 * gpu.draw(4, 4, 1, 1, 6, seed=3)
    losses_are_means_of_parts("triton", z, target, [q, gamma], chunk)


@on_nvidia_alone
@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_offsets_past_two_to_the_31(algorithm: str) -> None:
    last_tasks_lie_past_two_to_the_31("triton", algorithm)


def _losses(gpu: Gpu) -> dict[str, Callable[[], tuple[Tensor, ...]]]:
    made: dict[str, Callable[[], tuple[Tensor, ...]]] = {}
    for width, tokens, tasks in ((6, 21, gpu.size(5000, 300)), (64, 100, gpu.size(200, 20))):
        z, target = gpu.draw(tasks, tokens, width), gpu.draw(tasks, 1, seed=1)
        q = (-0.05 * gpu.draw(3, 1, width - 1, width - 1, seed=2)).requires_grad_()
        gamma = (0.3 * gpu.draw(3, 3, 1, 1, width, seed=3)).requires_grad_()
        for p in (None, (0.05 * gpu.draw(3, 1, width - 1, width - 1, seed=4)).requires_grad_()):

            def run(
                z: Tensor = z, target: Tensor = target, q: Tensor = q, p: Tensor | None = p, gamma: Tensor = gamma
            ) -> tuple[Tensor, ...]:
                loss = memformer_loss(z, target, q, p, gamma, backend="triton")
                return loss.detach(), *torch.autograd.grad(loss, [x for x in (q, p, gamma) if x is not None])

            made[f"D={width}, {'response-only' if p is None else 'block'}"] = run
    return made


@pytest.mark.parametrize("name", ["D=6, response-only", "D=6, block", "D=64, response-only", "D=64, block"])
def test_runs_give_the_same_bits(name: str, gpu: Gpu) -> None:
    run = _losses(gpu)[name]
    first = run()
    for _ in range(gpu.size(29, 2)):
        for once, again in zip(first, run(), strict=True):
            assert torch.equal(once, again)


@on_nvidia_alone
@pytest.mark.parametrize("name", ["D=6, response-only", "D=64, block"])
def test_graphs_replay_what_they_captured(name: str) -> None:
    run = _losses(NVIDIA)[name]
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


@on_nvidia_alone
@pytest.mark.parametrize(("width", "structure"), [(5, "response-only"), (19, "block")])
def test_warmup_is_enough_before_a_capture(width: int, structure: str) -> None:
    """Sizes that no other test has, so that nothing but `warmup` has loaded their kernels."""
    z, target = 0.3 * NVIDIA.draw(300, 21, width), NVIDIA.draw(300, 1, seed=1)
    q = (-0.05 * NVIDIA.draw(2, 1, width - 1, width - 1, seed=2)).requires_grad_()
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


@on_nvidia_alone
def test_calls_wait_for_nothing() -> None:
    run = _losses(NVIDIA)["D=64, block"]
    run()
    torch.cuda.set_sync_debug_mode("error")
    try:
        run()
    finally:
        torch.cuda.set_sync_debug_mode("default")


@on_nvidia_alone
def test_work_is_on_the_current_stream() -> None:
    z, q = 0.5 * NVIDIA.draw(500_000, 21, 6), -0.3 * torch.eye(5, device="cuda").expand(4, 1, 5, 5)
    expected = memformer_predict(z, q, backend="triton")
    stream, late = torch.cuda.Stream(), torch.zeros_like(z)
    torch.cuda.synchronize()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(10_000_000)
        late.copy_(z)
        made = memformer_predict(late, q, backend="triton")
    stream.synchronize()
    assert torch.equal(made, expected)


@on_nvidia_alone
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="one GPU alone: none can be the wrong one")
def test_the_current_device_may_be_another() -> None:
    z = torch.randn(7, 9, 4, device="cuda:1", requires_grad=True)
    q = -0.3 * torch.eye(3, device="cuda:1").expand(2, 1, 3, 3)
    with torch.cuda.device(0):
        made = memformer_stack(z, q, backend="triton")
        (grad,) = torch.autograd.grad(made.sum(), z)
    assert made.device == grad.device == z.device
    assert relative_error(made, memformer_stack(z, q, backend="torch")) < 1e-5


@on_nvidia_alone
def test_tensors_on_the_cpu_are_refused() -> None:
    with pytest.raises(RuntimeError, match="TRITON_INTERPRET=1"):
        memformer_stack(torch.zeros(2, 3, 4), torch.zeros(1, 1, 3, 3), backend="triton")


@on_nvidia_alone
@pytest.mark.parametrize("sizes", [(64, 8192), (1_000_000,)])
def test_compiled_callers_see_one_graph(sizes: tuple[int, ...]) -> None:
    q = -0.3 * torch.eye(5, device="cuda").expand(2, 1, 5, 5)
    compiled = torch.compile(lambda z: memformer_predict(z, q, backend="triton").square().sum(), fullgraph=True)
    for batch in sizes:
        z = NVIDIA.draw(batch, 21, 6)
        assert relative_error(compiled(z), memformer_predict(z, q, backend="torch").square().sum()) < 1e-5
