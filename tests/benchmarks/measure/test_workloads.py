"""The bytes-and-operations models against hand counts, loop counts and torch's own operation counter."""

from dataclasses import replace

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.measure.data import make_batch, make_parameters
from benchmarks.measure.workloads import BATCHES, W_FULL, WORKLOAD_BATCHES, WORKLOADS, Operations, W, Workload
from benchmarks.peers.formulations import Loss, gram, reassociated


def test_workload_w_by_hand() -> None:
    assert W.bytes_per_task == 21 * 6 * 4 + 4
    assert W.operations == Operations(gram=400, forward=230, backward=380)
    assert W.operations.total == 1010
    # 4 matrices A of 5 x 5 and 16 gammas of 6, read, and their gradients written.
    assert W.with_batch(1).bytes_moved == 508 + 2 * (100 + 96) * 4
    assert W.with_batch(1_000_000).bytes_moved == 508_000_000 + 1568


def test_full_hadamard_gamma_by_hand() -> None:
    assert W_FULL.parameter_shapes["gamma"] == (4, 4, 1, 21, 6)
    assert W_FULL.bytes_per_task == W.bytes_per_task
    operations = W_FULL.operations
    # Four products X^T y (100) and A b (25), three registers of 21 rows and one of the query's (5 each), six updates of
    # 21 rows and four of the query's.
    assert operations == Operations(gram=0, forward=500 + 320 + 130, backward=260 + 320 + 200 + 300)


def count_gram_space(d: int, layers: int) -> tuple[int, int]:
    """Multiply-adds of the learned first-order method and its adjoint, one loop nest after the other."""
    forward = backward = 0
    for layer in range(layers):
        forward += d * d if layer else 0
        forward += d * d
        for _register in range(layer + 1):
            forward += d
    forward += d
    backward += d
    for layer in reversed(range(layers)):
        for _register in range(layer + 1):
            backward += d + d
        backward += d * d + d * d
        backward += d * d if layer else 0
    return forward, backward


@pytest.mark.parametrize(("d", "layers"), [(1, 1), (2, 3), (5, 4), (16, 7)])
def test_gram_space_operations_equal_a_count_by_loops(d: int, layers: int) -> None:
    operations = replace(W, d=d, layers=layers).operations
    assert (operations.forward, operations.backward) == count_gram_space(d, layers)
    assert operations.gram == W.n * sum(1 for i in range(d) for _ in range(i, d + 1))


def counted(workload: Workload, loss: Loss) -> tuple[float, float]:
    """Multiply-adds per task in the matrix products of the forward and of the backward pass."""
    cpu = torch.device("cpu")
    parameters = make_parameters(workload, 0, cpu)
    batch = make_batch(workload, 1, cpu)
    forward = FlopCounterMode(display=False)
    with forward:
        q, gamma = parameters
        value = loss(*batch, q, gamma, workload.n)
    backward = FlopCounterMode(display=False)
    with backward:
        torch.autograd.grad(value, [q, gamma])
    return forward.get_total_flops() / 2 / workload.batch, backward.get_total_flops() / 2 / workload.batch


@pytest.mark.parametrize(("d", "n", "layers"), [(5, 20, 4), (3, 8, 2)])
def test_gram_space_operations_equal_the_counted_ones(d: int, n: int, layers: int) -> None:
    workload = replace(W, d=d, n=n, layers=layers, batch=7)
    forward, backward = counted(workload, gram)
    # The library's Gram product is not symmetric, and autograd skips the adjoint of layer 0's g, which is b.
    assert forward == n * (d + 1) ** 2 + workload.operations.forward
    assert backward == workload.operations.backward - d * d


@pytest.mark.parametrize(("d", "n", "layers"), [(5, 20, 4), (3, 8, 2)])
def test_token_space_operations_equal_the_counted_ones(d: int, n: int, layers: int) -> None:
    workload = replace(W_FULL, d=d, n=n, layers=layers, batch=7)
    forward, backward = counted(workload, reassociated)
    # The updates are elementwise, which the counter does not see.
    updates = layers * (layers - 1) // 2 * (n + 1) + layers
    assert forward == workload.operations.forward - updates
    assert backward == workload.operations.backward - 2 * updates - d * d


def test_what_other_networks_and_directions_move_and_compute() -> None:
    forward = replace(W, direction="forward")
    assert forward.operations == Operations(gram=400, forward=230, backward=0)
    # Tokens read and one prediction written; parameters read only.
    assert forward.with_batch(1).bytes_moved == 508 + (100 + 96) * 4
    moved = replace(W, direction="forward+backward to tokens")
    assert moved.bytes_per_task == W.bytes_per_task + 21 * 6 * 4
    # H's adjoint after three layers, X times it, both outer products with b's adjoint, the query's row.
    assert moved.operations.backward == W.operations.backward + 3 * 25 + 20 * (25 + 10) + 5
    assert replace(W, dtype="bfloat16").bytes_per_task == W.bytes_per_task / 2
    assert replace(W, rule="linear").parameter_shapes.keys() == {"q"}
    cgd = replace(W, rule="cgd", granularity="full")
    assert cgd.parameter_shapes["beta"] == (4, 1, 21, 6)
    assert cgd.token_axis
    assert (cgd.network.weighted, cgd.network.decayed) == (4, 3)
    gated = replace(W, rule="gated_heads", heads=3)
    assert gated.network.heads == 3
    assert replace(W, heads=3).network.heads == 1
    assert replace(W, d=30).network.token_space


def test_float64_doubles_the_bytes() -> None:
    assert replace(W, dtype="float64").bytes_moved == 2 * W.bytes_moved


@pytest.mark.parametrize(
    ("granularity", "shape"),
    [
        ("scalar", (4, 4, 1, 1, 1)),
        ("feature", (4, 4, 1, 1, 6)),
        ("token", (4, 4, 1, 21, 1)),
        ("full", (4, 4, 1, 21, 6)),
    ],
)
def test_gamma_has_the_shape_of_its_granularity(granularity: str, shape: tuple[int, ...]) -> None:
    assert replace(W, granularity=granularity).parameter_shapes["gamma"] == shape


@pytest.mark.parametrize(
    ("field", "value"),
    [("d", 0), ("batch", -1), ("rule", "newton"), ("granularity", "row"), ("dtype", "int8"), ("structure", "free")],
)
def test_a_bad_field_is_named(field: str, value: object) -> None:
    with pytest.raises(ValueError, match=rf"{field} must be .*{value}"):
        replace(W, **{field: value})  # type: ignore[arg-type]


def test_the_registry_knows_workloads_by_their_name() -> None:
    assert {name: workload.name for name, workload in WORKLOADS.items()} == {"W": "W", "W_full": "W_full"}


def test_every_workload_has_its_sizes() -> None:
    assert WORKLOAD_BATCHES.keys() == WORKLOADS.keys()
    assert WORKLOAD_BATCHES["W"] == BATCHES
    assert set(WORKLOAD_BATCHES["W_full"]) < set(BATCHES)
