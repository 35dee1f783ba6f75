"""The CUDA library on an NVIDIA GPU: error budgets, half precision, large batches, layouts, graphs, repeatability.

The contract's own tests run on it too, where there is a GPU: see tests/memformer_kernels/conftest.py.
"""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from memformer_kernels import (
    build,
    context_gram,
    explain,
    lfom_solve,
    memformer_layer,
    memformer_loss,
    memformer_predict,
    memformer_stack,
)
from memformer_kernels.testing import Case, float64_violations, public, relative_error, results, twin_violations
from tests.memformer_kernels.cases import RULES, make_case, normal, seeded
from tests.memformer_kernels.layouts import LAYOUTS

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no NVIDIA GPU that torch can use"),
    pytest.mark.skipif(not build.available("cuda"), reason=build.build_info().backends["cuda"].reason),
]

ALGORITHMS = ("gram", "token")
STRUCTURES = ("response-only", "block", "dense")


def _moved(case: Case) -> Case:
    tensors = {name: value.cuda() for name, value in vars(case).items() if isinstance(value, Tensor)}
    return Case(**{**vars(case), **tensors})


def _random(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    generator = torch.Generator("cuda").manual_seed(seed)
    return torch.randn(shape, generator=generator, device="cuda", dtype=dtype)


def _parameters(width: int, layers: int, token_axis: bool = False, tokens: int = 21) -> tuple[Tensor, Tensor]:
    """q and gamma, with gradients, of a stable response-only network."""
    q = -0.05 * torch.eye(width - 1, device="cuda") + 0.01 * _random(layers, 1, width - 1, width - 1, seed=2)
    gamma = 0.3 * _random(layers, layers, 1, tokens if token_axis else 1, width, seed=3)
    return q.requires_grad_(), gamma.requires_grad_()


def test_auto_takes_it() -> None:
    assert explain(_random(2, 21, 6), torch.zeros(4, 1, 5, 5, device="cuda")).backend == "cuda"


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("structure", STRUCTURES)
@pytest.mark.parametrize("width", range(2, 18))
def test_every_width(width: int, structure: str, algorithm: str) -> None:
    if width == 17 and (structure, algorithm) != ("response-only", "gram"):
        pytest.skip("wider than the tiny regime")
    case = _moved(make_case(structure=structure, width=width, tokens=40, layers=3, heads=2, tasks=133))
    assert float64_violations(public("cuda", algorithm), case) == {}
    assert twin_violations(public("cuda", algorithm), case) == {}


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("tokens", [1, 2, 3, 7, 8, 15, 16, 17, 33, 100, 128])
def test_every_number_of_tokens(tokens: int, algorithm: str) -> None:
    case = _moved(make_case(tokens=tokens, context=max(tokens - 1, 1), width=6, layers=2, tasks=37))
    assert float64_violations(public("cuda", algorithm), case) == {}


@pytest.mark.parametrize("tokens", [129, 1000])
def test_long_contexts_in_gram_space(tokens: int) -> None:
    for structure in STRUCTURES:
        case = _moved(make_case(structure=structure, tokens=tokens, width=6, layers=2, tasks=9))
        assert float64_violations(public("cuda", "gram"), case) == {}


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("rule", RULES)
def test_every_rule_is_within_the_twin_budget(rule: str, algorithm: str) -> None:
    case = _moved(make_case(rule=rule, structure="block", width=6, tokens=21, layers=4, tasks=1024))
    assert twin_violations(public("cuda", algorithm), case) == {}


@pytest.mark.parametrize(("layers", "heads"), [(1, 1), (12, 1), (32, 1), (4, 8), (12, 3)])
def test_any_depth_and_number_of_heads(layers: int, heads: int) -> None:
    for structure in STRUCTURES:
        case = _moved(make_case(structure=structure, width=6, tokens=21, layers=layers, heads=heads, tasks=40))
        for algorithm in ALGORITHMS:
            assert float64_violations(public("cuda", algorithm), case) == {}


@pytest.mark.parametrize(("algorithm", "granularity"), [("gram", "feature"), ("token", "full")])
def test_the_headline_workloads_are_within_the_twin_budget(algorithm: str, granularity: str) -> None:
    case = make_case(
        structure="response-only",
        granularity=granularity,
        width=6,
        tokens=21,
        tasks=4096,
        layers=4,
        heads=1,
        context=20,
    )
    with_target = Case(**{**vars(case), "target": normal(seeded(1), 4096, 1)})
    assert twin_violations(public("cuda", algorithm), _moved(with_target)) == {}


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize(("structure", "algorithm"), [("response-only", "gram"), ("block", "gram"), ("block", "token")])
def test_half_precision_tokens(structure: str, algorithm: str, dtype: torch.dtype) -> None:
    case = _moved(make_case(structure=structure, width=6, tokens=40, layers=3, heads=1, tasks=320))
    half = case.z.to(dtype)
    parameters = [None if x is None else x.float().requires_grad_() for x in (case.q, *case.parameters)]
    leaves = [x for x in parameters if x is not None]

    def run(backend: str) -> tuple[Tensor, ...]:
        z = half.clone().requires_grad_()
        options: dict[str, Any] = {"backend": backend, "algorithm": algorithm}
        tokens = memformer_stack(z, *parameters, **options)
        assert tokens.dtype == dtype
        predictions = memformer_predict(z, *parameters, **options)
        total = tokens.float().sum() + predictions.square().sum()
        return tokens.detach(), predictions.detach(), *torch.autograd.grad(total, [z, *leaves])

    tolerance = 4 * torch.finfo(dtype).eps
    for made, expected in zip(run("cuda"), run("torch"), strict=True):
        assert made.dtype == expected.dtype
        assert relative_error(made, expected) < tolerance


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("batch", [1, 31, 33, 1023, 1025, 65_536, 1_000_003])
def test_every_batch_equals_its_chunks(batch: int, algorithm: str) -> None:
    z, (q, gamma) = _random(batch, 21, 6), _parameters(6, 4)
    with torch.no_grad():
        whole = memformer_stack(z, q, gamma=gamma, backend="cuda", algorithm=algorithm)
        chunks = z.split(10_007)
        parts = [memformer_stack(part, q, gamma=gamma, backend="cuda", algorithm=algorithm) for part in chunks]
    assert torch.equal(whole, torch.cat(parts))
    assert torch.equal(context_gram(z, 20), torch.cat([context_gram(part, 20) for part in chunks]))


@pytest.mark.parametrize("token_axis", [False, True])
@pytest.mark.parametrize("batch", [65_536, 1_000_003])
def test_losses_of_large_batches_are_the_means_of_their_parts(batch: int, token_axis: bool) -> None:
    z, target = 0.5 * _random(batch, 21, 6), _random(batch, 1, seed=1)
    q, gamma = _parameters(6, 4, token_axis)

    def run(z: Tensor, target: Tensor, dtype: torch.dtype, backend: str) -> list[Tensor]:
        parameters = [x.detach().to(dtype).requires_grad_() for x in (q, gamma)]
        loss = memformer_loss(z.to(dtype), target.to(dtype), parameters[0], gamma=parameters[1], backend=backend)
        return [loss.detach(), *torch.autograd.grad(loss, parameters)]

    exact = [torch.zeros_like(x, dtype=torch.float64) for x in (z.new_empty(()), q, gamma)]
    for part, answer in zip(z.split(50_000), target.split(50_000), strict=True):
        for total, share in zip(exact, run(part, answer, torch.float64, "torch"), strict=True):
            total += share * (len(part) / batch)
    for made, expected in zip(run(z, target, torch.float32, "cuda"), exact, strict=True):
        assert relative_error(made, expected) < 1e-5


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_offsets_past_two_to_the_31(algorithm: str) -> None:
    """2^31 + 2^16 numbers of tokens: the last tasks lie past what 32 bits address; gradients of tokens too."""
    batch = 2**25 + 1024
    z = torch.zeros(batch, 8, 8, device="cuda", dtype=torch.float16)
    assert z.numel() > 2**31
    z[-3:] = _random(3, 8, 8).half()
    q = -0.3 * torch.eye(7, device="cuda").expand(2, 1, 7, 7)
    options: dict[str, Any] = {"backend": "cuda", "algorithm": algorithm}
    made = memformer_predict(z, q, **options)
    assert torch.equal(made[-3:], memformer_predict(z[-3:].clone(), q, **options))
    assert not made[:-3].any()
    last = z[-3:].clone().requires_grad_()
    z.requires_grad_()
    (grad,) = torch.autograd.grad(memformer_predict(z, q, **options).sum(), z)
    (expected,) = torch.autograd.grad(memformer_predict(last, q, **options).sum(), last)
    assert torch.equal(grad[-3:], expected)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts(layout: str, algorithm: str) -> None:
    z, target, (q, gamma) = 0.5 * _random(1000, 21, 6), _random(1000, 1, seed=1), _parameters(6, 4)
    laid = LAYOUTS[layout](z)
    plain = laid.contiguous().clone()

    def run(tokens: Tensor) -> list[Tensor]:
        tokens = tokens.detach().requires_grad_()
        loss = memformer_loss(tokens, target, q, gamma=gamma, backend="cuda", algorithm=algorithm)
        made = memformer_stack(tokens, q, gamma=gamma, backend="cuda", algorithm=algorithm)
        return [loss.detach(), made.detach(), *torch.autograd.grad(loss + made[:, ::2].sum(), [tokens, q, gamma])]

    for made, expected in zip(run(laid), run(plain), strict=True):
        assert relative_error(made, expected) < 1e-6


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("structure", STRUCTURES)
def test_ragged_contexts_and_padding(structure: str, algorithm: str) -> None:
    case = make_case(structure=structure, width=6, tokens=21, tasks=300)
    lengths = torch.randint(1, 20, (300,), generator=seeded(4))
    ragged = _moved(Case(**{**vars(case), "context": lengths, "queries": 1, "target": normal(seeded(5), 300, 1)}))
    assert float64_violations(public("cuda", algorithm), ragged) == {}
    z, places = ragged.z.clone(), torch.arange(21, device="cuda")
    assert isinstance(ragged.context, Tensor)
    z[(places >= ragged.context[:, None]) & (places < 20)] = torch.nan
    options: dict[str, Any] = {"context": ragged.context, "queries": 1, "backend": "cuda", "algorithm": algorithm}
    clean, dirty = ragged.z.clone().requires_grad_(), z.requires_grad_()
    expected = memformer_predict(clean, ragged.q, ragged.p, **options)
    made = memformer_predict(dirty, ragged.q, ragged.p, **options)
    assert torch.equal(made, expected)
    (exact,), (grad,) = torch.autograd.grad(expected.sum(), clean), torch.autograd.grad(made.sum(), dirty)
    assert torch.equal(grad, exact)


def test_no_tasks_and_no_predictions() -> None:
    q, gamma = _parameters(6, 4)
    for tasks, queries in ((0, 1), (5, 0)):
        z = torch.zeros(tasks, 21, 6, device="cuda", requires_grad=True)
        target = torch.zeros(tasks, queries, device="cuda")
        loss = memformer_loss(z, target, q, gamma=gamma, queries=queries, backend="cuda")
        assert loss.isnan()
        assert not any(grad.any() for grad in torch.autograd.grad(loss, [z, q, gamma]))
    assert context_gram(torch.zeros(0, 21, 6, device="cuda")).shape == (0, 6, 6)


def test_a_task_that_is_not_finite_spoils_no_other() -> None:
    z, (q, gamma) = 0.5 * _random(2000, 21, 6), _parameters(6, 4)
    clean = memformer_predict(z, q, gamma=gamma, backend="cuda")
    z[777, 3, 2] = torch.inf
    made = memformer_predict(z, q, gamma=gamma, backend="cuda")
    assert not made[777].isfinite().any()
    others = torch.arange(2000, device="cuda") != 777
    assert torch.equal(made[others], clean[others])


def _losses() -> dict[str, Callable[[], tuple[Tensor, ...]]]:
    made: dict[str, Callable[[], tuple[Tensor, ...]]] = {}
    for width in (6, 12):
        z, target = 0.5 * _random(100_003, 21, width), _random(100_003, 1, seed=1)
        p = (0.05 * _random(3, 1, width - 1, width - 1, seed=4)).requires_grad_()
        for name, chosen, token_axis in (
            ("response-only", None, False),
            ("block", p, False),
            ("tokens", None, True),
            ("block, tokens", p, True),
        ):
            q, gamma = _parameters(width, 3, token_axis)

            def run(
                z: Tensor = z, target: Tensor = target, q: Tensor = q, p: Tensor | None = chosen, gamma: Tensor = gamma
            ) -> tuple[Tensor, ...]:
                loss = memformer_loss(z, target, q, p, gamma, backend="cuda")
                return loss.detach(), *torch.autograd.grad(loss, [x for x in (q, p, gamma) if x is not None])

            made[f"D={width}, {name}"] = run
    return made


LOSSES = [f"D={width}, {name}" for width in (6, 12) for name in ("response-only", "block", "tokens", "block, tokens")]


@pytest.mark.parametrize("name", LOSSES)
def test_thirty_runs_give_the_same_bits(name: str) -> None:
    run = _losses()[name]
    first = run()
    for _ in range(29):
        for once, again in zip(first, run(), strict=True):
            assert torch.equal(once, again)


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


def test_calls_wait_for_nothing() -> None:
    run = _losses()["D=6, response-only"]
    run()
    torch.cuda.set_sync_debug_mode("error")
    try:
        run()
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_work_is_on_the_current_stream() -> None:
    z, (q, gamma) = 0.5 * _random(500_000, 21, 6), _parameters(6, 4)
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


@pytest.mark.parametrize("width", [3, 6, 9, 16])
def test_the_other_operations(width: int) -> None:
    generator = seeded(2)
    d, shapes = width, ((60, 40, width), (1, width, width), (60, 1, 40, width), (2, 1, 1, width))
    z, q, past, gamma = (normal(generator, *shape).cuda() for shape in shapes)
    h, b, a = (normal(generator, *shape).cuda() / 6 for shape in ((99, d, d), (99, d), (3, d, d)))
    weights, start = normal(generator, 3, 3, d).cuda(), normal(generator, 99, d).cuda()
    leaves = [x.requires_grad_() for x in (z, q, past, gamma, h, b, a, weights, start)]

    def run(backend: str) -> tuple[Tensor, ...]:
        moved, register = memformer_layer(z, q / 33, q / 6, [past], gamma, gamma[0], context=30, backend=backend)
        found = lfom_solve(h, b, a, weights, w0=start, layers=True, backend=backend)
        total = moved.square().sum() + register.sin().sum() + found.square().sum()
        return moved.detach(), register.detach(), found.detach(), *torch.autograd.grad(total, leaves)

    for made, expected in zip(run("cuda"), run("torch"), strict=True):
        assert relative_error(made, expected) < 1e-10


def test_gram_matrices_and_their_gradients() -> None:
    for tokens, width in ((21, 6), (500, 6), (40, 16), (3, 2)):
        z = _random(1000, tokens, width, dtype=torch.float64).requires_grad_()
        assert explain(z).backend == "cuda"
        made = context_gram(z, tokens - 1)
        exact = z[:, :-1].mT @ z[:, :-1]
        assert relative_error(made, exact) < 1e-14
        (grad,), (expected,) = (torch.autograd.grad(x.sin().sum(), z) for x in (made, exact))
        assert relative_error(grad, expected) < 1e-10


def test_results_do_not_depend_on_what_memory_held() -> None:
    """Scratch memory is not cleared: after NaN has filled and left torch's cache, the bits are the same."""
    case = _moved(make_case(structure="block", width=6, tokens=21, tasks=3000))
    expected = results(public("cuda", "gram"), case.to(torch.float32))
    filled = [torch.full((2**20,), torch.nan, device="cuda") for _ in range(64)]
    del filled
    for name, value in results(public("cuda", "gram"), case.to(torch.float32)).items():
        assert torch.equal(value, expected[name])


def test_tensors_on_the_cpu_are_refused() -> None:
    with pytest.raises(RuntimeError, match="backend='cuda' serves tensors on CUDA GPUs"):
        memformer_stack(torch.zeros(2, 3, 4), torch.zeros(1, 1, 3, 3), backend="cuda")


def test_compiled_callers_see_one_graph() -> None:
    q = -0.3 * torch.eye(5, device="cuda").expand(2, 1, 5, 5)
    compiled = torch.compile(lambda z: memformer_predict(z, q, backend="cuda").square().sum(), fullgraph=True)
    for batch in (64, 8192, 1_000_000):
        z = _random(batch, 21, 6)
        assert relative_error(compiled(z), memformer_predict(z, q, backend="torch").square().sum()) < 1e-5
