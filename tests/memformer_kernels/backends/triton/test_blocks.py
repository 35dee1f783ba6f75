"""Linear attention and the register update as Triton kernels: parity with the plain forms, gradients included."""

import pytest
import torch

from memformer_kernels import linear_attention, reference, register_update
from memformer_kernels.testing import relative_error
from tests.memformer_kernels.own_models.options import OPTIONS, SHAPES, heads, tokens_and_registers, with_gradients

HALF = (torch.float16,) if not torch.cuda.is_available() else (torch.float16, torch.bfloat16)
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def _attention(name: str, tokens: int, width: int, value_width: int, dtype: torch.dtype, batch: int = 2) -> None:
    options = {
        key: value.to(DEVICE) if isinstance(value, torch.Tensor) else value
        for key, value in OPTIONS[name](batch, tokens).items()
    }
    leaves = [x.detach().to(DEVICE, dtype).requires_grad_() for x in heads(batch, tokens, width, value_width)]
    wide = [x.detach().double().requires_grad_() for x in leaves]
    ours = with_gradients(linear_attention(*leaves, backend="triton", **options), leaves)
    exact = with_gradients(reference.linear_attention(*wide, **options), wide)
    twins = [x.detach().to(torch.float32 if dtype != torch.float64 else dtype).requires_grad_() for x in leaves]
    twin = with_gradients(reference.linear_attention(*twins, **options), twins)
    rounding = {torch.float64: 1e-12, torch.float32: 1e-7, torch.float16: 2.0**-11, torch.bfloat16: 2.0**-8}[dtype]
    for made, plain, value in zip(ours, twin, exact, strict=True):
        assert made.dtype == dtype
        assert relative_error(made, value) <= 3 * max(relative_error(plain, value), rounding)


@pytest.mark.parametrize("name", OPTIONS)
@pytest.mark.parametrize("tokens", [pytest.param(1, marks=pytest.mark.slow), 70])
def test_attention_equals_the_literal_form(name: str, tokens: int) -> None:
    _attention(name, tokens, 5, 7, torch.float32)


@pytest.mark.parametrize("name", [pytest.param("mask", marks=pytest.mark.slow), "causal mask"])
def test_sequences_divided_among_programs(name: str) -> None:
    """More tokens than one program takes: their sums are handed on."""
    _attention(name, 700, 4, 3, torch.float32, batch=1)


@pytest.mark.parametrize(
    "width", [16, 33, 64, pytest.param(128, marks=pytest.mark.slow), pytest.param(256, marks=pytest.mark.slow)]
)
def test_attention_of_every_width(width: int) -> None:
    _attention("causal", 40, width, width, torch.float32, batch=1)


@pytest.mark.parametrize("dtype", [torch.float64, *HALF])
@pytest.mark.parametrize("name", ["mask and ragged", "causal", "packed"])
def test_attention_of_every_dtype(name: str, dtype: torch.dtype) -> None:
    _attention(name, 70, 16, 16, dtype)


@pytest.mark.parametrize("causal", [False, True])
def test_attention_reads_no_padding(causal: bool) -> None:
    mask = torch.arange(70, device=DEVICE).expand(2, 70) < 50
    leaves = [x.detach().float().to(DEVICE).requires_grad_() for x in heads(2, 70, 4)]
    with torch.no_grad():
        for x in leaves:
            x[:, 50:] = torch.nan
    for made in with_gradients(linear_attention(*leaves, mask=mask, causal=causal, backend="triton"), leaves):
        assert made.isfinite().all()
        assert made[:, 50:].eq(0).all()


def test_strided_attention() -> None:
    q, k, v = (x.detach().float().to(DEVICE) for x in heads(2, 20, 4))
    turned = [x.permute(3, 2, 1, 0).contiguous().permute(3, 2, 1, 0) for x in (q, k, v)]
    for causal in (False, True):
        exact = linear_attention(q, k, v, causal=causal, backend="torch")
        torch.testing.assert_close(linear_attention(*turned, causal=causal, backend="triton"), exact)


@pytest.mark.parametrize("gamma", SHAPES, ids=str)
def test_register_update_equals_the_plain_sum(gamma: tuple[int, ...]) -> None:
    z, registers, weights = tokens_and_registers((3, 7, 33), gamma)
    leaves = [x.detach().to(DEVICE).requires_grad_() for x in (z, *registers, weights)]
    flat = leaves[-1] if len(gamma) > 1 else leaves[-1].view(-1, 1)
    ours = with_gradients(register_update(leaves[0], leaves[1:-1], leaves[-1], backend="triton"), leaves)
    exact = with_gradients(reference.register_update(leaves[0], leaves[1:-1], flat), leaves)
    for made, value in zip(ours, exact, strict=True):
        torch.testing.assert_close(made, value, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(
    ("shape", "gamma"), [((9000,), (2,)), ((300, 70), (3, 70)), ((150, 4, 40), (2, 4, 1))], ids=str
)
@pytest.mark.parametrize("dtype", [torch.float32, *HALF])
def test_register_update_over_many_programs(shape: tuple[int, ...], gamma: tuple[int, ...], dtype: torch.dtype) -> None:
    z, registers, weights = tokens_and_registers(shape, gamma)
    tokens = [x.detach().to(DEVICE, dtype).requires_grad_() for x in (z, *registers)]
    leaves = [*tokens, weights.detach().float().to(DEVICE).requires_grad_()]
    wide = [x.detach().double().requires_grad_() for x in leaves]
    ours = with_gradients(register_update(leaves[0], leaves[1:-1], leaves[-1], backend="triton"), leaves)
    exact = with_gradients(reference.register_update(wide[0], wide[1:-1], wide[-1]), wide)
    rounding = {torch.float32: 1e-6, torch.float16: 2.0**-11, torch.bfloat16: 2.0**-8}[dtype]
    for made, value in zip(ours, exact, strict=True):
        assert relative_error(made, value) <= rounding


def test_nothing_to_do() -> None:
    empty = torch.zeros(0, 5, 2, 4, device=DEVICE, requires_grad=True)
    out = linear_attention(empty, empty, empty, causal=True, backend="triton")
    assert torch.autograd.grad(out.sum(), empty)[0].shape == empty.shape
    z = torch.zeros(0, 3, device=DEVICE, requires_grad=True)
    gamma = torch.ones(1, 3, device=DEVICE, requires_grad=True)
    update = register_update(z, [z], gamma, backend="triton")
    assert torch.autograd.grad(update.sum(), gamma)[0].eq(0).all()
