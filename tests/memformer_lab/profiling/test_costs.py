"""The bytes and operations model, against counts by hand and torch's own counter of matrix products."""

from dataclasses import replace

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from memformer_kernels import reference
from memformer_lab.profiling.costs import Network, Operations

W = Network(5, 20, 1, 4, 1, "response-only", weighted=10, decayed=0, token_space=False)


def test_a_training_pass_of_response_only_networks_by_hand() -> None:
    assert W.operations(training=True) == Operations(400, 230, 380)
    # One weight a layer is one product with d numbers a layer, forward, and two backward.
    assert replace(W, weighted=4).operations(training=True) == Operations(400, 200, 320)
    assert replace(W, weighted=4, decayed=3).operations(training=True) == Operations(400, 215, 350)
    assert replace(W, token_space=True).operations(training=True) == Operations(0, 950, 1080)


def test_a_forward_pass_has_no_backward() -> None:
    assert W.operations(training=False) == Operations(400, 230, 0)


def test_bytes_are_tokens_and_targets_or_predictions() -> None:
    assert W.bytes_per_task(4, training=True) == 21 * 6 * 4 + 4
    assert W.bytes_per_task(2, training=True) == 21 * 6 * 2 + 2
    # Predictions of half-precision tokens are float32.
    assert W.bytes_per_task(2, training=False) == 21 * 6 * 2 + 4
    assert W.bytes_per_task(8, training=False) == 21 * 6 * 8 + 8


@pytest.mark.parametrize(("d", "layers", "heads"), [(3, 1, 1), (5, 4, 1), (4, 3, 2)])
def test_dense_gram_space_equals_the_counted_products(d: int, layers: int, heads: int) -> None:
    random = torch.Generator().manual_seed(0)
    n, width = 9, d + 1
    q, p = (torch.randn(layers, heads, width, width, generator=random) / 9 for _ in range(2))
    z = torch.randn(7, n + 1, width, generator=random)
    counter = FlopCounterMode(display=False)
    with counter:
        reference.gram_states(z, q, p, None, None, None)
    network = Network(d, n, 1, layers, heads, "dense", weighted=0, decayed=0, token_space=False)
    operations = network.operations(training=False)
    # The reference multiplies by T_0 = I too, and sums a Gram matrix of all tokens as if it were not symmetric.
    expected = operations.forward - width + (2 + heads) * width**3 + (n + 1) * width**2
    assert counter.get_total_flops() / 2 / 7 == expected


def test_a_block_costs_less_than_a_dense_matrix_and_more_than_fixed_features() -> None:
    free, dense = (replace(W, structure=name).operations(training=True) for name in ("block", "dense"))
    assert W.operations(training=True).total < free.total < dense.total
    # One layer, one head: A H, its product with Bm^T, A b, ten weighted cells, and a query's dot product.
    one = Network(5, 20, 1, 1, 1, "block", weighted=1, decayed=0, token_space=False)
    assert one.operations(training=False) == Operations(20 * 21, 2 * 125 + 25 + 30 + 5, 0)


def test_tokens_cost_more_than_matrices_where_they_are_many() -> None:
    many = Network(5, 1000, 1, 4, 2, "dense", weighted=10, decayed=3, token_space=False)
    assert replace(many, token_space=True).operations(training=True).total > many.operations(training=True).total
