"""The layer, the Gram matrix, the first-order method and the sum over tasks on the Triton kernels."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from memformer_kernels import lfom_solve, memformer_layer, memformer_predict
from memformer_kernels.backends.pytorch.context import Labelled, gram, gram_backward
from memformer_kernels.backends.triton import launch
from memformer_kernels.backends.triton.backend import TritonBackend
from memformer_kernels.testing import FLOAT64_ERROR, relative_error
from tests.marks import slow_but
from tests.memformer_kernels.cases import normal, seeded

LAYERS = {
    # past registers, shape of gamma, shape of beta, with J registers in all, H heads, N tokens, D features
    "linear": (0, None, None),
    "heads": (0, "JHND", None),
    "weighted past": (2, "J11D", None),
    "momentum": (1, None, "1N1"),
    "all": (2, "JHND", "HND"),
    "fewer past than slots": (3, "J11D", "D"),
    "one weight for all": (2, "1111", "D"),
}


def agree(made: list[Tensor], exact: list[Tensor]) -> None:
    for ours, theirs in zip(made, exact, strict=True):
        assert ours.shape == theirs.shape
        assert relative_error(ours.detach(), theirs.detach()) <= FLOAT64_ERROR


def run_layer(
    backend: str, rule: str, tokens: int, width: int, ragged: bool, dtype: torch.dtype = torch.float64
) -> list[Tensor]:
    generator = seeded(4)
    past, gamma_axes, beta_axes = LAYERS[rule]
    sizes = {"1": 1, "J": past + 1, "H": 2, "N": tokens, "D": width}

    def draw(*shape: int) -> Tensor:
        return normal(generator, *shape, scale=width**-0.5).to(dtype).requires_grad_()

    def coefficient(axes: str | None) -> Tensor | None:
        return None if axes is None else draw(*(sizes[axis] for axis in axes))

    gamma, beta = coefficient(gamma_axes), coefficient(beta_axes)
    kept = 2 if any(axes is not None and "H" in axes for axes in (gamma_axes, beta_axes)) else 1
    z, q, p = draw(2, tokens, width), draw(2, width - 1, width - 1), draw(2, width, width)
    registers = [draw(2, kept, tokens, width) for _ in range(past)]
    context = torch.tensor([1, tokens]) if ragged else max(tokens - 2, 1)
    results = memformer_layer(z, q, p, registers, gamma, beta, context=context, backend=backend)
    total = sum((x.double() * torch.arange(x.numel()).view(x.shape).cos()).sum() for x in results)
    leaves = [x for x in (z, q, p, *registers, gamma, beta) if x is not None]
    grads = torch.autograd.grad(total, leaves, allow_unused=True)  # type: ignore[arg-type]
    return [*results, *(torch.zeros_like(x) if g is None else g for x, g in zip(leaves, grads, strict=True))]


@pytest.mark.parametrize("rule", LAYERS)
def test_layer(rule: str) -> None:
    agree(run_layer("triton", rule, 7, 4, False), run_layer("torch", rule, 7, 4, False))


def test_a_layer_of_ragged_contexts() -> None:
    agree(run_layer("triton", "momentum", 7, 4, True), run_layer("torch", "momentum", 7, 4, True))


@pytest.mark.parametrize("rule", ["momentum", "all"])
def test_half_precision_layers_with_memory(rule: str) -> None:
    """Registers from before have the tokens' dtype, those of the call that of its sums."""
    made, expected = (run_layer(name, rule, 7, 4, False, torch.float16) for name in ("triton", "torch"))
    for ours, theirs in zip(made, expected, strict=True):
        assert ours.dtype == theirs.dtype
        torch.testing.assert_close(ours.detach(), theirs.detach(), rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize(("tokens", "width"), slow_but([(1, 2)], [(1, 2), (33, 17), (40, 3)]))
def test_layers_of_awkward_sizes(tokens: int, width: int) -> None:
    agree(run_layer("triton", "all", tokens, width, False), run_layer("torch", "all", tokens, width, False))


GRAMS = [(3, 7, 4), (70, 5, 2), (2, 33, 17), (1, 20, 1), (2, 300, 5), (1, 15, 16), (0, 4, 3), (3, 37, 33), (1, 9, 129)]


@pytest.mark.parametrize(("tasks", "tokens", "width"), slow_but(lambda tasks, tokens, width: width < 100, GRAMS))
def test_context_gram(tasks: int, tokens: int, width: int) -> None:
    generator, backend = seeded(5), TritonBackend()
    z = normal(generator, tasks, tokens, width).transpose(1, 2).contiguous().transpose(1, 2)
    grad = normal(generator, tasks, width, width)
    lengths = torch.randint(1, tokens + 1, (tasks,), generator=generator)
    for labelled in (Labelled(max(tokens - 3, 1), None), Labelled(tokens, lengths)):
        made = backend.context_gram(z, labelled.lengths, labelled.count)
        made_grad = backend.context_gram_backward(grad, z, labelled.lengths, labelled.count)
        agree([made, made_grad], [gram(z, labelled), gram_backward(grad, z, labelled)])


@pytest.mark.parametrize("width", [33, 35, 65])
def test_context_gram_of_float32_in_two_products(width: int) -> None:
    """Tokens one after another, and with room between them; numbers of all sizes."""
    generator, backend = seeded(9), TritonBackend()
    z = (normal(generator, 2, 70, width) * normal(generator, 2, 70, 1, scale=3.0).exp()).float()
    labelled = z[:, :66]
    exact = labelled.double().mT @ labelled.double()
    budget = 2 * relative_error(labelled.mT @ labelled, exact)
    spaced = torch.zeros(2, 70, width + 3)[..., :width].copy_(z)
    for tokens in (z, spaced):
        made = backend.context_gram(tokens, None, 66)
        assert relative_error(made, exact) <= budget
        assert torch.equal(made, made.mT)


def test_what_two_products_leave_out_of_a_gram_matrix() -> None:
    """Numbers as far as they can be from those of TF32's bits, and numbers of all sizes."""
    worst = torch.full((1, 16, 33), 1 + 0x0FFF * 2.0**-23)
    exact = (worst.double().mT @ worst.double())[:, :-1, :-1]
    made = TritonBackend().context_gram(worst, None, 16)[:, :-1, :-1]
    assert 0.9 * 2.0**-22 < relative_error(made, exact) < 1.1 * 2.0**-22
    numbers = normal(seeded(16), 10**6).float()
    bits = numbers.view(torch.int32)
    small = numbers - ((bits + 0x1000) & -0x2000).view(torch.float32)
    share = (small.double() / numbers.double()).square()
    assert float(share.max()) <= 2.0**-22
    assert 2.0**-24.6 < float(share.mean()) < 2.0**-24.4


@pytest.mark.parametrize("width", [1, 3, 17])
@pytest.mark.parametrize("rich", [False, True])
def test_first_order_method(width: int, rich: bool) -> None:
    """h is not symmetric here, and its gradient is dense."""

    def run(backend: str, layers: bool) -> list[Tensor]:
        generator = seeded(6)

        def draw(*shape: int) -> Tensor:
            return normal(generator, *shape, scale=0.7 * width**-0.5).requires_grad_()

        arguments = [draw(3, width, width), draw(3, width), draw(2, width, width)]
        if rich:
            arguments += [draw(2, 2, width), draw(2, 1)]
        start = draw(3, width) if rich else None
        weights = lfom_solve(*arguments, w0=start, layers=layers, backend=backend)
        leaves = arguments if start is None else [*arguments, start]
        return [weights, *torch.autograd.grad((weights * weights.detach().cos()).sum(), leaves)]

    for layers in (False, True):
        agree(run("triton", layers), run("torch", layers))


def test_sums_over_tasks_run_in_blocks_of_1024() -> None:
    """float32 inside a block, float64 across: ones beside a large number survive in another block, not in its own."""
    from memformer_kernels.backends.triton import sums

    lanes = 256
    partials = torch.ones(3 * 1024 // lanes, 2)
    partials[0, 0] = 2.0**24
    total = sums.over_tasks(partials, lanes)
    assert total[1] == 12
    assert total[0] in (2.0**24 + 8, 2.0**24 + 10, 2.0**24 + 12)
    exact = torch.rand(1000, 3, generator=seeded(7))
    torch.testing.assert_close(sums.over_tasks(exact, 8), exact.double().sum(0).float(), rtol=1e-6, atol=0)
    assert sums.over_tasks(torch.empty(0, 5), 8).tolist() == [0.0] * 5
    many = torch.ones(200, 3)
    many[::7] = 2.0**24
    assert torch.equal(sums.over_tasks(many, 1024), many.double().sum(0).float())


@pytest.mark.parametrize("lanes", [1, 4])
def test_sums_of_a_block_are_by_pairs(lanes: int) -> None:
    """Numbers of one sign, whose error one after another grows with their number: by pairs with its logarithm."""
    from memformer_kernels.backends.triton import sums

    partials = torch.rand(1024 // lanes, 64, generator=seeded(10))
    exact = partials.double().sum(0)
    in_turn = torch.zeros(64)
    for row in partials:
        in_turn += row
    made = sums.over_tasks(partials, lanes)
    # Ten or eight roundings of half a unit each, mostly of numbers smaller than the sum.
    assert relative_error(made, exact) < 2.0**-24
    assert relative_error(in_turn, exact) > 2 * relative_error(made, exact)
    assert torch.equal(made, sums.over_tasks(partials, lanes))


def test_sums_of_a_block_are_added_in_one_order() -> None:
    """Eight of a thread by pairs, four threads, then what 32 partial sums have left by pairs again."""
    from memformer_kernels.backends.triton import sums

    partials = normal(seeded(11), 64, 40).float()

    def by_pairs(rows: list[torch.Tensor]) -> torch.Tensor:
        half = len(rows) // 2
        return rows[0] if half == 0 else by_pairs(rows[:half]) + by_pairs(rows[half:])

    groups = []
    for group in partials.split(32):
        threads = [by_pairs([group[row] for row in range(thread, 32, 4)]) for thread in range(4)]
        groups.append(threads[0] + threads[1] + threads[2] + threads[3])
    assert torch.equal(sums.over_tasks(partials, 16), groups[0] + groups[1])


def test_few_blocks_of_many_numbers_are_added_in_float64_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    from memformer_kernels.backends.triton import sums

    partials = normal(seeded(12), 70, 9).float()
    whole = sums.over_tasks(partials, 1024)
    monkeypatch.setattr(sums, "_NUMBERS_AT_ONCE", 20)
    sizes = []
    monkeypatch.setattr(torch.Tensor, "split", _noting_splits(torch.Tensor.split, sizes))
    torch.testing.assert_close(sums.over_tasks(partials, 1024), whole, rtol=1e-6, atol=1e-6)
    assert sizes == [2]


def _noting_splits(split: Callable[..., Any], sizes: list[int]) -> Callable[..., Any]:
    def noting(tensor: Tensor, size: int, *rest: Any) -> Any:
        sizes.append(size)
        return split(tensor, size, *rest)

    return noting


def test_sums_of_a_block_of_tasks_are_spread_over_programs(monkeypatch: pytest.MonkeyPatch) -> None:
    """As many as there are pieces of a gradient; a piece has the bits that it would have alone."""
    from memformer_kernels.backends.triton import sums

    grids, launched = [], sums.launch

    def note(kernel: object, programs: int, **arguments: object) -> None:
        grids.append(programs)
        launched(kernel, programs, **arguments)

    monkeypatch.setattr(sums, "launch", note)
    partials = normal(seeded(8), 130, 1000).float()
    total = sums.over_tasks(partials, 8)
    assert grids == [5 * 32, 2 * 32]  # groups of 32, and what they leave of two blocks
    assert torch.equal(total[320:352], sums.over_tasks(partials[:, 320:352].contiguous(), 8))


@pytest.mark.parametrize("asked", [(), ("h",), ("b",), ("w0",), ("b", "w0"), ("h", "b", "w0")])
def test_gradients_of_a_quadratic_are_made_where_they_are_needed(asked: tuple[str, ...]) -> None:
    """The others are not even allocated."""
    generator = seeded(13)
    shapes = {"h": (3, 4, 4), "b": (3, 4), "a": (2, 4, 4), "w0": (3, 4)}
    leaves = {name: normal(generator, *shape).requires_grad_(name in (*asked, "a")) for name, shape in shapes.items()}

    def run(backend: str) -> list[Tensor]:
        made = lfom_solve(leaves["h"], leaves["b"], leaves["a"], w0=leaves["w0"], backend=backend)
        return list(torch.autograd.grad(made.sin().sum(), [leaves[name] for name in (*asked, "a")]))

    given: list[Any] = []
    out = lfom_solve(leaves["h"], leaves["b"], leaves["a"], w0=leaves["w0"], backend="triton")
    with (
        torch.autograd.set_multithreading_enabled(False),
        launch.observed(lambda kernel, _, arguments: given.append(arguments.get("grads"))),
    ):
        torch.autograd.grad(out.sum(), [leaves[name] for name in (*asked, "a")])
    wanted = {"matrix": "h" in asked, "offset": "b" in asked, "start": "w0" in asked, "z": False}
    assert {name: x is not None for name, x in given[0]._asdict().items()} == wanted
    agree(run("triton"), run("torch"))


@pytest.mark.parametrize("structure", ["response-only", "block"])
@pytest.mark.parametrize("need_z", [False, True])
def test_gradients_of_gram_matrices_are_made_where_those_of_tokens_are_needed(structure: str, need_z: bool) -> None:
    """One task of a long context, whose Gram matrix another kernel makes."""
    z = normal(seeded(14), 1, 600, 4).requires_grad_(need_z)
    q = normal(seeded(15), 1, 1, 3, 3, scale=0.1).requires_grad_()
    made = memformer_predict(z, q, q if structure == "block" else None, backend="triton", algorithm="gram")
    given: list[Any] = []
    with (
        torch.autograd.set_multithreading_enabled(False),
        launch.observed(lambda kernel, _, arguments: given.append(arguments.get("grads"))),
    ):
        torch.autograd.grad(made.sum(), [q, z] if need_z else [q])
    (grads,) = (x for x in given if x is not None)
    assert grads.z is None
    assert (grads.matrix is not None) == need_z


@pytest.mark.parametrize("need_past", [False, True])
def test_gradients_of_registers_from_before_are_made_where_they_are_needed(need_past: bool) -> None:
    generator = seeded(17)
    z, q = normal(generator, 2, 5, 3), normal(generator, 1, 3, 3, scale=0.3).requires_grad_()
    past = [normal(generator, 2, 1, 5, 3).requires_grad_(need_past) for _ in range(2)]
    gamma, beta = normal(generator, 3, 1, 1, 3).requires_grad_(), normal(generator, 1, 1, 3).requires_grad_()
    leaves = [q, gamma, beta, *(past if need_past else [])]
    results: dict[str, list[Tensor]] = {}
    given: list[Any] = []
    for backend in ("triton", "torch"):
        made, register = memformer_layer(z, q, None, past, gamma, beta, backend=backend)
        total = made.sin().sum() + register.cos().sum()
        if backend == "triton":
            with (
                torch.autograd.set_multithreading_enabled(False),
                launch.observed(lambda kernel, _, arguments: given.append(arguments.get("grads"))),
            ):
                torch.autograd.grad(total, leaves, retain_graph=True)
        results[backend] = list(torch.autograd.grad(total, leaves))
    (grads,) = (x for x in given if x is not None)
    assert (grads.past is not None) == need_past
    agree(results["triton"], results["torch"])
