"""What Triton's interpreter computes wrong is refused by every operation before it does."""

from collections.abc import Callable

import pytest
import torch

from memformer_kernels import (
    lfom_solve,
    linear_attention,
    memformer_layer,
    memformer_loss,
    memformer_predict,
    memformer_stack,
    register_update,
)
from memformer_kernels.backends.triton import launch
from memformer_kernels.testing import relative_error
from memformer_kernels.torch_ops import ops
from tests.memformer_kernels.cases import normal, seeded

BFLOAT16, FLOAT16 = torch.bfloat16, torch.float16


def _tokens(width: int, dtype: torch.dtype, tokens: int = 20) -> torch.Tensor:
    return normal(seeded(1), 2, tokens, width).to(dtype)


def _attention(dtype: torch.dtype, width: int) -> torch.Tensor:
    q = _tokens(width, dtype)[:, :, None]
    return linear_attention(q, q, q, causal=True, backend="triton")


CALLS: dict[str, Callable[[torch.dtype, int], object]] = {
    "Gram matrix": lambda dtype, d: ops.context_gram(_tokens(d, dtype), None, 17, "triton"),
    "stack": lambda dtype, d: memformer_stack(_tokens(d, dtype), torch.zeros(1, 1, d, d), backend="triton"),
    "prediction": lambda dtype, d: memformer_predict(_tokens(d, dtype), torch.zeros(1, 1, d, d), backend="triton"),
    "loss": lambda dtype, d: memformer_loss(
        _tokens(d, dtype), torch.zeros(2, 1), torch.zeros(1, 1, d, d), backend="triton"
    ),
    "layer": lambda dtype, d: memformer_layer(_tokens(d, dtype), torch.zeros(1, d, d), backend="triton"),
    "attention": _attention,
    "register update": lambda dtype, d: register_update(
        _tokens(d, dtype), [_tokens(d, dtype)], torch.ones(1, d), backend="triton"
    ),
}


@pytest.mark.parametrize("width", [6, 16, 130])
@pytest.mark.parametrize("name", CALLS)
def test_bfloat16_is_refused(name: str, width: int) -> None:
    """Its products were wrong by factors of 10^9 where a kernel multiplies tiles: from 16 features on, in attention."""
    with pytest.raises(RuntimeError, match=r"got bfloat16 tensors, .* float16 or float32"):
        CALLS[name](BFLOAT16, width)


def test_nothing_is_launched_before(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("launched")

    for module in ("gram", "network", "attention", "register_update"):
        monkeypatch.setattr(f"memformer_kernels.backends.triton.{module}.launch", refuse)
    for call in CALLS.values():
        with pytest.raises(RuntimeError, match="bfloat16"):
            call(BFLOAT16, 16)


def test_compiled_kernels_take_bfloat16(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launch, "interpreted", lambda: False)
    monkeypatch.setattr(launch, "triton_on_host", object)
    launch.check_tensor(torch.zeros(1, dtype=BFLOAT16))


@pytest.mark.parametrize("width", [6, 16, 33])
def test_float16_is_right(width: int) -> None:
    """Products of a Gram matrix, and of attention, whose result is float16."""
    z = _tokens(width, FLOAT16)
    labelled = z[:, :17].double()
    assert relative_error(ops.context_gram(z, None, 17, "triton"), labelled.mT @ labelled) < 1e-6
    exact = linear_attention(*[z.double()[:, :, None]] * 3, causal=True, backend="torch")
    assert relative_error(_attention(FLOAT16, width), exact) < 2.0**-11


def test_quadratics_have_no_half_precision() -> None:
    h, b, a = (torch.zeros(shape, dtype=BFLOAT16) for shape in ((1, 3, 3), (1, 3), (1, 3, 3)))
    with pytest.raises(TypeError):
        lfom_solve(h, b, a, backend="triton")
