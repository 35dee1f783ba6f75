"""How the CUDA library runs on a GPU: large batches, offsets, graphs, streams, devices, repeatability."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from memformer_kernels import context_gram, memformer_loss, memformer_predict, memformer_stack
from memformer_kernels.testing import public, relative_error, results
from tests.gpu.cuda.gpus import ALGORITHMS, on_nvidia_alone
from tests.gpu.large_batches import last_tasks_lie_past_two_to_the_31, losses_are_means_of_parts
from tests.gpu.tensors import NVIDIA, Gpu
from tests.marks import slow_but
from tests.memformer_kernels.cases import make_case


def _parameters(gpu: Gpu, width: int, layers: int, token_axis: bool = False) -> tuple[Tensor, Tensor]:
    """q and gamma, with gradients, of a stable response-only network."""
    q = -0.05 * torch.eye(width - 1, device=gpu.device) + 0.01 * gpu.draw(layers, 1, width - 1, width - 1, seed=2)
    gamma = 0.3 * gpu.draw(layers, layers, 1, 21 if token_axis else 1, width, seed=3)
    return q.requires_grad_(), gamma.requires_grad_()


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("batch", slow_but((1, 31, 33), (1, 31, 33, 1023, 1025, 65_536, 1_000_003)))
def test_every_batch_equals_its_chunks(batch: int, algorithm: str, gpu: Gpu) -> None:
    batch, chunk = gpu.size(batch, batch if batch < 2000 else batch // 100), gpu.size(10_007, 307)
    z, (q, gamma) = gpu.draw(batch, 21, 6), _parameters(gpu, 6, 4)
    with torch.no_grad():
        whole = memformer_stack(z, q, gamma=gamma, backend="cuda", algorithm=algorithm)
        chunks = z.split(chunk)
        parts = [memformer_stack(part, q, gamma=gamma, backend="cuda", algorithm=algorithm) for part in chunks]
    assert torch.equal(whole, torch.cat(parts))
    assert torch.equal(context_gram(z, 20), torch.cat([context_gram(part, 20) for part in chunks]))


@pytest.mark.parametrize("token_axis", [False, True])
@pytest.mark.parametrize("batch", slow_but((65_536,), (65_536, 1_000_003)))
def test_losses_of_large_batches_are_the_means_of_their_parts(batch: int, token_axis: bool, gpu: Gpu) -> None:
    batch, chunk = gpu.size(batch, batch // 60), gpu.size(50_000, 300)
    z, target = 0.5 * gpu.draw(batch, 21, 6), gpu.draw(batch, 1, seed=1)
    q, gamma = _parameters(gpu, 6, 4, token_axis)
    losses_are_means_of_parts("cuda", z, target, [q, gamma], chunk)


@on_nvidia_alone
@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_offsets_past_two_to_the_31(algorithm: str) -> None:
    last_tasks_lie_past_two_to_the_31("cuda", algorithm)


def _losses() -> dict[str, Callable[[], tuple[Tensor, ...]]]:
    made: dict[str, Callable[[], tuple[Tensor, ...]]] = {}
    for width in (6, 12):
        z, target = 0.5 * NVIDIA.draw(100_003, 21, width), NVIDIA.draw(100_003, 1, seed=1)
        p = (0.05 * NVIDIA.draw(3, 1, width - 1, width - 1, seed=4)).requires_grad_()
        for name, chosen, token_axis in (
            ("response-only", None, False),
            ("block", p, False),
            ("tokens", None, True),
            ("block, tokens", p, True),
        ):
            q, gamma = _parameters(NVIDIA, width, 3, token_axis)

            def run(
                z: Tensor = z, target: Tensor = target, q: Tensor = q, p: Tensor | None = chosen, gamma: Tensor = gamma
            ) -> tuple[Tensor, ...]:
                loss = memformer_loss(z, target, q, p, gamma, backend="cuda")
                return loss.detach(), *torch.autograd.grad(loss, [x for x in (q, p, gamma) if x is not None])

            made[f"D={width}, {name}"] = run
    return made


LOSSES = [f"D={width}, {name}" for width in (6, 12) for name in ("response-only", "block", "tokens", "block, tokens")]


@on_nvidia_alone
@pytest.mark.parametrize("name", LOSSES)
def test_thirty_runs_give_the_same_bits(name: str) -> None:
    """On a virtual GPU, which repeats itself, other orders of warps and blocks show it: tests/virtual_cuda."""
    run = _losses()[name]
    first = run()
    for _ in range(29):
        for once, again in zip(first, run(), strict=True):
            assert torch.equal(once, again)


@on_nvidia_alone
@pytest.mark.parametrize("name", LOSSES)
def test_graphs_replay_what_they_captured(name: str) -> None:
    run = _losses()[name]
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
def test_calls_wait_for_nothing() -> None:
    run = _losses()["D=6, response-only"]
    run()
    torch.cuda.set_sync_debug_mode("error")
    try:
        run()
    finally:
        torch.cuda.set_sync_debug_mode("default")


@on_nvidia_alone
def test_work_is_on_the_current_stream() -> None:
    z, (q, gamma) = 0.5 * NVIDIA.draw(500_000, 21, 6), _parameters(NVIDIA, 6, 4)
    expected = memformer_predict(z, q, gamma=gamma, backend="cuda")
    torch.cuda.synchronize()
    stream = torch.cuda.Stream()
    late = torch.zeros_like(z)
    torch.cuda.synchronize()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(10_000_000)
        late.copy_(z)
        made = memformer_predict(late, q, gamma=gamma, backend="cuda")
    stream.synchronize()
    assert torch.equal(made, expected)


@on_nvidia_alone
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="one GPU alone: none can be the wrong one")
def test_the_current_device_may_be_another() -> None:
    z = torch.randn(7, 9, 4, device="cuda:1", requires_grad=True)
    q = -0.3 * torch.eye(3, device="cuda:1").expand(2, 1, 3, 3)
    with torch.cuda.device(0):
        made = memformer_stack(z, q, backend="cuda")
        (grad,) = torch.autograd.grad(made.sum(), z)
        assert torch.cuda.current_device() == 0
    assert made.device == grad.device == z.device
    assert relative_error(made, memformer_stack(z, q, backend="torch")) < 1e-5


@on_nvidia_alone
def test_results_do_not_depend_on_what_memory_held() -> None:
    """Scratch memory is not cleared: after NaN has filled and left torch's cache, the bits are the same."""
    case = NVIDIA.moved(make_case(structure="block", width=6, tokens=21, tasks=3000))
    expected = results(public("cuda", "gram"), case.to(torch.float32))
    filled = [torch.full((2**20,), torch.nan, device="cuda") for _ in range(64)]
    del filled
    for name, value in results(public("cuda", "gram"), case.to(torch.float32)).items():
        assert torch.equal(value, expected[name])


@on_nvidia_alone
def test_tensors_on_the_cpu_are_refused() -> None:
    with pytest.raises(RuntimeError, match="backend='cuda' serves tensors on CUDA GPUs"):
        memformer_stack(torch.zeros(2, 3, 4), torch.zeros(1, 1, 3, 3), backend="cuda")


@on_nvidia_alone
def test_compiled_callers_see_one_graph() -> None:
    q = -0.3 * torch.eye(5, device="cuda").expand(2, 1, 5, 5)
    compiled = torch.compile(lambda z: memformer_predict(z, q, backend="cuda").square().sum(), fullgraph=True)
    for batch in (64, 8192, 1_000_000):
        z = NVIDIA.draw(batch, 21, 6)
        assert relative_error(compiled(z), memformer_predict(z, q, backend="torch").square().sum()) < 1e-5
