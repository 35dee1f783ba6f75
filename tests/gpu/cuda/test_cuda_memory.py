"""Tokens of any type wherever they lie, what is not to be read of them, and traces that do not fit in shared memory."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from memformer_kernels import context_gram, memformer_loss, memformer_predict, memformer_stack
from memformer_kernels.calls.limits import TINY_TOKENS
from memformer_kernels.testing import Case, float64_violations, public, relative_error
from tests.gpu.cuda.calls import assert_losses, losses, with_target
from tests.gpu.cuda.gpus import ALGORITHMS, STRUCTURES
from tests.gpu.tensors import Gpu
from tests.marks import slow_but
from tests.memformer_kernels.cases import make_case, normal, seeded
from tests.memformer_kernels.layouts import LAYOUTS

HALVES = [("response-only", "gram"), ("response-only", "token"), ("block", "gram"), ("block", "token")]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize(("structure", "algorithm"), HALVES)
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
        target = torch.zeros_like(predictions)
        loss = memformer_loss(z, target, *parameters, **options)
        total = tokens.float().sum() + predictions.square().sum() + loss
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


def views(z: Tensor) -> dict[str, Tensor]:
    """The same tokens, lying differently in memory, with NaN between them."""
    tasks, tokens, width = z.shape
    wide = z.new_full((tasks, tokens + 1, width + 3), torch.nan)
    wide[:, :tokens, 2 : width + 2] = z
    shifted = z.new_full((z.numel() + 1,), torch.nan)
    shifted[1:] = z.flatten()
    gapped = z.new_full((tasks, tokens + 1, width), torch.nan)
    gapped[:, :tokens] = z
    return {
        "slice": wide[:, :tokens, 2 : width + 2],
        "unaligned": shifted[1:].view(tasks, tokens, width),
        "gaps between tasks": gapped[:, :tokens],
        "transposed": z.transpose(0, 2).contiguous().transpose(0, 2),
        "backwards strides": z.permute(1, 0, 2).contiguous().permute(1, 0, 2),
    }


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("structure", slow_but(("response-only",), ("response-only", "block")))
@pytest.mark.parametrize(("tokens", "width"), slow_but(((21, 6),), ((21, 6), (8, 4), (9, 5))))
def test_every_way_of_copying_brings_the_same_bits(
    tokens: int, width: int, structure: str, dtype: torch.dtype, gpu: Gpu
) -> None:
    """Tiles that are copied together, with padding between tasks, and of an odd number of numbers."""
    sizes = {"tasks": 37, "tokens": tokens, "width": width, "layers": 2, "heads": 1}
    case = gpu.moved(make_case(structure=structure, **sizes)).to(torch.float32)
    z, parameters = case.z.detach().to(dtype), (case.q, *case.parameters)
    plain = memformer_predict(z, *parameters, backend="cuda", algorithm="gram")
    for name, view in views(z).items():
        assert torch.equal(memformer_predict(view, *parameters, backend="cuda", algorithm="gram"), plain), name


@pytest.mark.parametrize("structure", slow_but(("block",), STRUCTURES))
@pytest.mark.parametrize(
    ("tokens", "algorithm"),
    slow_but(
        lambda tokens, algorithm: tokens == 9,
        (
            (tokens, algorithm)
            for tokens in (9, 101, 150)
            for algorithm in ALGORITHMS
            if tokens <= TINY_TOKENS or algorithm == "gram"
        ),
    ),
)
def test_ragged_contexts_and_padding(tokens: int, structure: str, algorithm: str, gpu: Gpu) -> None:
    tasks = gpu.size(300, 6)
    case = make_case(structure=structure, width=6, tokens=tokens, tasks=tasks)
    lengths = torch.randint(1, tokens - 1, (tasks,), generator=seeded(4))
    ragged = gpu.moved(replace(case, context=lengths, queries=1, target=normal(seeded(5), tasks, 1)))
    assert float64_violations(public("cuda", algorithm), ragged) == {}
    assert_losses(ragged, algorithm)
    assert isinstance(ragged.context, Tensor)
    places = torch.arange(tokens, device=gpu.device)
    padding = (places >= ragged.context[:, None]) & (places < tokens - 1)
    dirty = replace(ragged, z=ragged.z.masked_fill(padding[..., None], torch.nan))

    def run(case: Case) -> list[Tensor]:
        z = case.z.detach().requires_grad_()
        options: dict[str, Any] = {"context": case.context, "queries": 1, "backend": "cuda", "algorithm": algorithm}
        made = memformer_predict(z, case.q, *case.parameters, **options)
        alone = losses(case, "cuda", algorithm, parameters_alone=True)
        return [made.detach(), *torch.autograd.grad(made.sum(), z), *losses(case, "cuda", algorithm), *alone]

    for dtype in (torch.float64, torch.float32):
        assert all(map(torch.equal, run(dirty.to(dtype)), run(ragged.to(dtype))))


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


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("structure", slow_but(("block",), STRUCTURES))
def test_a_task_that_is_not_finite_spoils_no_other(structure: str, algorithm: str, gpu: Gpu) -> None:
    tasks = gpu.size(2000, 40)
    spoiled = tasks // 2
    case = gpu.moved(make_case(structure=structure, width=6, tokens=9, tasks=tasks)).to(torch.float32)
    others = torch.arange(tasks, device=gpu.device) != spoiled

    def run(z: Tensor) -> tuple[Tensor, Tensor]:
        z = z.detach().requires_grad_()
        made = memformer_predict(z, case.q, *case.parameters, backend="cuda", algorithm=algorithm)
        return made.detach(), torch.autograd.grad(made.sum(), z)[0]

    clean, z = run(case.z), case.z.detach().clone()
    z[spoiled, 3, 2] = torch.inf
    for made, expected in zip(run(z), clean, strict=True):
        assert not made[spoiled].isfinite().all()
        assert torch.equal(made[others], expected[others])


TAILS = (1, 31, 33, 1023, 1024, 1025, 2500)


@pytest.mark.parametrize("structure", slow_but(("response-only",), STRUCTURES))
@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("tasks", slow_but((33,), TAILS))
def test_batches_that_end_within_a_block(tasks: int, algorithm: str, structure: str, gpu: Gpu) -> None:
    """A tile, a unit, a block of 1024 tasks: sums over tasks are right whatever is left."""
    case = make_case(structure=structure, width=4, tokens=4, layers=2, heads=1, tasks=tasks)
    assert_losses(gpu.moved(with_target(case, 1)), algorithm)


DEEP: dict[str, tuple[str, dict[str, Any]]] = {
    "traces": ("gram", {"structure": "response-only", "rule": "recursive", "width": 6, "layers": 24, "heads": 4}),
    "gram": ("gram", {"width": 16, "tokens": 60, "layers": 30, "heads": 1}),
    "tokens": ("token", {"granularity": "full", "width": 16, "tokens": 128, "layers": 8, "heads": 1}),
    "response": (
        "token",
        {"structure": "response-only", "granularity": "full", "width": 16, "tokens": 128, "layers": 8, "heads": 1},
    ),
}
"""Networks whose cells lie in global memory, by what does not fit in shared memory."""


@pytest.mark.slow
@pytest.mark.parametrize("name", DEEP)
def test_what_does_not_fit_in_shared_memory(name: str, gpu: Gpu) -> None:
    algorithm, sizes = DEEP[name]
    case = make_case(tasks=gpu.size(70, 3), **{"tokens": 4, **sizes})
    case = gpu.moved(with_target(replace(case, z=case.z / 4), 1))
    assert_losses(case, algorithm)
    assert float64_violations(public("cuda", algorithm), case) == {}
