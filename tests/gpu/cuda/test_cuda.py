"""What the CUDA library computes on a GPU: error budgets, half precision, sizes, layouts, padding.

A virtual GPU takes fewer tasks. The contract's own tests run on an NVIDIA GPU too: see
tests/memformer_kernels/conftest.py.
"""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from memformer_kernels import context_gram, explain, memformer_layer, memformer_loss, memformer_predict, memformer_stack
from memformer_kernels.testing import Case, float64_violations, public, relative_error, twin_violations
from tests.gpu.cuda.calls import assert_budget, assert_equal, assert_losses, losses, others, with_target
from tests.gpu.cuda.gpus import ALGORITHMS, STRUCTURES
from tests.gpu.tensors import Gpu, slow_but
from tests.memformer_kernels.cases import RULES, make_case, normal, seeded
from tests.memformer_kernels.layouts import LAYOUTS

WIDTHS = tuple(range(2, 18))


def test_auto_takes_it(gpu: Gpu) -> None:
    assert explain(gpu.draw(2, 21, 6), torch.zeros(4, 1, 5, 5, device=gpu.device)).backend == "cuda"
    assert explain(gpu.draw(2, 21, 6)).backend == "cuda"


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("structure", STRUCTURES)
@pytest.mark.parametrize("width", slow_but((4,), WIDTHS))
def test_every_width(width: int, structure: str, algorithm: str, gpu: Gpu) -> None:
    if width == 17 and (structure, algorithm) != ("response-only", "gram"):
        pytest.skip("wider than the tiny regime")
    tokens, tasks = gpu.size(40, 7), gpu.size(133, 3)
    case = gpu.moved(make_case(structure=structure, width=width, tokens=tokens, layers=3, heads=2, tasks=tasks))
    assert float64_violations(public("cuda", algorithm), case) == {}
    assert twin_violations(public("cuda", algorithm), case) == {}


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("structure", STRUCTURES)
@pytest.mark.parametrize("width", slow_but((6,), WIDTHS))
def test_losses_of_every_width(width: int, structure: str, algorithm: str, gpu: Gpu) -> None:
    if width == 17 and (structure, algorithm) != ("response-only", "gram"):
        pytest.skip("wider than the tiny regime")
    case = make_case(structure=structure, width=width, tokens=9, layers=2, heads=1, tasks=gpu.size(133, 35))
    assert_losses(gpu.moved(with_target(case, 2)), algorithm)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("tokens", [1, 2, 3, 7, 8, 15, 16, 17, 33, 100, 128])
def test_every_number_of_tokens(tokens: int, algorithm: str, gpu: Gpu) -> None:
    tasks = gpu.size(37, 3)
    case = gpu.moved(make_case(tokens=tokens, context=max(tokens - 1, 1), width=6, layers=2, tasks=tasks))
    assert float64_violations(public("cuda", algorithm), case) == {}


@pytest.mark.parametrize("tokens", slow_but((36, 131, 132), (36, 129, 131, 132, 1000)))
def test_long_contexts_in_gram_space(tokens: int, gpu: Gpu) -> None:
    """Pieces of a context come in by bulk copies or in words, as its length and place allow, into one buffer."""
    for structure in STRUCTURES:
        tasks = gpu.size(9, 2)
        case = make_case(structure=structure, tokens=tokens, width=6, layers=2, heads=1, tasks=tasks)
        assert float64_violations(public("cuda", "gram"), gpu.moved(case)) == {}
        assert_losses(gpu.moved(with_target(case, 1)), "gram")


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("rule", RULES)
def test_every_rule_is_within_the_twin_budget(rule: str, algorithm: str, gpu: Gpu) -> None:
    tokens, tasks = gpu.size(21, 9), gpu.size(1024, 12)
    case = gpu.moved(make_case(rule=rule, structure="block", width=6, tokens=tokens, layers=4, tasks=tasks))
    assert twin_violations(public("cuda", algorithm), case) == {}


@pytest.mark.parametrize(("layers", "heads"), slow_but(((1, 1),), ((1, 1), (12, 1), (32, 1), (4, 8), (12, 3))))
def test_any_depth_and_number_of_heads(layers: int, heads: int, gpu: Gpu) -> None:
    tokens, tasks = gpu.size(21, 9), gpu.size(40, 3)
    for structure in STRUCTURES:
        case = make_case(structure=structure, width=6, tokens=tokens, layers=layers, heads=heads, tasks=tasks)
        for algorithm in ALGORITHMS:
            assert float64_violations(public("cuda", algorithm), gpu.moved(case)) == {}


@pytest.mark.parametrize(("algorithm", "granularity"), [("gram", "feature"), ("token", "full")])
def test_the_headline_workloads_are_within_the_twin_budget(algorithm: str, granularity: str, gpu: Gpu) -> None:
    tasks = gpu.size(4096, 40)
    case = make_case(
        structure="response-only",
        granularity=granularity,
        width=6,
        tokens=21,
        tasks=tasks,
        layers=4,
        heads=1,
        context=20,
    )
    with_answers = gpu.moved(replace(case, target=normal(seeded(1), tasks, 1)))
    assert twin_violations(public("cuda", algorithm), with_answers) == {}


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize(("structure", "algorithm"), [("response-only", "gram"), ("block", "gram"), ("block", "token")])
def test_half_precision_tokens(structure: str, algorithm: str, dtype: torch.dtype, gpu: Gpu) -> None:
    tokens, tasks = gpu.size(40, 9), gpu.size(320, 3)
    case = gpu.moved(make_case(structure=structure, width=6, tokens=tokens, layers=3, heads=1, tasks=tasks))
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
@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts(layout: str, algorithm: str, gpu: Gpu) -> None:
    """Tensors of any strides, each in memory that ends where it ends."""
    tasks = gpu.size(1000, 5)
    case = gpu.moved(with_target(make_case(structure="response-only", tasks=tasks, tokens=21, width=6, heads=1), 1))
    single = case.to(torch.float32)
    leaves = [single.q, single.gamma]
    laid = LAYOUTS[layout](single.z.detach())

    def run(tokens: Tensor) -> list[Tensor]:
        tokens = tokens.detach().requires_grad_()
        options: dict[str, Any] = {"gamma": single.gamma, "backend": "cuda", "algorithm": algorithm}
        loss = memformer_loss(tokens, single.target, single.q, **options)
        made = memformer_stack(tokens, single.q, **options)
        return [loss.detach(), made.detach(), *torch.autograd.grad(loss + made[:, ::2].sum(), [tokens, *leaves])]

    for made, expected in zip(run(laid), run(laid.contiguous().clone()), strict=True):
        assert relative_error(made, expected) < 1e-6


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("structure", STRUCTURES)
def test_ragged_contexts_and_padding(structure: str, algorithm: str, gpu: Gpu) -> None:
    tasks, tokens = gpu.size(300, 6), gpu.size(21, 9)
    case = make_case(structure=structure, width=6, tokens=tokens, tasks=tasks)
    lengths = torch.randint(1, tokens - 1, (tasks,), generator=seeded(4))
    ragged = gpu.moved(replace(case, context=lengths, queries=1, target=normal(seeded(5), tasks, 1)))
    assert float64_violations(public("cuda", algorithm), ragged) == {}
    assert_equal(losses(ragged, "cuda", algorithm), losses(ragged, "torch", algorithm))
    assert isinstance(ragged.context, Tensor)
    places = torch.arange(tokens, device=gpu.device)
    padding = (places >= ragged.context[:, None]) & (places < tokens - 1)
    dirty = replace(ragged, z=ragged.z.masked_fill(padding[..., None], torch.nan))

    def run(case: Case) -> list[Tensor]:
        z = case.z.detach().requires_grad_()
        options: dict[str, Any] = {"context": case.context, "queries": 1, "backend": "cuda", "algorithm": algorithm}
        made = memformer_predict(z, case.q, *case.parameters, **options)
        return [made.detach(), *torch.autograd.grad(made.sum(), z), *losses(case, "cuda", algorithm)]

    assert all(map(torch.equal, run(dirty), run(ragged)))


def test_no_tasks_and_no_predictions(gpu: Gpu) -> None:
    q = (-0.3 * torch.eye(5, device=gpu.device)).expand(4, 1, 5, 5).clone().requires_grad_()
    gamma = torch.ones(4, 4, 1, 1, 6, device=gpu.device, requires_grad=True)
    for tasks, queries in ((0, 1), (5, 0)):
        z = torch.zeros(tasks, 21, 6, device=gpu.device, requires_grad=True)
        target = torch.zeros(tasks, queries, device=gpu.device)
        loss = memformer_loss(z, target, q, gamma=gamma, queries=queries, backend="cuda")
        assert loss.isnan()
        assert not any(grad.any() for grad in torch.autograd.grad(loss, [z, q, gamma]))
    assert context_gram(torch.zeros(0, 21, 6, device=gpu.device)).shape == (0, 6, 6)


def test_a_task_that_is_not_finite_spoils_no_other(gpu: Gpu) -> None:
    tasks = gpu.size(2000, 70)
    z, q, spoiled = 0.5 * gpu.draw(tasks, 21, 6), -0.3 * torch.eye(5, device=gpu.device).expand(4, 1, 5, 5), tasks // 2
    clean = memformer_predict(z, q, backend="cuda")
    z[spoiled, 3, 2] = torch.inf
    made = memformer_predict(z, q, backend="cuda")
    assert not made[spoiled].isfinite().any()
    others = torch.arange(tasks, device=gpu.device) != spoiled
    assert torch.equal(made[others], clean[others])


@pytest.mark.parametrize("width", slow_but((5,), (2, 3, 5, 6, 9, 16)))
def test_the_other_operations(width: int, gpu: Gpu) -> None:
    sizes: dict[str, Any] = {"device": gpu.device, "tasks": gpu.size(60, 5), "tokens": gpu.size(40, 9)}
    exact = others(width, "torch", **sizes)
    assert_equal(others(width, "cuda", **sizes), exact)
    single, twin = (others(width, backend, torch.float32, **sizes) for backend in ("cuda", "torch"))
    assert_budget(single, twin, exact)


def test_a_first_layer_has_no_register_to_weigh(gpu: Gpu) -> None:
    """Its beta has a gradient nevertheless: zeros, which the host writes."""
    z, q = gpu.draw(3, 7, 4), gpu.draw(1, 4, 4, seed=1)
    beta = gpu.draw(1, 1, 4, seed=2).requires_grad_()
    moved, register = memformer_layer(z, q / 9, q / 6, [], None, beta, context=5, backend="cuda")
    (grad,) = torch.autograd.grad(moved.sum() + register.sum(), beta)
    assert not grad.any()


@pytest.mark.parametrize(("tokens", "width"), [(21, 6), (500, 6), (40, 16), (3, 2)])
def test_gram_matrices_and_their_gradients(tokens: int, width: int, gpu: Gpu) -> None:
    z = gpu.draw(gpu.size(1000, 4), tokens, width, dtype=torch.float64).requires_grad_()
    assert explain(z).backend == "cuda"
    made = context_gram(z, tokens - 1)
    exact = z[:, :-1].mT @ z[:, :-1]
    assert relative_error(made.detach(), exact.detach()) < 1e-14
    (grad,), (expected,) = (torch.autograd.grad(x.sin().sum(), z) for x in (made, exact))
    assert relative_error(grad, expected) < 1e-10
