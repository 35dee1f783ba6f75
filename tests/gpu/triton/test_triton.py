"""What the Triton backend computes on a GPU: golden files, error budgets, half precision, layouts, padding.

A virtual GPU takes smaller sizes. With MEMFORMER_TEST_TRITON=1 the contract's own tests run on an NVIDIA GPU too: see
tests/memformer_kernels/conftest.py.
"""

from typing import Any

import pytest
import torch
from torch import Tensor

from memformer_kernels import (
    lfom_solve,
    linear_attention,
    memformer_layer,
    memformer_loss,
    memformer_predict,
    memformer_stack,
    reference,
    register_update,
)
from memformer_kernels.testing import FLOAT64_ERROR, Case, float64_violations, public, relative_error, twin_violations
from tests.gpu.tensors import Gpu
from tests.gpu.triton.gpus import ALGORITHMS
from tests.memformer_kernels import golden
from tests.memformer_kernels.cases import RULES, make_case, normal, seeded
from tests.memformer_kernels.layouts import LAYOUTS

SIZES = (1, 2, 3, 7, 8, 15, 16, 17, 33, 64, 100, 128)


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


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("structure", ["response-only", "block", "dense"])
@pytest.mark.parametrize("width", [size for size in SIZES if size > 1])
def test_every_width(width: int, structure: str, algorithm: str, gpu: Gpu) -> None:
    """Gradients too, at every tile size: a miscompiled product of transposed tiles would show here."""
    case = gpu.moved(make_case(structure=structure, width=width, tokens=40, layers=2, heads=2, tasks=5))
    assert float64_violations(public("triton", algorithm), case) == {}
    assert twin_violations(public("triton", algorithm), case, gpu.size(1, 8)) == {}


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("tokens", SIZES)
def test_every_number_of_tokens(tokens: int, algorithm: str, gpu: Gpu) -> None:
    case = gpu.moved(make_case(tokens=tokens, context=max(tokens - 1, 1), width=17, layers=2, tasks=5))
    assert float64_violations(public("triton", algorithm), case) == {}


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("width", [6, 17])
def test_every_rule_is_within_the_twin_budget(rule: str, width: int, gpu: Gpu) -> None:
    case = gpu.moved(
        make_case(rule=rule, structure="block", width=width, tokens=48, layers=4, tasks=gpu.size(1024, 24))
    )
    assert twin_violations(public("triton", "gram"), case, gpu.size(1, 8)) == {}


@pytest.mark.parametrize(("width", "tokens", "tasks"), [(6, 21, 4096), (64, 512, 256), (128, 2048, 64)])
def test_the_headline_sizes_are_within_the_twin_budget(width: int, tokens: int, tasks: int, gpu: Gpu) -> None:
    tasks, tokens = gpu.size(tasks, 3), gpu.size(tokens, min(tokens, 100))
    case = make_case(
        structure="response-only", width=width, tokens=tokens, tasks=tasks, layers=4, heads=1, context=tokens - 1
    )
    target = normal(seeded(1), tasks, 1)
    with_target = Case(**{**vars(case), "target": target})
    assert twin_violations(public("triton", "gram"), gpu.moved(with_target), gpu.size(1, 8)) == {}


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize(("structure", "algorithm"), [("response-only", "gram"), ("block", "gram"), ("block", "token")])
@pytest.mark.parametrize("width", [6, 64])
def test_half_precision_tokens(width: int, structure: str, algorithm: str, dtype: torch.dtype, gpu: Gpu) -> None:
    case = gpu.moved(make_case(structure=structure, width=width, tokens=40, layers=3, heads=1, tasks=gpu.size(32, 5)))
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
@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts(layout: str, algorithm: str, gpu: Gpu) -> None:
    tasks = gpu.size(100, 5)
    z, target = 0.3 * gpu.draw(tasks, 21, 17), gpu.draw(tasks, 1, seed=1)
    q, p = (-0.05 * gpu.draw(2, 1, 16, 16, seed=seed) for seed in (2, 3))
    laid = LAYOUTS[layout](z)

    def run(tokens: Tensor) -> list[Tensor]:
        leaves = [x.detach().requires_grad_() for x in (tokens, q, p)]
        loss = memformer_loss(leaves[0], target, *leaves[1:], backend="triton", algorithm=algorithm)
        made = memformer_stack(*leaves, backend="triton", algorithm=algorithm)
        return [loss.detach(), made.detach(), *torch.autograd.grad(loss + made[:, ::2].sum(), leaves)]

    for made, expected in zip(run(laid), run(laid.contiguous().clone()), strict=True):
        assert relative_error(made, expected) < 1e-6


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("structure", ["response-only", "block"])
def test_ragged_contexts_and_padding(structure: str, algorithm: str, gpu: Gpu) -> None:
    tasks = gpu.size(300, 6)
    case = make_case(structure=structure, width=17, tokens=40, tasks=tasks, heads=1, layers=2)
    lengths = torch.randint(1, 39, (tasks,), generator=seeded(4))
    ragged = gpu.moved(Case(**{**vars(case), "context": lengths, "queries": 1, "target": normal(seeded(5), tasks, 1)}))
    assert float64_violations(public("triton", algorithm), ragged) == {}
    assert isinstance(ragged.context, Tensor)
    places = torch.arange(40, device=gpu.device)
    padding = (places >= ragged.context[:, None]) & (places < 39)
    clean, dirty = ragged.z.clone(), torch.where(padding[:, :, None], torch.nan, ragged.z)
    options: dict[str, Any] = {"context": ragged.context, "queries": 1, "backend": "triton", "algorithm": algorithm}

    def run(z: Tensor) -> tuple[Tensor, Tensor]:
        z = z.detach().requires_grad_()
        made = memformer_predict(z, ragged.q, *ragged.parameters, **options)
        return made.detach(), torch.autograd.grad(made.sum(), z)[0]

    (made, grad), (expected, exact) = run(dirty), run(clean)
    assert torch.equal(made, expected)
    assert torch.equal(grad, exact)
    assert not grad[padding].any()


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("width", [6, 64])
def test_a_task_that_is_not_finite_spoils_no_other(width: int, algorithm: str, gpu: Gpu) -> None:
    tasks = gpu.size(500, 40)
    spoiled = tasks // 2
    z, q = 0.3 * gpu.draw(tasks, 21, width), -0.05 * gpu.draw(2, 1, width - 1, width - 1, seed=2)
    clean = memformer_predict(z, q, q, backend="triton", algorithm=algorithm)
    z[spoiled, 3, 2] = torch.inf
    made = memformer_predict(z, q, q, backend="triton", algorithm=algorithm)
    assert not made[spoiled].isfinite().any()
    others = torch.arange(tasks, device=gpu.device) != spoiled
    assert torch.equal(made[others], clean[others])


def test_no_tasks_and_no_predictions(gpu: Gpu) -> None:
    q = (-0.3 * torch.eye(5, device=gpu.device)).expand(2, 1, 5, 5).clone().requires_grad_()
    for tasks, queries in ((0, 1), (5, 0)):
        z = torch.zeros(tasks, 21, 6, device=gpu.device, requires_grad=True)
        target = torch.zeros(tasks, queries, device=gpu.device)
        loss = memformer_loss(z, target, q, queries=queries, backend="triton")
        assert loss.isnan()
        assert not any(grad.any() for grad in torch.autograd.grad(loss, [z, q]))


def test_the_other_operations(gpu: Gpu) -> None:
    generator = seeded(2)
    z, q, past = (normal(generator, *shape).to(gpu.device) for shape in ((6, 40, 33), (1, 33, 33), (6, 1, 40, 33)))
    gamma = normal(generator, 2, 1, 1, 33).to(gpu.device)
    h, b, a = (normal(generator, *shape).to(gpu.device) / 6 for shape in ((9, 33, 33), (9, 33), (3, 33, 33)))
    leaves = [x.requires_grad_() for x in (z, q, past, gamma, h, b, a)]

    def run(backend: str) -> tuple[Tensor, ...]:
        moved, register = memformer_layer(z, q / 33, q / 6, [past], gamma, gamma[0], context=30, backend=backend)
        weights = lfom_solve(h, b, a, layers=True, backend=backend)
        total = moved.square().sum() + register.sin().sum() + weights.square().sum()
        return moved.detach(), register.detach(), weights.detach(), *torch.autograd.grad(total, leaves)

    for made, expected in zip(run("triton"), run("torch"), strict=True):
        assert relative_error(made, expected) < 1e-10


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
