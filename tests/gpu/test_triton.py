"""The Triton backend on an NVIDIA GPU: error budgets, half precision, large batches, graphs, devices, repeatability."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from memformer_kernels import lfom_solve, memformer_layer, memformer_loss, memformer_predict, memformer_stack
from memformer_kernels.backends.triton import TritonBackend
from memformer_kernels.testing import Case, float64_violations, public, relative_error, twin_violations
from tests.memformer_kernels.cases import RULES, make_case, normal, seeded

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no NVIDIA GPU that torch can use"),
]

SIZES = (1, 2, 3, 7, 8, 15, 16, 17, 33, 64, 100, 128)
ALGORITHMS = ("gram", "token")


@pytest.fixture(autouse=True)
def _compiled() -> None:
    pytest.importorskip("triton", reason="triton is not installed: pip install 'memformer_kernels[triton]'")
    from memformer_kernels.kernels.launch import interpreted

    if interpreted():
        pytest.skip("TRITON_INTERPRET=1 interprets kernels on the CPU: unset it to run them on the GPU")


def _moved(case: Case) -> Case:
    tensors = {name: value.cuda() for name, value in vars(case).items() if isinstance(value, Tensor)}
    return Case(**{**vars(case), **tensors})


def _random(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    generator = torch.Generator("cuda").manual_seed(seed)
    return torch.randn(shape, generator=generator, device="cuda", dtype=dtype)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("structure", ["response-only", "block", "dense"])
@pytest.mark.parametrize("width", [size for size in SIZES if size > 1])
def test_every_width(width: int, structure: str, algorithm: str) -> None:
    """Gradients too, at every tile size: a miscompiled product of transposed tiles would show here."""
    case = _moved(make_case(structure=structure, width=width, tokens=40, layers=2, heads=2, tasks=5))
    assert float64_violations(public("triton", algorithm), case) == {}
    assert twin_violations(public("triton", algorithm), case) == {}


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("tokens", SIZES)
def test_every_number_of_tokens(tokens: int, algorithm: str) -> None:
    case = _moved(make_case(tokens=tokens, context=max(tokens - 1, 1), width=17, layers=2, tasks=5))
    assert float64_violations(public("triton", algorithm), case) == {}


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("width", [6, 33])
def test_every_rule_is_within_the_twin_budget(rule: str, width: int) -> None:
    case = _moved(make_case(rule=rule, structure="block", width=width, tokens=48, layers=4, tasks=1024))
    assert twin_violations(public("triton", "gram"), case) == {}


@pytest.mark.parametrize(("width", "tokens", "tasks"), [(6, 21, 4096), (64, 512, 256), (128, 2048, 64)])
def test_the_headline_sizes_are_within_the_twin_budget(width: int, tokens: int, tasks: int) -> None:
    case = make_case(
        structure="response-only", width=width, tokens=tokens, tasks=tasks, layers=4, heads=1, context=tokens - 1
    )
    target = normal(seeded(1), tasks, 1)
    with_target = Case(**{**vars(case), "target": target})
    assert twin_violations(public("triton", "gram"), _moved(with_target)) == {}


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize(("structure", "algorithm"), [("response-only", "gram"), ("block", "gram"), ("block", "token")])
@pytest.mark.parametrize("width", [6, 64])
def test_half_precision_tokens(width: int, structure: str, algorithm: str, dtype: torch.dtype) -> None:
    case = _moved(make_case(structure=structure, width=width, tokens=40, layers=3, heads=1, tasks=32))
    half = case.z.to(dtype)
    parameters = [None if x is None else x.float().requires_grad_() for x in (case.q, *case.parameters)]
    leaves = [x for x in parameters if x is not None]

    def run(backend: str) -> tuple[Tensor, ...]:
        z = half.clone().requires_grad_()
        options: dict[str, Any] = {"backend": backend, "algorithm": algorithm}
        tokens = memformer_stack(z, *parameters, **options)  # type: ignore[arg-type]
        assert tokens.dtype == dtype
        predictions = memformer_predict(z, *parameters, **options)  # type: ignore[arg-type]
        total = tokens.float().sum() + predictions.square().sum()
        return tokens.detach(), predictions.detach(), *torch.autograd.grad(total, [z, *leaves])

    tolerance = 4 * torch.finfo(dtype).eps
    for made, expected in zip(run("triton"), run("torch"), strict=True):
        assert made.dtype == expected.dtype
        assert relative_error(made, expected) < tolerance


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("batch", [65_536, 1_000_003])
def test_large_batches_equal_their_chunks(batch: int, algorithm: str) -> None:
    z, q = _random(batch, 21, 6), -0.3 * torch.eye(5, device="cuda").expand(4, 1, 5, 5)
    run = TritonBackend()
    whole = memformer_stack(z, q, backend="triton", algorithm=algorithm)
    parts = [memformer_stack(part, q, backend="triton", algorithm=algorithm) for part in z.split(10_000)]
    assert torch.equal(whole, torch.cat(parts))
    grams = torch.cat([run.context_gram(part, None, 20) for part in z.split(10_000)])
    assert relative_error(run.context_gram(z, None, 20), grams) < 1e-6


def test_offsets_past_two_to_the_31() -> None:
    """2^31 + 2^16 numbers of tokens: the last tasks lie past what 32 bits address."""
    batch = 2**25 + 1024
    z = torch.zeros(batch, 8, 8, device="cuda", dtype=torch.float16)
    assert z.numel() > 2**31
    z[-3:] = _random(3, 8, 8).half()
    q = -0.3 * torch.eye(7, device="cuda").expand(2, 1, 7, 7)
    made = memformer_predict(z, q, backend="triton")
    assert torch.equal(made[-3:], memformer_predict(z[-3:].clone(), q, backend="triton"))
    assert not made[:-3].any()


def _losses() -> dict[str, Callable[[], tuple[Tensor, ...]]]:
    made: dict[str, Callable[[], tuple[Tensor, ...]]] = {}
    for width, tokens, tasks in ((6, 21, 5000), (64, 100, 200)):
        z, target = _random(tasks, tokens, width), _random(tasks, 1, seed=1)
        q = (-0.05 * _random(3, 1, width - 1, width - 1, seed=2)).requires_grad_()
        gamma = (0.3 * _random(3, 3, 1, 1, width, seed=3)).requires_grad_()
        for p in (None, (0.05 * _random(3, 1, width - 1, width - 1, seed=4)).requires_grad_()):

            def run(
                z: Tensor = z, target: Tensor = target, q: Tensor = q, p: Tensor | None = p, gamma: Tensor = gamma
            ) -> tuple[Tensor, ...]:
                loss = memformer_loss(z, target, q, p, gamma, backend="triton")
                return loss.detach(), *torch.autograd.grad(loss, [x for x in (q, p, gamma) if x is not None])

            made[f"D={width}, {'response-only' if p is None else 'block'}"] = run
    return made


@pytest.mark.parametrize("name", ["D=6, response-only", "D=6, block", "D=64, response-only", "D=64, block"])
def test_thirty_runs_give_the_same_bits(name: str) -> None:
    run = _losses()[name]
    first = run()
    for _ in range(29):
        for once, again in zip(first, run(), strict=True):
            assert torch.equal(once, again)


@pytest.mark.parametrize("name", ["D=6, response-only", "D=64, block"])
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


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="one GPU alone: none can be the wrong one")
def test_the_current_device_may_be_another() -> None:
    z = torch.randn(7, 9, 4, device="cuda:1", requires_grad=True)
    q = -0.3 * torch.eye(3, device="cuda:1").expand(2, 1, 3, 3)
    with torch.cuda.device(0):
        made = memformer_stack(z, q, backend="triton")
        (grad,) = torch.autograd.grad(made.sum(), z)
    assert made.device == grad.device == z.device
    assert relative_error(made, memformer_stack(z, q, backend="torch")) < 1e-5


def test_the_other_operations() -> None:
    generator = seeded(2)
    z, q, past = (normal(generator, *shape).cuda() for shape in ((6, 40, 33), (1, 33, 33), (6, 1, 40, 33)))
    gamma = normal(generator, 2, 1, 1, 33).cuda()
    h, b, a = (normal(generator, *shape).cuda() / 6 for shape in ((9, 33, 33), (9, 33), (3, 33, 33)))
    leaves = [x.requires_grad_() for x in (z, q, past, gamma, h, b, a)]

    def run(backend: str) -> tuple[Tensor, ...]:
        moved, register = memformer_layer(z, q / 33, q / 6, [past], gamma, gamma[0], context=30, backend=backend)
        weights = lfom_solve(h, b, a, layers=True, backend=backend)
        total = moved.square().sum() + register.sin().sum() + weights.square().sum()
        return moved.detach(), register.detach(), weights.detach(), *torch.autograd.grad(total, leaves)

    for made, expected in zip(run("triton"), run("torch"), strict=True):
        assert relative_error(made, expected) < 1e-10


def test_tensors_on_the_cpu_are_refused() -> None:
    with pytest.raises(RuntimeError, match="TRITON_INTERPRET=1"):
        memformer_stack(torch.zeros(2, 3, 4), torch.zeros(1, 1, 3, 3), backend="triton")


@pytest.mark.parametrize("sizes", [(64, 8192), (1_000_000,)])
def test_compiled_callers_see_one_graph(sizes: tuple[int, ...]) -> None:
    q = -0.3 * torch.eye(5, device="cuda").expand(2, 1, 5, 5)
    compiled = torch.compile(lambda z: memformer_predict(z, q, backend="triton").square().sum(), fullgraph=True)
    for batch in sizes:
        z = _random(batch, 21, 6)
        assert relative_error(compiled(z), memformer_predict(z, q, backend="torch").square().sum()) < 1e-5
