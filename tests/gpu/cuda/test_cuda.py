"""What the CUDA library alone has on a GPU: losses of every size and rule, layers, quadratics, Gram matrices."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from memformer_kernels import context_gram, explain, lfom_solve, memformer_layer
from memformer_kernels.testing import float64_violations, public, relative_error
from tests.gpu.calls import CUDA_WIDTHS, assert_budget, assert_equal, assert_losses, with_target
from tests.gpu.gpus import ALGORITHMS, STRUCTURES, Gpu
from tests.marks import slow_but
from tests.memformer_kernels.cases import RULES, draw_tokens, make_case, normal, seeded


def test_auto_takes_it(gpu: Gpu) -> None:
    assert explain(gpu.draw(2, 21, 6), torch.zeros(4, 1, 5, 5, device=gpu.device)).backend == "cuda"
    assert explain(gpu.draw(2, 21, 6)).backend == "cuda"


@pytest.mark.parametrize(("width", "structure", "algorithm"), CUDA_WIDTHS)
def test_losses_of_every_width(width: int, structure: str, algorithm: str, gpu: Gpu) -> None:
    case = make_case(structure=structure, width=width, tokens=9, layers=2, heads=1, tasks=gpu.size(133, 35))
    assert_losses(gpu.moved(with_target(case, 2)), "cuda", algorithm)


@pytest.mark.parametrize("tokens", slow_but((132,), (36, 129, 131, 132, 1000)))
def test_long_contexts_in_gram_space(tokens: int, gpu: Gpu) -> None:
    """Pieces of a context come in by bulk copies or in words, as its length and place allow, into one buffer."""
    for structure in STRUCTURES:
        tasks = gpu.size(9, 2)
        case = make_case(structure=structure, tokens=tokens, width=6, layers=2, heads=1, tasks=tasks)
        assert float64_violations(public("cuda", "gram"), gpu.moved(case)) == {}
        assert_losses(gpu.moved(with_target(case, 1)), "cuda", "gram")


@pytest.mark.parametrize("heads", [1, 2])
@pytest.mark.parametrize("structure", STRUCTURES)
@pytest.mark.parametrize("rule", slow_but(("recursive",), RULES))
def test_losses_of_every_rule(rule: str, structure: str, heads: int, gpu: Gpu) -> None:
    """Shared and diagonal coefficients, registers a head, more matrices than lanes have groups."""
    tasks = gpu.size(133, 34)
    case = make_case(rule=rule, structure=structure, granularity="scalar", width=6, tokens=7, heads=heads, tasks=tasks)
    assert_losses(gpu.moved(with_target(case, 1)), "cuda", "gram")


@pytest.mark.slow
@pytest.mark.parametrize("rule", RULES)
def test_losses_of_every_rule_in_token_space(rule: str, gpu: Gpu) -> None:
    tasks = gpu.size(133, 11)
    for structure in STRUCTURES:
        for granularity in ("scalar", "token", "full"):
            case = make_case(rule=rule, structure=structure, granularity=granularity, width=6, tokens=7, tasks=tasks)
            assert_losses(gpu.moved(with_target(case, 1)), "cuda", "token")


@pytest.mark.parametrize(("layers", "heads"), slow_but(((1, 1),), ((1, 1), (12, 1), (32, 1), (4, 8), (12, 3))))
def test_any_depth_and_number_of_heads(layers: int, heads: int, gpu: Gpu) -> None:
    tokens, tasks = gpu.size(21, 9), gpu.size(40, 3)
    for structure in STRUCTURES:
        case = make_case(structure=structure, width=6, tokens=tokens, layers=layers, heads=heads, tasks=tasks)
        case = gpu.moved(replace(case, z=case.z / 2))  # whose tokens stay finite over as many layers
        for algorithm in ALGORITHMS:
            assert float64_violations(public("cuda", algorithm), case) == {}


@pytest.mark.parametrize(("width", "earlier"), slow_but(((6, 2),), ((6, 2), (8, 0), (11, 1))))
def test_layers_with_ragged_contexts(width: int, earlier: int, gpu: Gpu) -> None:
    """Registers of earlier layers, and coefficients per token, head and feature."""
    tasks, tokens, heads, generator = 5, 6, 2, seeded(3)
    drawn = {
        "z": draw_tokens(generator, tasks, tokens, width),
        "q": normal(generator, heads, width, width, scale=0.2),
        "p": normal(generator, heads, width, width, scale=0.2),
        "gamma": normal(generator, earlier + 1, heads, tokens, width),
        **({"beta": normal(generator, heads, 1, width)} if earlier else {}),
    }
    past = [normal(generator, tasks, heads, tokens, width) for _ in range(earlier)]
    lengths = torch.tensor([1, 6, 3, 5, 2], device=gpu.device)

    def run(backend: str, dtype: torch.dtype) -> list[Tensor]:
        given = {name: x.to(gpu.device, dtype).requires_grad_() for name, x in drawn.items()}
        registers = [x.to(gpu.device, dtype).requires_grad_() for x in past]
        made = memformer_layer(**given, registers=registers, context=lengths, backend=backend)
        total = made[0].square().sum() + made[1].sin().sum()
        grads = torch.autograd.grad(total, [*given.values(), *registers], materialize_grads=True)
        return [*(x.detach() for x in made), *grads]

    exact = run("torch", torch.float64)
    assert_equal(run("cuda", torch.float64), exact)
    assert_budget(run("cuda", torch.float32), run("torch", torch.float32), exact)


def test_a_first_layer_has_no_register_to_weigh(gpu: Gpu) -> None:
    """Its beta has a gradient nevertheless: zeros, which the host writes."""
    z, q = gpu.draw(3, 7, 4), gpu.draw(1, 4, 4, seed=1)
    beta = gpu.draw(1, 1, 4, seed=2).requires_grad_()
    moved, register = memformer_layer(z, q / 9, q / 6, [], None, beta, context=5, backend="cuda")
    (grad,) = torch.autograd.grad(moved.sum() + register.sum(), beta)
    assert not grad.any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("width", slow_but((6,), (1, 4, 6, 16)))
def test_the_last_weights_of_strided_quadratics(width: int, dtype: torch.dtype, gpu: Gpu) -> None:
    """A transposed h and vectors with gaps between them, without memory or a start."""
    generator, tasks = seeded(width), gpu.size(133, 35)
    h = normal(generator, tasks, width, width, scale=0.5 * width**-0.5).mT.contiguous().mT
    b, gap = normal(generator, tasks, width), torch.full((tasks, width), torch.nan, dtype=torch.float64)
    a = normal(generator, 3, width, width, scale=0.5 * width**-0.5)

    def run(backend: str, dtype: torch.dtype) -> list[Tensor]:
        b_with_gaps = torch.stack([b, gap], -1).to(gpu.device, dtype)[..., 0]
        given = [x.requires_grad_() for x in (h.to(gpu.device, dtype), b_with_gaps, a.to(gpu.device, dtype))]
        made = lfom_solve(*given, backend=backend)
        return [made.detach(), *torch.autograd.grad(made.square().sum(), given)]

    exact = run("torch", torch.float64)
    assert_budget(run("cuda", dtype), run("torch", dtype), exact)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("ragged", [False, True])
@pytest.mark.parametrize(("tokens", "width"), [(21, 6), (700, 6), (40, 16), (7, 1)])
def test_gram_matrices_and_their_gradients(tokens: int, width: int, ragged: bool, dtype: torch.dtype, gpu: Gpu) -> None:
    """Long contexts are split over blocks; what lies behind a context is not read, NaN or not."""
    tasks = gpu.size(1000, 4)
    lengths = torch.full((tasks,), tokens - 1, device=gpu.device)
    if ragged:
        lengths[:2] = torch.tensor([1, tokens], device=gpu.device)
    labelled = (torch.arange(tokens, device=gpu.device) < lengths[:, None])[..., None]
    drawn = gpu.draw(tasks, tokens, width, dtype=torch.float64)
    z, plain = (
        torch.where(labelled, drawn, behind).to(kind).requires_grad_()
        for behind, kind in ((torch.nan, dtype), (0.0, torch.float64))
    )
    assert explain(z).backend == "cuda"
    made, exact = context_gram(z, lengths if ragged else tokens - 1), plain.mT @ plain
    rounding = 8 * torch.finfo(dtype).eps
    assert relative_error(made.detach(), exact.detach()) < rounding
    weights = gpu.draw(tasks, width, width, seed=1, dtype=torch.float64)
    (grad,), (expected,) = (
        torch.autograd.grad((x * weights.to(x.dtype)).sum(), y) for x, y in ((made, z), (exact, plain))
    )
    assert relative_error(grad, torch.where(labelled, expected, 0.0)) < rounding


@pytest.mark.parametrize("batch", slow_but((31,), (1, 31, 33, 1025, 1_000_003)))
def test_gram_matrices_of_every_batch_are_those_of_its_chunks(batch: int, gpu: Gpu) -> None:
    z = gpu.draw(gpu.size(batch, min(batch, 10_000)), 21, 6)
    parts = [context_gram(part, 20) for part in z.split(gpu.size(10_007, 307))]
    assert torch.equal(context_gram(z, 20), torch.cat(parts))
