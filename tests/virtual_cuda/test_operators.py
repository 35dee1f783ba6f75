"""Every operator of the CUDA library, from the public functions down to compiled kernels, on a virtual device."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from benchmarks.virtual_cuda.devices import HOPPER
from benchmarks.virtual_cuda.virtual import Virtual
from memformer_kernels import (
    Adam,
    GaussianStatistics,
    context_gram,
    explain,
    lfom_solve,
    memformer_layer,
    memformer_loss,
    memformer_predict,
    memformer_stack,
    train_steps,
)
from memformer_kernels.testing import (
    FLOAT64_ERROR,
    GRADIENT_FACTOR,
    Case,
    float64_violations,
    public,
    relative_error,
    twin_violations,
)
from tests.memformer_kernels.cases import RULES, leaves, make_case, normal, seeded
from tests.memformer_kernels.layouts import LAYOUTS
from tests.memformer_kernels.training.runs import state

ALGORITHMS = ("gram", "token")
STRUCTURES = ("response-only", "block", "dense")


def _implemented() -> set[str]:
    """Operators that have a kernel for CUDA."""
    names = [schema.name for schema in torch._C._jit_get_all_schemas() if schema.name.startswith("memformer_native::")]
    has = torch._C._dispatch_has_kernel_for_dispatch_key
    return {name.split("::")[1] for name in names if has(name, "CUDA")}


def losses(case: Case, backend: str, algorithm: str = "auto") -> list[Tensor]:
    """The loss of a case and all its gradients, that of the target among them."""
    given = {name: value.detach().clone().requires_grad_() for name, value in leaves(case).items()}
    assert case.target is not None
    target = case.target.detach().clone().requires_grad_()
    options: dict[str, Any] = {"context": case.context, "queries": case.queries, "algorithm": algorithm}
    loss = memformer_loss(target=target, **given, **options, backend=backend)
    return [loss.detach(), *torch.autograd.grad(loss, [target, *given.values()])]


def with_target(case: Case, queries: int) -> Case:
    """The case with as many queries and something to compare their predictions with."""
    target = normal(seeded(1), case.z.shape[0], queries)
    return replace(case, target=target, queries=queries, context=case.z.shape[1] - queries)


def others(width: int, backend: str, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    """A layer with a register before it, a first-order method and a Gram matrix, and all their gradients."""
    generator, shapes = seeded(2), ((5, 9, width), (1, width, width), (5, 1, 9, width), (2, 1, 1, width))
    z, q, past, gamma = (normal(generator, *shape) for shape in shapes)
    h, b, a = (normal(generator, *shape) / 6 for shape in ((4, width, width), (4, width), (3, width, width)))
    weights, start = normal(generator, 3, 3, width), normal(generator, 4, width)
    given = [x.to(dtype).requires_grad_() for x in (z, q, past, gamma, h, b, a, weights, start)]
    z, q, past, gamma, h, b, a, weights, start = given
    moved, register = memformer_layer(z, q / 9, q / 6, [past], gamma, gamma[0], context=7, backend=backend)
    found = lfom_solve(h, b, a, weights, w0=start, layers=True, backend=backend)
    gram = context_gram(z, 7) if backend == "cuda" else z[:, :7].mT @ z[:, :7]
    total = moved.square().sum() + register.sin().sum() + found.square().sum() + gram.sin().sum()
    return [*(x.detach() for x in (moved, register, found, gram)), *torch.autograd.grad(total, given)]


def assert_budget(made: list[Tensor], twin: list[Tensor], exact: list[Tensor]) -> None:
    """An error against float64 of at most three times that of plain float32 PyTorch, as gradients may have.

    Of all results together: of few tasks a single number is now and then as good as exact in the twin.
    """
    ours, theirs, value = (torch.cat([x.double().flatten() for x in results]) for results in (made, twin, exact))
    budget = GRADIENT_FACTOR * max(relative_error(theirs, value), torch.finfo(torch.float32).eps)
    assert relative_error(ours, value) <= budget


def assert_equal(made: list[Tensor], exact: list[Tensor]) -> None:
    """The same numbers in float64, but for rounding."""
    for ours, value in zip(made, exact, strict=True):
        assert relative_error(ours, value) <= FLOAT64_ERROR


def test_every_operator_of_the_library_runs(virtual: Virtual) -> None:
    """And what this test calls is all that there is."""
    virtual.operators.called.clear()
    case = make_case(width=3, tokens=5, tasks=2)
    memformer_stack(case.z, case.q.requires_grad_(), case.p, backend="cuda").sum().backward()
    losses(with_target(case, 1), "cuda")
    others(3, "cuda")
    train_steps(state(dtype=torch.float32), GaussianStatistics(3, 8, 4), 1, optimizer=Adam(0.1), backend="cuda")
    assert virtual.operators.called == _implemented()
    assert {launched.stream for launched in virtual.runtime.launched} == {virtual.runtime.torch_stream(HOPPER)}


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("structure", STRUCTURES)
def test_networks_and_all_their_gradients(virtual: Virtual, structure: str, algorithm: str) -> None:
    case = make_case(structure=structure, width=4, tokens=7, layers=2, heads=2, tasks=3)
    assert float64_violations(public("cuda", algorithm), case) == {}
    assert twin_violations(public("cuda", algorithm), case) == {}


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("structure", STRUCTURES)
def test_losses_and_all_their_gradients(virtual: Virtual, structure: str, algorithm: str) -> None:
    case = with_target(make_case(structure=structure, width=6, tokens=9, layers=2, heads=1, tasks=35), 2)
    exact, single = losses(case, "torch", algorithm), case.to(torch.float32)
    assert_equal(losses(case, "cuda", algorithm), exact)
    assert_budget(losses(single, "cuda", algorithm), losses(single, "torch", algorithm), exact)


@pytest.mark.parametrize("width", [2, 5, 16])
def test_the_other_operations_and_all_their_gradients(virtual: Virtual, width: int) -> None:
    exact = others(width, "torch")
    assert_equal(others(width, "cuda"), exact)
    assert_budget(others(width, "cuda", torch.float32), others(width, "torch", torch.float32), exact)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("rule", RULES)
def test_rules(virtual: Virtual, rule: str, algorithm: str) -> None:
    case = make_case(rule=rule, structure="block", width=3, tokens=5, layers=3, tasks=2)
    assert twin_violations(public("cuda", algorithm), case) == {}


@pytest.mark.parametrize("tokens", [36, 131, 132])
def test_long_contexts_come_in_pieces(virtual: Virtual, tokens: int) -> None:
    """Pieces of a context come in by bulk copies or in words, as its length and place allow, into one buffer."""
    for structure in ("response-only", "block"):
        case = with_target(make_case(structure=structure, tokens=tokens, width=3, layers=1, heads=1, tasks=2), 1)
        assert_equal(losses(case, "cuda", "gram"), losses(case, "torch", "gram"))
        single = case.to(torch.float32)
        assert_budget(losses(single, "cuda", "gram"), losses(single, "torch", "gram"), losses(case, "torch", "gram"))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize(("structure", "algorithm"), [("response-only", "gram"), ("block", "gram"), ("block", "token")])
def test_half_precision_tokens(virtual: Virtual, structure: str, algorithm: str, dtype: torch.dtype) -> None:
    case = make_case(structure=structure, width=6, tokens=9, layers=2, heads=1, tasks=3)
    parameters = [None if x is None else x.float() for x in (case.q, *case.parameters)]

    def run(backend: str) -> list[Tensor]:
        z = case.z.to(dtype).requires_grad_()
        predictions = memformer_predict(z, *parameters, backend=backend, algorithm=algorithm)
        tokens = memformer_stack(z, *parameters, backend=backend, algorithm=algorithm)
        total = tokens.float().sum() + predictions.square().sum()
        return [tokens.detach(), predictions.detach(), *torch.autograd.grad(total, z)]

    for made, expected in zip(run("cuda"), run("torch"), strict=True):
        assert made.dtype == expected.dtype
        assert relative_error(made, expected) < 4 * torch.finfo(dtype).eps


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts(virtual: Virtual, layout: str, algorithm: str) -> None:
    """Tensors of any strides, each in memory that ends where it ends."""
    case = make_case(structure="response-only", width=6, tokens=9, layers=2, heads=1, tasks=5).to(torch.float32)
    laid = LAYOUTS[layout](case.z.detach())

    def run(tokens: Tensor) -> list[Tensor]:
        tokens = tokens.detach().requires_grad_()
        made = memformer_stack(tokens, case.q, gamma=case.gamma, backend="cuda", algorithm=algorithm)
        return [made.detach(), *torch.autograd.grad(made[:, ::2].sum(), [tokens, case.q])]

    for made, expected in zip(run(laid), run(laid.contiguous().clone()), strict=True):
        assert relative_error(made, expected) < 1e-6


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("structure", STRUCTURES)
def test_ragged_contexts_and_what_pads_them(virtual: Virtual, structure: str, algorithm: str) -> None:
    case = make_case(structure=structure, width=4, tokens=9, layers=2, heads=1, tasks=5)
    ragged = replace(case, context=torch.tensor([1, 8, 3, 8, 5]), queries=1, target=normal(seeded(5), 5, 1))
    assert_equal(losses(ragged, "cuda", algorithm), losses(ragged, "torch", algorithm))
    padding = torch.arange(9) >= ragged.context[:, None]
    padding[:, -1] = False
    dirty = replace(ragged, z=ragged.z.masked_fill(padding[..., None], torch.nan))
    assert all(map(torch.equal, losses(dirty, "cuda", algorithm), losses(ragged, "cuda", algorithm)))


def test_no_tasks_and_no_predictions(virtual: Virtual) -> None:
    q = -0.3 * torch.eye(5).expand(2, 1, 5, 5)
    for tasks, queries in ((0, 1), (5, 0)):
        z, weights = torch.zeros(tasks, 9, 6, requires_grad=True), q.clone().requires_grad_()
        loss = memformer_loss(z, torch.zeros(tasks, queries), weights, queries=queries, backend="cuda")
        assert loss.isnan()
        assert not any(grad.any() for grad in torch.autograd.grad(loss, [z, weights]))
    assert context_gram(torch.zeros(0, 9, 6)).shape == (0, 6, 6)


def test_a_first_layer_has_no_register_to_weigh(virtual: Virtual) -> None:
    """Its beta has a gradient nevertheless: zeros, which the host writes."""
    generator = seeded(3)
    z, q, beta = normal(generator, 3, 7, 4), normal(generator, 1, 4, 4), normal(generator, 1, 1, 4).requires_grad_()
    moved, register = memformer_layer(z, q / 9, q / 6, [], None, beta, context=5, backend="cuda")
    (grad,) = torch.autograd.grad(moved.sum() + register.sum(), beta)
    assert not grad.any()


def test_more_tasks_than_one_block_takes(virtual: Virtual) -> None:
    """Partial sums of blocks, added up by the last of several, give what one task at a time gives."""
    case = with_target(make_case(structure="response-only", width=3, tokens=4, layers=1, heads=1, tasks=1100), 1)
    assert_equal(losses(case, "cuda"), losses(case, "torch"))


def test_a_virtual_device_is_a_gpu_to_plans(virtual: Virtual) -> None:
    case = make_case(structure="response-only", width=6, tokens=9)
    assert explain(case.z, case.q).backend == "cuda"
    assert explain(case.z).backend == "cuda"
    assert explain(case.z.new_zeros(2, 40, 18), case.z.new_zeros(2, 1, 17, 17)).regime == "tile"
    with pytest.raises(RuntimeError, match="backend='cpu' serves tensors on the CPU"):
        explain(case.z, case.q, backend="cpu")
