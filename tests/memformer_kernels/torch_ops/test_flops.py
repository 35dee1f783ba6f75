"""FLOPs that torch's counter sees, against counts by hand of the products in each algorithm."""

import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode, flop_registry

from memformer_kernels import (
    context_gram,
    lfom_solve,
    linear_attention,
    memformer_layer,
    memformer_loss,
    memformer_predict,
    memformer_stack,
    reference,
    register_update,
)
from tests.memformer_kernels.paths import on_every_backend
from tests.memformer_kernels.torch_ops.test_ops import BACKWARDS, NAMES

B, N, CONTEXT, D_FEATURES, L, H = 32, 9, 8, 4, 3, 2
D, QUERIES = D_FEATURES + 1, 1
E, F, LONG = 4, 3, 128
GRAM = 2 * B * CONTEXT * D * D
SQUARE, CUBE = 2 * B * D_FEATURES**2, 2 * B * D**3


def _counted(call: Callable[[], Any]) -> dict[str, int]:
    with FlopCounterMode(display=False) as counter:
        call()
    return {str(name).rsplit(".", 1)[-1]: flops for name, flops in counter.get_flop_counts()["Global"].items()}


def _leaf(*shape: int) -> Tensor:
    return torch.randn(*shape, requires_grad=True)


Z, TARGET = _leaf(B, N, D), _leaf(B, QUERIES)
BLOCK, DENSE = _leaf(L, 1, D_FEATURES, D_FEATURES), _leaf(L, H, D, D)
MATRICES, VECTORS = _leaf(B, D_FEATURES, D_FEATURES), _leaf(B, D_FEATURES)
QUERY, VALUE = _leaf(B, LONG, H, E), _leaf(B, LONG, H, F)


@on_every_backend
def test_forwards(backend: str) -> None:
    """Whatever the backend that runs them."""

    def predict(q: Tensor, algorithm: str) -> dict[str, int]:
        return _counted(lambda: memformer_predict(Z, q, algorithm=algorithm, backend=backend))

    assert predict(BLOCK, "gram") == {"predict": GRAM + (2 * L - 1) * SQUARE + 2 * B * QUERIES * D_FEATURES}
    last = 2 * B * N * D_FEATURES
    layer = 2 * B * CONTEXT * D_FEATURES + SQUARE + last
    assert predict(BLOCK, "token") == {"predict": L * layer}
    loss = _counted(lambda: memformer_loss(Z.detach(), TARGET.detach(), BLOCK.detach(), backend=backend))
    assert loss == {"loss": predict(BLOCK, "gram")["predict"]}
    dense = _counted(lambda: memformer_stack(Z, DENSE, DENSE, algorithm="token", backend=backend))
    one = GRAM + H * 2 * CUBE + 2 * B * N * D * D
    assert dense == {"stack": L * one}
    assert _counted(lambda: memformer_layer(Z, DENSE[0], DENSE[0], backend=backend)) == {"layer": one}
    assert _counted(lambda: lfom_solve(MATRICES, VECTORS, BLOCK[:, 0], backend=backend)) == {
        "lfom_solve": (2 * L - 1) * SQUARE
    }


def test_dense_gram_space_is_what_the_reference_multiplies() -> None:
    """The reference, code of its own, sums all tokens and multiplies every head by T, and reads nothing out at last."""
    z = Z.detach()
    made = _counted(lambda: memformer_stack(z, DENSE, DENSE, algorithm="gram"))["stack"]
    with FlopCounterMode(display=False) as counter:
        reference.gram_states(z, DENSE, DENSE, None, None, None, context=CONTEXT)
    saved = 2 * B * (N - CONTEXT) * D * D + L * (H - 1) * CUBE
    assert made == counter.get_total_flops() - saved + 2 * B * N * D * D
    assert made == GRAM + L * (3 + 2 * H) * CUBE + 2 * B * N * D * D


def test_backwards() -> None:
    made = _counted(lambda: context_gram(Z).sum().backward())
    assert made == {"context_gram": GRAM, "context_gram_backward": GRAM}
    attended = _counted(lambda: linear_attention(QUERY, QUERY, VALUE).sum().backward())
    one = 2 * B * H * LONG * E * F
    # Each of three gradients is attention again.
    assert attended == {"linear_attention": 2 * one, "linear_attention_backward": 3 * 2 * one}
    solved = _counted(lambda: lfom_solve(MATRICES, VECTORS, BLOCK[:, 0]).sum().backward())
    # The forward again; for every layer A's gradient, the adjoint through A and H's gradient; H's adjoint after it.
    assert solved["lfom_solve_backward"] == (2 * L - 1 + 3 * L + L - 1) * SQUARE
    updated = _counted(lambda: register_update(Z, [Z], _leaf(1, D)).sum().backward())
    assert updated == {"register_update": 0, "register_update_backward": 0}
    trained = _counted(lambda: memformer_loss(Z, TARGET, BLOCK).backward())
    assert trained.keys() == {"loss"}
    predicted = _counted(lambda: memformer_predict(Z, BLOCK).sum().backward())
    assert trained["loss"] == pytest.approx(predicted["predict_backward"], rel=0.01)
    assert predicted["predict_backward"] > 2 * predicted["predict"]


def test_causal_attention_multiplies_chunks() -> None:
    """Within a chunk of 64 scores and their sums, and between chunks a head's sum of keys, read and added to."""
    made = _counted(lambda: linear_attention(QUERY, QUERY, VALUE, causal=True))["linear_attention"]
    assert made == 2 * B * H * LONG * (64 * (E + F) + 2 * E * F)


def test_every_operation_has_a_formula() -> None:
    packets = {getattr(torch.ops.memformer_kernels, name) for name in (*NAMES, *BACKWARDS)}
    assert packets <= set(flop_registry)


@pytest.mark.parametrize(
    "order", ["memformer_kernels, torch.utils.flop_counter", "torch.utils.flop_counter, memformer_kernels"]
)
def test_formulas_are_there_in_either_order_of_imports(order: str) -> None:
    code = (
        f"import torch, {order}; names = [str(x) for x in torch.utils.flop_counter.flop_registry]; "
        f"assert sum('memformer_kernels.' in x for x in names) == {len(NAMES) + len(BACKWARDS)}, names"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
