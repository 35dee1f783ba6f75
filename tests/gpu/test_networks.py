"""What both GPU backends compute: error budgets at all sizes and rules, half precision, layouts, padding.

A virtual GPU takes smaller sizes. The contract's own tests run on an NVIDIA GPU too: see
tests/memformer_kernels/conftest.py.
"""

from dataclasses import replace
from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor

from memformer_kernels import context_gram, memformer_loss, memformer_predict, memformer_stack
from memformer_kernels.calls.limits import TINY_TOKENS
from memformer_kernels.testing import Case, float64_violations, public, relative_error, twin_violations
from tests.gpu.calls import CUDA_WIDTHS, assert_budget, assert_equal, assert_losses, losses, others, with_target
from tests.gpu.gpus import ALGORITHMS, STRUCTURES, Gpu, by_backend
from tests.marks import slow_but
from tests.memformer_kernels.cases import RULES, make_case, normal, seeded
from tests.memformer_kernels.layouts import LAYOUTS

SIZES = (1, 2, 3, 7, 8, 15, 16, 17, 33, 64, 100, 128)
"""Below, at and beyond the sizes of tiles."""


@by_backend("width,structure,algorithm", cuda=CUDA_WIDTHS, triton=product(SIZES[1:], STRUCTURES, ALGORITHMS))
def test_every_width(gpu: Gpu, width: int, structure: str, algorithm: str) -> None:
    """Gradients too, at every tile size: a miscompiled product of transposed tiles would show here."""
    tokens, layers, tasks = gpu.size(40, 7, 40), gpu.size(3, 3, 2), gpu.size(133, 3, 5)
    case = gpu.moved(make_case(structure=structure, width=width, tokens=tokens, layers=layers, heads=2, tasks=tasks))
    assert float64_violations(public(gpu.backend, algorithm), case) == {}
    assert twin_violations(public(gpu.backend, algorithm), case, gpu.orders) == {}


@by_backend("width", cuda=(6,), triton=(17,))
@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("tokens", slow_but((1, 7, 33), SIZES))
def test_every_number_of_tokens(gpu: Gpu, width: int, algorithm: str, tokens: int) -> None:
    tasks = gpu.size(37, 3, 5)
    case = gpu.moved(make_case(tokens=tokens, context=max(tokens - 1, 1), width=width, layers=2, tasks=tasks))
    assert float64_violations(public(gpu.backend, algorithm), case) == {}


@by_backend(
    "rule,structure,algorithm,width",
    cuda=slow_but(
        lambda rule, structure, *_: rule in ("recursive", "lfom") and structure == "block",
        product(RULES, STRUCTURES, ALGORITHMS, (6,)),
    ),
    triton=product(RULES, ("block",), ("gram",), (6, 17)),
)
def test_every_rule_is_within_the_twin_budget(gpu: Gpu, rule: str, structure: str, algorithm: str, width: int) -> None:
    tokens, tasks = gpu.size(48, 9, 48), gpu.size(1024, 12, 24)
    case = gpu.moved(make_case(rule=rule, structure=structure, width=width, tokens=tokens, layers=4, tasks=tasks))
    assert twin_violations(public(gpu.backend, algorithm), case, gpu.orders) == {}


@by_backend(
    "width,tokens,tasks,algorithm,granularity",
    cuda=[(6, 21, 4096, "gram", "feature"), (6, 21, 4096, "token", "full")],
    triton=[
        (6, 21, 4096, "gram", "feature"),
        (65, 512, 256, "gram", "feature"),
        (129, 2048, 64, "gram", "feature"),
    ],
)
def test_the_headline_workloads_are_within_the_twin_budget(
    gpu: Gpu, width: int, tokens: int, tasks: int, algorithm: str, granularity: str
) -> None:
    tasks, tokens = gpu.size(tasks, 40, 3), gpu.size(tokens, tokens, min(tokens, 100))
    sizes = {"width": width, "tokens": tokens, "tasks": tasks, "layers": 4, "heads": 1}
    case = make_case(structure="response-only", granularity=granularity, **sizes)
    with_answers = gpu.moved(with_target(case, 1))
    assert twin_violations(public(gpu.backend, algorithm), with_answers, gpu.orders) == {}


@by_backend(
    "structure,algorithm,width",
    cuda=product(("response-only", "block"), ALGORITHMS, (6,)),
    triton=[
        (structure, algorithm, width)
        for structure, algorithm in (("response-only", "gram"), ("block", "gram"), ("block", "token"))
        for width in (6, 64)
    ],
)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_tokens(gpu: Gpu, structure: str, algorithm: str, width: int, dtype: torch.dtype) -> None:
    tokens, tasks = gpu.size(40, 9, 40), gpu.size(320, 3, 5)
    case = gpu.moved(make_case(structure=structure, width=width, tokens=tokens, layers=3, heads=1, tasks=tasks))
    half = case.z.to(dtype)
    parameters = [None if x is None else x.float().requires_grad_() for x in (case.q, *case.parameters)]
    leaves = [x for x in parameters if x is not None]

    def run(backend: str) -> tuple[Tensor, ...]:
        z = half.clone().requires_grad_()
        options: dict[str, Any] = {"backend": backend, "algorithm": algorithm}
        tokens = memformer_stack(z, *parameters, **options)
        assert tokens.dtype == dtype
        predictions = memformer_predict(z, *parameters, **options)
        loss = memformer_loss(z, torch.zeros_like(predictions), *parameters, **options)
        total = tokens.float().sum() + predictions.square().sum() + loss
        return tokens.detach(), predictions.detach(), *torch.autograd.grad(total, [z, *leaves])

    tolerance = 4 * torch.finfo(dtype).eps
    for made, expected in zip(run(gpu.backend), run("torch"), strict=True):
        assert made.dtype == expected.dtype
        assert relative_error(made, expected) < tolerance


@by_backend("rule,structure,width", cuda=[("lfom", "response-only", 6)], triton=[("linear", "block", 17)])
@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts(gpu: Gpu, rule: str, structure: str, width: int, algorithm: str, layout: str) -> None:
    """Tensors of any strides, each in memory that ends where it ends."""
    sizes = {"tasks": gpu.size(1000, 5), "tokens": 21, "width": width, "layers": 2, "heads": 1}
    case = make_case(rule=rule, structure=structure, **sizes)
    single = gpu.moved(with_target(case, 1)).to(torch.float32)
    parameters = [x for x in (single.q, *single.parameters) if x is not None]
    laid = LAYOUTS[layout](single.z.detach())

    def run(tokens: Tensor) -> list[Tensor]:
        tokens = tokens.detach().requires_grad_()
        options: dict[str, Any] = {"backend": gpu.backend, "algorithm": algorithm}
        loss = memformer_loss(tokens, single.target, single.q, *single.parameters, **options)
        made = memformer_stack(tokens, single.q, *single.parameters, **options)
        return [loss.detach(), made.detach(), *torch.autograd.grad(loss + made[:, ::2].sum(), [tokens, *parameters])]

    for made, expected in zip(run(laid), run(laid.contiguous().clone()), strict=True):
        assert relative_error(made, expected) < 1e-6


@by_backend(
    "width,structure,tokens,algorithm",
    cuda=slow_but(
        lambda width, structure, tokens, algorithm: structure == "block" and tokens == 9,
        (
            (6, structure, tokens, algorithm)
            for structure, tokens, algorithm in product(STRUCTURES, (9, 101, 150), ALGORITHMS)
            if tokens <= TINY_TOKENS or algorithm == "gram"
        ),
    ),
    triton=product((17,), ("response-only", "block"), (40,), ALGORITHMS),
)
def test_ragged_contexts_and_padding(gpu: Gpu, width: int, structure: str, tokens: int, algorithm: str) -> None:
    tasks, heads = gpu.size(300, 6), 2 if gpu.backend == "cuda" else 1
    case = make_case(structure=structure, width=width, tokens=tokens, tasks=tasks, heads=heads, layers=3)
    lengths = torch.randint(1, tokens - 1, (tasks,), generator=seeded(4))
    ragged = gpu.moved(replace(case, context=lengths, queries=1, target=normal(seeded(5), tasks, 1)))
    assert float64_violations(public(gpu.backend, algorithm), ragged) == {}
    assert_losses(ragged, gpu.backend, algorithm)
    assert isinstance(ragged.context, Tensor)
    places = torch.arange(tokens, device=gpu.device)
    padding = (places >= ragged.context[:, None]) & (places < tokens - 1)
    dirty = replace(ragged, z=ragged.z.masked_fill(padding[..., None], torch.nan))

    def run(case: Case) -> list[Tensor]:
        z = case.z.detach().requires_grad_()
        options: dict[str, Any] = {"context": case.context, "queries": 1, "backend": gpu.backend}
        made = memformer_predict(z, case.q, *case.parameters, **options, algorithm=algorithm)
        (grad,) = torch.autograd.grad(made.sum(), z)
        assert not grad[padding].any()
        alone = losses(case, gpu.backend, algorithm, parameters_alone=True)
        return [made.detach(), grad, *losses(case, gpu.backend, algorithm), *alone]

    for dtype in (torch.float64, torch.float32):
        assert all(map(torch.equal, run(dirty.to(dtype)), run(ragged.to(dtype))))


def test_no_tasks_and_no_predictions(gpu: Gpu) -> None:
    q = (-0.3 * torch.eye(5, device=gpu.device)).expand(4, 1, 5, 5).clone().requires_grad_()
    gamma = torch.ones(4, 4, 1, 1, 6, device=gpu.device, requires_grad=True)
    for tasks, queries in ((0, 1), (5, 0)):
        z = torch.zeros(tasks, 21, 6, device=gpu.device, requires_grad=True)
        target = torch.zeros(tasks, queries, device=gpu.device)
        loss = memformer_loss(z, target, q, gamma=gamma, queries=queries, backend=gpu.backend)
        assert loss.isnan()
        assert not any(grad.any() for grad in torch.autograd.grad(loss, [z, q, gamma]))
    assert context_gram(torch.zeros(0, 21, 6, device=gpu.device)).shape == (0, 6, 6)


@by_backend(
    "structure,width",
    cuda=slow_but((("block", 6),), product(STRUCTURES, (6,))),
    triton=[("block", 6), ("block", 64)],
)
@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_a_task_that_is_not_finite_spoils_no_other(gpu: Gpu, structure: str, width: int, algorithm: str) -> None:
    tasks, tokens = gpu.size(2000, 40), gpu.size(21, 9, 21)
    spoiled = tasks // 2
    case = make_case(structure=structure, width=width, tokens=tokens, tasks=tasks)
    case = gpu.moved(case).to(torch.float32)
    others = torch.arange(tasks, device=gpu.device) != spoiled

    def run(z: Tensor) -> tuple[Tensor, Tensor]:
        z = z.detach().requires_grad_()
        made = memformer_predict(z, case.q, *case.parameters, backend=gpu.backend, algorithm=algorithm)
        return made.detach(), torch.autograd.grad(made.sum(), z)[0]

    clean, z = run(case.z), case.z.detach().clone()
    z[spoiled, 3, 2] = torch.inf
    spoilt = run(z)
    assert not spoilt[0][spoiled].isfinite().any()
    assert not spoilt[1][spoiled].isfinite().all()
    for made, expected in zip(spoilt, clean, strict=True):
        assert torch.equal(made[others], expected[others])


@by_backend("width", cuda=slow_but((6,), (2, 3, 5, 6, 9, 16)), triton=(33,))
def test_the_other_operations(gpu: Gpu, width: int) -> None:
    sizes: dict[str, Any] = {"device": gpu.device, "tasks": gpu.size(60, 5), "tokens": gpu.size(40, 9, 40)}
    exact = others(width, "torch", **sizes)
    assert_equal(others(width, gpu.backend, **sizes), exact)
    single, twin = (others(width, backend, torch.float32, **sizes) for backend in (gpu.backend, "torch"))
    assert_budget(single, twin, exact)
