"""The native CPU backend: fixed orders of summation, every instruction set, any layout, contexts of any length."""

from typing import Any

import pytest
import torch
from torch import Tensor

from memformer_kernels import (
    context_gram,
    explain,
    lfom_solve,
    memformer_layer,
    memformer_loss,
    memformer_predict,
    memformer_stack,
)
from memformer_kernels.testing import float64_violations, public, relative_error, twin_violations
from tests.memformer_kernels.cases import STRUCTURES, draw_tokens, make_case, normal, seeded
from tests.memformer_kernels.native import LAYOUTS, NATIVE, instruction_set, with_gradients

__all__ = ["instruction_set"]


def _network(token_axis: bool, structure: str, tasks: int, dtype: torch.dtype) -> dict[str, Tensor | None]:
    case = make_case(granularity="full" if token_axis else "feature", structure=structure, tasks=tasks, heads=1)
    made = {"z": case.z, "q": case.q, "p": case.p, "gamma": case.gamma}
    return {name: None if x is None else x.to(dtype).requires_grad_() for name, x in made.items()}


def _everything(tasks: int, dtype: torch.dtype) -> list[Tensor]:
    """Results and gradients of all operations on many tasks."""
    made: list[Tensor] = []
    for structure in ("response-only", "block", "dense"):
        for token_axis in (False, True):
            arguments = _network(token_axis, structure, tasks, dtype)
            leaves = [x for x in arguments.values() if x is not None]
            target = normal(seeded(5), tasks, 1).to(dtype)
            for outputs in (
                memformer_loss(target=target, backend="cpu", **arguments),  # type: ignore[arg-type]
                memformer_predict(layers=True, backend="cpu", **arguments),  # type: ignore[arg-type]
                memformer_stack(backend="cpu", **arguments),  # type: ignore[arg-type]
            ):
                made += with_gradients(outputs, leaves)
    z, q = arguments["z"], arguments["q"]
    assert z is not None
    assert q is not None
    layer = q.detach()[0].requires_grad_()
    made += with_gradients(memformer_layer(z, layer, backend="cpu"), [z, layer])
    made += with_gradients(context_gram(z), [z])
    h, b, a = (x.detach().requires_grad_() for x in (made[-2], z[:, 0], q[:, 0]))
    return [*made, *with_gradients(lfom_solve(h, b, a, layers=True, backend="cpu"), [h, b, a])]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_results_are_the_same_bits_for_one_thread_and_two(dtype: torch.dtype) -> None:
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        one = _everything(2500, dtype)
        torch.set_num_threads(2)
        two = _everything(2500, dtype)
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(a, b) for a, b in zip(one, two, strict=True))


def test_sums_over_tasks_are_those_of_their_blocks() -> None:
    """A gradient over many tasks is the sum, in double, of those over blocks of 1024 tasks."""
    arguments = _network(False, "response-only", 3000, torch.float32)
    z, rest = arguments.pop("z"), arguments
    assert z is not None
    q = rest["q"]
    assert q is not None

    def gradient(tasks: slice) -> Tensor:
        predictions = memformer_predict(z[tasks].detach(), backend="cpu", **rest)  # type: ignore[arg-type]
        return torch.autograd.grad(predictions, q, torch.ones_like(predictions))[0].double()

    whole = gradient(slice(None))
    blocks = sum(gradient(slice(start, start + 1024)) for start in range(0, 3000, 1024))
    assert isinstance(blocks, Tensor)
    assert torch.equal(whole.float(), blocks.float())


@pytest.mark.parametrize("structure", STRUCTURES)
@pytest.mark.parametrize("token_axis", [False, True], ids=["gram", "token"])
def test_every_instruction_set(instruction_set: str, structure: str, token_axis: bool) -> None:
    """All of them give the reference's results, for numbers of tasks that do not fill their vectors."""
    case = make_case(
        rule="gated_heads",
        granularity="full" if token_axis else "feature",
        structure=structure,
        tasks=37,
        width=6,
        tokens=9,
    )
    algorithm = "token" if token_axis else "gram"
    assert float64_violations(public("cpu", algorithm), case) == {}
    assert twin_violations(public("cpu", algorithm), case) == {}


@pytest.mark.parametrize("width", range(2, 17))
def test_every_width(instruction_set: str, width: int) -> None:
    for structure in ("response-only", "block"):
        case = make_case(structure=structure, tasks=33, width=width, tokens=11, layers=2, heads=1)
        assert float64_violations(public("cpu", "gram"), case) == {}
        assert twin_violations(public("cpu", "gram"), case) == {}


def test_the_widest_response_only_network() -> None:
    case = make_case(structure="response-only", tasks=5, width=17, tokens=40, layers=2)
    assert explain(case.z, case.q, None, case.gamma).backend == "cpu"
    assert float64_violations(public("cpu", "gram"), case) == {}


@pytest.mark.parametrize("tokens", [33, 64, 65, 97, 300, 1025])
def test_contexts_that_stream(tokens: int) -> None:
    """Gram sums of any number of blocks of 32 tokens, with gradients that reach every token."""
    for structure in ("response-only", "dense"):
        for context, queries in ((tokens - 1, 1), (tokens // 2, 3), (torch.tensor([1, tokens // 3, tokens - 2]), 2)):
            case = make_case(structure=structure, tasks=3, tokens=tokens, context=context, queries=queries)
            assert float64_violations(public("cpu", "gram"), case) == {}


@pytest.mark.parametrize("contexts", ["all", "ragged"])
@pytest.mark.parametrize("structure", ["response-only", "block"])
@pytest.mark.parametrize(
    ("tasks", "tokens", "more"), [(1, 4096, 40), (1, 20_000, 40), (3, 17_409, 40), (40, 1100, 480)]
)
def test_a_long_context_has_the_same_bits_alone_and_among_many(
    structure: str, contexts: str, tasks: int, tokens: int, more: int
) -> None:
    """Few tasks share their long contexts among lanes, some have Gram matrices summed before, many do not."""
    random = seeded(5)
    q, p = normal(random, 3, 1, 5, 5) / 5, normal(random, 3, 1, 5, 5) / 5
    tensors = [x.float() for x in (q, p, normal(random, 3, 3, 1, 1, 6))]
    q, p, gamma = tensors
    few = normal(random, tasks, tokens, 6).float()
    many = torch.cat([few, normal(random, more, tokens, 6).float()])
    lengths = torch.randint(1, tokens, (tasks + more,), generator=random)
    results = []
    for z in (few, many):
        z.requires_grad_()
        context = lengths[: len(z)] if contexts == "ragged" else None
        predictions = memformer_predict(z, q, p if structure == "block" else None, gamma, context=context, layers=True)
        gram = context_gram(z, context)
        (grad,) = torch.autograd.grad([predictions[:, :tasks].cos().sum(), gram[:tasks].cos().sum()], z)
        results.append((predictions[:, :tasks], gram[:tasks], grad[:tasks]))
    for alone, among_many in zip(*results, strict=True):
        assert torch.equal(alone, among_many)


@pytest.mark.parametrize("tokens", [1, 31, 32, 33, 95, 96, 97, 1000, 4097])
@pytest.mark.parametrize("width", [1, 2, 6, 8, 17])
def test_gram_matrices_of_any_length(tokens: int, width: int) -> None:
    z = normal(seeded(tokens), 5, tokens, width)
    exact = z.transpose(1, 2) @ z
    assert relative_error(context_gram(z, tokens), exact) < 1e-14
    single = z.float()
    # Pairwise sums of blocks of 32: the error does not grow with the number of tokens.
    assert relative_error(context_gram(single, tokens), single.double().transpose(1, 2) @ single.double()) < 5e-7


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts_give_the_same_bits(layout: str) -> None:
    for token_axis in (False, True):
        arguments = _network(token_axis, "block", 41, torch.float32)
        z = LAYOUTS[layout](arguments["z"].detach())  # type: ignore[union-attr]
        plain = z.contiguous().clone()
        target = normal(seeded(1), 41, 2).float()[:, :1]
        arguments.pop("z")
        made = []
        for tokens in (z, plain):
            leaf = tokens.detach().requires_grad_()
            value = memformer_loss(leaf, target, backend="cpu", **arguments)  # type: ignore[arg-type]
            made.append((value, *torch.autograd.grad(value, leaf), memformer_stack(leaf, backend="cpu", **arguments)))  # type: ignore[arg-type]
        assert all(torch.equal(a, b) for a, b in zip(*made, strict=True))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_every_half_survives_the_way_to_the_lanes_and_back(dtype: torch.dtype) -> None:
    """A response-only stack hands its features through: all 65,536 patterns, subnormal, infinite and NaN."""
    patterns = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16).view(dtype)
    z = torch.zeros(2**15, 3, 3, dtype=dtype)
    z[:, 2, :2] = patterns.view(-1, 2)
    q = torch.zeros(1, 1, 2, 2)
    features = memformer_stack(z, q, context=2, backend="cpu")[:, 2, :2].reshape(-1)
    assert torch.equal(features.isnan(), patterns.isnan())
    number = ~patterns.isnan()
    assert torch.equal(features[number].view(torch.int16), patterns[number].view(torch.int16))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_results_round_to_half_as_torch_rounds(dtype: torch.dtype) -> None:
    """A stack whose query ends as the product of two exact numbers rounds once, to nearest even."""
    generator = seeded(3)
    factors = normal(generator, 4096, 2).to(dtype)
    factors[:64] *= 2.0**-7
    z = torch.zeros(4096, 2, 2, dtype=dtype)
    z[:, 0] = 1.0
    z[:, 1, 0] = factors[:, 0]
    scale = 2.0 ** -torch.arange(13.0)[:, None, None, None]
    for q in scale:
        result = memformer_stack(z, q[None], context=1, backend="cpu")[:, 1, 1]
        assert torch.equal(result, (factors[:, 0].float() * q.item()).to(dtype))


def test_dispatch_by_size() -> None:
    def backend(width: int, tokens: int, structure: str, token_axis: bool) -> str:
        case = make_case(
            structure=structure,
            granularity="token" if token_axis else "scalar",
            width=width,
            tokens=tokens,
            tasks=1,
            layers=1,
        )
        return explain(case.z, case.q, case.p, case.gamma).backend

    assert backend(17, 500, "response-only", False) == "cpu"
    assert backend(16, 500, "dense", False) == "cpu"
    assert backend(256, 500, "dense", False) == "cpu"
    assert backend(257, 500, "dense", False) == "torch"
    assert backend(16, 128, "block", True) == "cpu"
    assert backend(16, 129, "block", True) == "torch"


def _parameter_gradients(z: Tensor, **parameters: Any) -> list[Tensor]:
    """The loss of a response-only network and its gradients of q and gamma."""
    wanted = [parameters["q"], parameters["gamma"]]
    loss = memformer_loss(z, z.detach()[:, -1:, 0], backend="cpu", **parameters)
    return [loss, *torch.autograd.grad(loss, wanted)]


def _lfom(tasks: int, tokens: int, width: int, gamma_rows: int) -> dict[str, Tensor]:
    generator = seeded(tokens)
    shapes = {"q": (3, 1, width - 1, width - 1), "gamma": (3, 3, 1, gamma_rows, 1)}
    made = {name: normal(generator, *shape, scale=0.3).float().requires_grad_() for name, shape in shapes.items()}
    return {"z": draw_tokens(generator, tasks, tokens, width).float(), **made}


@pytest.mark.parametrize("tokens", [2, 3, 4, 6, 21, 24, 33, 34, 66, 100])
@pytest.mark.parametrize("width", [3, 4, 5, 6, 7])
def test_tokens_that_are_read_once_and_tokens_that_stay_give_the_same_bits(
    instruction_set: str, width: int, tokens: int
) -> None:
    """Without a gradient of theirs tokens go straight into Gram matrices; with one they are kept in lanes."""
    arguments = _lfom(70, tokens, width, gamma_rows=1)
    z = arguments.pop("z")
    once, stay = (_parameter_gradients(x, **arguments) for x in (z, z.clone().requires_grad_()))
    assert all(torch.equal(a, b) for a, b in zip(once, stay, strict=True))


@pytest.mark.parametrize("gamma_rows", [1, 21], ids=["gram", "token"])
def test_lfom_and_the_general_method_give_the_same_bits(instruction_set: str, gamma_rows: int) -> None:
    """LFOM is compiled for itself; a beta of zeros adds nothing and takes the way of every other method."""
    arguments = _lfom(70, 21, 6, gamma_rows)
    itself = _parameter_gradients(**arguments)
    general = _parameter_gradients(**arguments, beta=torch.zeros(3, 1, 1, 1))
    assert all(torch.equal(a, b) for a, b in zip(itself, general, strict=True))


def test_an_instruction_set_that_is_not_there_is_refused() -> None:
    with pytest.raises(RuntimeError, match="no instruction set sse9"):
        NATIVE.use_instruction_set("sse9")
