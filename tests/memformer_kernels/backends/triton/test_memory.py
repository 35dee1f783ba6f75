"""What the Triton backend allocates beside arguments and results. Kernels are not launched here."""

from typing import Any

import pytest
import torch
from torch import Tensor

from memformer_kernels import memformer_layer, memformer_loss, memformer_predict
from memformer_kernels.backends.triton import launch, rules, sums
from memformer_kernels.calls import plan
from tests.memformer_kernels.allocations import peak_bytes

NUMBER, LAYERS = 4, 2


def _loss_bytes(batch: int, tokens: int, width: int, algorithm: str, structure: str, token_wise: bool = False) -> int:
    """Of a loss and its gradients in the parameters; the tokens are one number, seen everywhere."""
    q = torch.zeros(LAYERS, 1, width - 1, width - 1, requires_grad=True)
    p = None if structure == "response-only" else torch.zeros_like(q).requires_grad_()
    gamma = torch.zeros(LAYERS, LAYERS, 1, tokens if token_wise else 1, width, requires_grad=True)
    z, target = torch.zeros(1).expand(batch, tokens, width), torch.zeros(batch, 1)
    options: dict[str, Any] = {"backend": "triton", "algorithm": algorithm}

    def call() -> tuple[Tensor, ...]:
        leaves = [x for x in (q, p, gamma) if x is not None]
        return torch.autograd.grad(memformer_loss(z, target, q, p, gamma, **options), leaves)

    with launch.observed(lambda kernel, programs, arguments: None):
        return peak_bytes(call)


@pytest.mark.parametrize(
    ("width", "structure"),
    [
        (width, structure)
        for width in (2, 6, 12, 17, 33, 64)
        for structure in ("response-only", "block")
        if structure == "block" or not rules.gram_apart(width)
    ],
)
def test_in_gram_space_memory_grows_by_less_than_a_hundredth_of_the_tokens(width: int, structure: str) -> None:
    """Beside the predictions' gradients."""
    # Blocks of 1024 tasks, more of them than programs.
    few, many, tokens = (2**22, 2**23, 21) if width < rules.DOT_MINIMUM else (2**20, 2**21, max(width, 21))
    made = [_loss_bytes(batch, tokens, width, "gram", structure) for batch in (few, many)]
    a_task = (made[1] - made[0]) / (many - few)
    assert a_task <= NUMBER * (1 + tokens * width / 100)


@pytest.mark.parametrize("width", [33, 64, 128, 129])
def test_gram_matrices_of_wide_tasks_are_there_once(width: int) -> None:
    few, many, tokens = 8192, 16384, 128
    assert rules.gram_apart(width)
    config = rules.vectors_config(width - 1, tokens, torch.float32, 90, gradients=False)
    made = [_loss_bytes(batch, tokens, width, "gram", "response-only") for batch in (few, many)]
    # One partial sum for every task of a chunk: fewer tasks a chunk in batches of these sizes.
    partials = [-(-batch // rules.tasks_a_sum(batch, config.tasks, config.warps)) for batch in (few, many)]
    sums = (partials[1] - partials[0]) * LAYERS * width**2 * NUMBER
    assert made[1] - made[0] - max(sums, 0) <= (many - few) * NUMBER * (1 + width**2 + tokens * width / 100)


@pytest.mark.parametrize("structure", ["response-only", "block"])
@pytest.mark.parametrize("width", [6, 24, 64])
@pytest.mark.parametrize("algorithm", ["gram", "token"])
def test_what_does_not_grow_is_small(width: int, algorithm: str, structure: str) -> None:
    """Scratch and sums of the programs that run at a time: 300 MB, of a GPU's 80 or more GB."""
    for batch in (1000, 8192, 100_000):
        tokens = 64 if algorithm == "gram" else 30
        apart = algorithm == "gram" and structure == "response-only" and rules.gram_apart(width)
        grows = batch * NUMBER * (1 + apart * width**2 + tokens * width / 100)
        assert _loss_bytes(batch, tokens, width, algorithm, structure) <= grows + 300 * 2**20


def test_long_tasks_on_tokens_need_less_than_their_registers() -> None:
    """A task's backward reads every register again: programs have room for them, not tasks."""
    batch, tokens, width = 2000, 4096, 64
    registers = batch * LAYERS * tokens * width * NUMBER
    assert _loss_bytes(batch, tokens, width, "token", "block") < registers / 4


@pytest.mark.parametrize(("structure", "width", "tokens"), [("response-only", 6, 4000), ("block", 17, 200)])
@pytest.mark.parametrize("batch", [1000, 9000, 40_000])
def test_sums_of_large_parameters_are_bounded(
    structure: str, width: int, tokens: int, batch: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A weight for every token: partial sums of it, and running sums, have room for a few, here 2^21 bytes each."""
    bound = 2**21
    monkeypatch.setattr(rules, "SUM_BYTES", bound)
    rules.tasks_a_sum.cache_clear()
    gamma = LAYERS**2 * tokens * (1 if structure == "response-only" else width) * NUMBER
    made, plain = (_loss_bytes(batch, tokens, width, "token", structure, wise) for wise in (True, False))
    rules.tasks_a_sum.cache_clear()
    assert bound // 40 < gamma < bound
    # Blocks of 1024 tasks have a sum each. Then there are gamma in full and its gradients, float64 sums among them.
    blocks = -(-batch // rules.TASKS_A_BLOCK)
    assert made - plain <= 2 * bound + blocks * gamma + 8 * gamma + 4 * blocks * gamma


def test_running_sums_are_there_where_chunks_are_long() -> None:
    """Elsewhere a chunk's tasks join its sum at once."""
    for tasks in (1, 2, 4):
        for chunk_tasks in (tasks, 32 * tasks):
            assert sums.running_numbers([5, 6], chunk_tasks, tasks) == 0
        assert sums.running_numbers([5, 6], 64 * tasks, tasks) == 11


@pytest.mark.parametrize("large", [False, True])
@pytest.mark.parametrize("backward", [False, True])
def test_registers_from_before_are_read_where_they_are(
    backward: bool, large: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two more of them need as much as their gradients, which are results."""
    if large:
        monkeypatch.setattr(plan, "WIDEST_MATRICES", 0)
    tasks, tokens, width = 64, 40, 24
    size = tasks * tokens * width * NUMBER

    def made(before: int) -> int:
        z, q = torch.zeros(tasks, tokens, width), torch.zeros(1, width, width)
        registers = [torch.zeros(tasks, 1, tokens, width, requires_grad=backward) for _ in range(before)]
        gamma = torch.zeros(before + 1, 1, 1, width)

        def call() -> object:
            moved, register = memformer_layer(z, q, q, registers, gamma, backend="triton")
            return torch.autograd.grad([moved, register], registers, [z, z[:, None]]) if backward else (moved, register)

        with launch.observed(lambda kernel, programs, arguments: None):
            return peak_bytes(call)

    assert made(4) - made(2) < (2 * backward + 0.5) * size


@pytest.mark.parametrize("rule", ["own", "shared", "full"])
def test_large_tasks_keep_the_registers_that_are_read_again(rule: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a backward: all of them only where every layer weights every one by itself."""
    monkeypatch.setattr(plan, "WIDEST_MATRICES", 0)
    tasks, tokens, width = 32, 40, 24
    size = tasks * tokens * width * NUMBER
    z = torch.zeros(tasks, tokens, width)

    def made(layers: int) -> int:
        shape = {"own": (layers,), "shared": (1, layers), "full": (layers, layers)}[rule]
        q, gamma = torch.zeros(layers, 1, width, width), torch.zeros(*shape, 1, 1, width)
        with launch.observed(lambda kernel, programs, arguments: None):
            return peak_bytes(lambda: memformer_predict(z, q, q, gamma, backend="triton", algorithm="token"))

    grown = made(8) - made(4)
    assert (grown > 3.5 * size) if rule == "full" else (grown < 0.5 * size)
