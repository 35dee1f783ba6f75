"""Linear attention with factored heads: parity with the n-by-n form, precision, isolation, long sequences, errors."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck

from memformer_kernels import attention_state, attention_step, explain, linear_attention, reference
from memformer_kernels.testing import relative_error
from tests.memformer_kernels.own_models.options import (
    BACKENDS,
    OPTIONS,
    bounds,
    each_instruction_set,
    heads,
    needs_native,
    on_every_backend,
    with_gradients,
)


@on_every_backend
@pytest.mark.parametrize("name", OPTIONS)
@pytest.mark.parametrize("tokens", [1, 130])
def test_equals_the_literal_form_with_every_gradient(name: str, tokens: int, backend: str) -> None:
    options = OPTIONS[name](3, tokens)
    leaves = heads(3, tokens, 5, 7)
    ours = with_gradients(linear_attention(*leaves, backend=backend, **options), leaves)
    exact = with_gradients(reference.linear_attention(*leaves, **options), leaves)
    for made, value in zip(ours, exact, strict=True):
        torch.testing.assert_close(made, value, rtol=1e-10, atol=1e-12)


@on_every_backend
@pytest.mark.parametrize("width", [16, 100, 256])
@pytest.mark.parametrize("name", ["mask and context", "causal", "causal packed"])
def test_every_width_of_a_head(width: int, name: str, backend: str) -> None:
    options = OPTIONS[name](2, 150)
    leaves = heads(2, 150, width)
    ours = with_gradients(linear_attention(*leaves, backend=backend, **options), leaves)
    exact = with_gradients(reference.linear_attention(*leaves, **options), leaves)
    for made, value in zip(ours, exact, strict=True):
        torch.testing.assert_close(made, value, rtol=1e-10, atol=1e-12)


@on_every_backend
@pytest.mark.parametrize("name", OPTIONS)
@pytest.mark.parametrize(
    ("dtype", "budget"), [(torch.float32, 0.0), (torch.bfloat16, 2.0**-8), (torch.float16, 2.0**-11)]
)
def test_error_is_that_of_the_literal_form_in_the_same_precision(
    name: str, dtype: torch.dtype, budget: float, backend: str
) -> None:
    """Half precision is summed in float32: what is left is the rounding of results to their dtype."""
    options = OPTIONS[name](3, 200)
    narrow = [x.detach().to(dtype).requires_grad_() for x in heads(3, 200, 16)]
    wide = [x.detach().double().requires_grad_() for x in narrow]
    exact = with_gradients(reference.linear_attention(*wide, **options), wide)
    ours = with_gradients(linear_attention(*narrow, backend=backend, **options), narrow)
    assert all(made.dtype == dtype for made in ours)
    twins = [x.detach().float().requires_grad_() for x in narrow]
    twin = with_gradients(reference.linear_attention(*twins, **options), twins)
    for made, plain, value in zip(ours, twin, exact, strict=True):
        assert relative_error(made, value) <= 3 * max(relative_error(plain, value), budget)


@pytest.mark.parametrize("name", ["context", "mask and ragged", "packed", "causal mask", "causal packed"])
def test_first_and_second_derivatives(name: str) -> None:
    options = OPTIONS[name](1, 4)
    leaves = heads(1, 4, 2, 3, heads=1)

    def attend(*tensors: Tensor) -> Tensor:
        return linear_attention(*tensors, **options)

    assert gradcheck(attend, leaves, check_forward_ad=True)
    assert gradgradcheck(attend, leaves)


@on_every_backend
@pytest.mark.parametrize("causal", [False, True])
def test_padding_is_never_read(causal: bool, backend: str) -> None:
    """It may hold NaN, gets zeros and has exactly zero gradient; the rest is as if it were not there."""
    mask = torch.ones(2, 100, dtype=torch.bool)
    mask[0, 70:] = False
    mask[1, :30] = False
    clean = heads(2, 100, 4)
    dirty = [torch.where(mask[:, :, None, None], x.detach(), torch.nan).requires_grad_() for x in clean]
    made = with_gradients(linear_attention(*dirty, mask=mask, causal=causal, backend=backend), dirty)
    exact = with_gradients(linear_attention(*clean, mask=mask, causal=causal, backend=backend), clean)
    for ours, value in zip(made, exact, strict=True):
        assert torch.equal(ours, value)
        assert ours[~mask].eq(0).all()
    alone = linear_attention(*(x[:1, :70] for x in clean), causal=causal)
    torch.testing.assert_close(made[0][:1, :70], alone)


@on_every_backend
def test_a_sample_without_keys_gets_zeros(backend: str) -> None:
    leaves = heads(2, 6, 4)
    mask = torch.tensor([[True] * 6, [False] * 6])
    for made in with_gradients(linear_attention(*leaves, mask=mask, backend=backend), leaves):
        assert made[0].ne(0).any()
        assert made[1].eq(0).all()


@on_every_backend
@pytest.mark.parametrize("causal", [False, True])
def test_packed_sequences_do_not_see_each_other(causal: bool, backend: str) -> None:
    """A NaN in one reaches no other; each is what it is alone."""
    ends = bounds(120)
    leaves = heads(1, 120, 4)
    with torch.no_grad():
        for x in leaves:
            x[:, 3] = torch.nan
    made = with_gradients(linear_attention(*leaves, cu_seqlens=ends, causal=causal, backend=backend), leaves)
    for first, last in zip(ends[1:-1].tolist(), ends[2:].tolist(), strict=True):
        if first < last:
            alone = [x.detach()[:, first:last].requires_grad_() for x in leaves]
            exact = linear_attention(*alone, causal=causal, backend=backend)
            torch.testing.assert_close(made[0][:, first:last], exact)
        for ours in made:
            assert ours[:, first:last].isfinite().all()
    assert made[0][:, :60].isnan().any()


@on_every_backend
def test_causal_chunks_do_not_see_later_tokens(backend: str) -> None:
    q, k, v = (x.detach() for x in heads(1, 300, 4))
    before = linear_attention(q, k, v, causal=True, backend=backend)
    for x in (q, k, v):
        x[:, 256:] = torch.nan
    after = linear_attention(q, k, v, causal=True, backend=backend)
    assert torch.equal(before[:, :256], after[:, :256])


@on_every_backend
@pytest.mark.parametrize("layout", ["transposed", "expanded", "sliced"])
def test_layouts(layout: str, backend: str) -> None:
    q, k, v = (x.detach() for x in heads(2, 70, 4))
    changed = {
        "transposed": lambda x: x.transpose(1, 2).contiguous().transpose(1, 2),
        "expanded": lambda x: x[:1].expand(2, -1, -1, -1),
        "sliced": lambda x: torch.cat([x, x], -1)[..., ::2],
    }[layout]
    leaves = [changed(x).requires_grad_() for x in (q, k, v)]
    plain = [changed(x).contiguous().requires_grad_() for x in (q, k, v)]
    for ours, value in zip(
        torch.autograd.grad(linear_attention(*leaves, causal=True, backend=backend).sum(), leaves),
        torch.autograd.grad(linear_attention(*plain, causal=True, backend="torch").sum(), plain),
        strict=True,
    ):
        torch.testing.assert_close(ours, value)


@on_every_backend
@pytest.mark.parametrize("name", OPTIONS)
def test_an_empty_batch(name: str, backend: str) -> None:
    leaves = [x.detach()[:0].requires_grad_() for x in heads(1, 5, 4)]
    for made in with_gradients(linear_attention(*leaves, backend=backend, **OPTIONS[name](0, 5)), leaves):
        assert made.shape == leaves[0].shape


@pytest.mark.parametrize("causal", [False, True])
def test_one_token_at_a_time_equals_the_whole(causal: bool) -> None:
    q, k, v = (x.detach() for x in heads(2, 80, 4, 6))
    whole = linear_attention(q, k, v, causal=True)
    state = attention_state(k[:, :50], v[:, :50])
    for token in range(50, 80):
        out, state = attention_step(q[:, token], k[:, token], v[:, token], state)
        torch.testing.assert_close(out, whole[:, token], rtol=1e-10, atol=1e-12)
    assert state.tokens.tolist() == [80, 80]


_ONE, _TWO = torch.zeros(2, 3, 4), torch.zeros(2, 3, 4, dtype=torch.float64)
_STATE = attention_state(torch.zeros(2, 0, 3, 4), torch.zeros(2, 0, 3, 4))


@pytest.mark.parametrize(
    ("q", "k", "v", "state", "kind", "message"),
    [
        (_ONE, _ONE, _ONE, tuple(_STATE), TypeError, "state: expected an AttentionState, got "),
        (_ONE, _ONE, _ONE, [*_STATE], TypeError, "state: expected an AttentionState, got "),
        (_ONE, _TWO, _ONE, _STATE, TypeError, "k: expected the first argument's dtype torch.float32"),
        (_ONE, _ONE, _TWO, _STATE, TypeError, "v: expected the first argument's dtype torch.float32"),
        (_ONE.bfloat16(), _ONE, _ONE, _STATE, TypeError, "k: expected the first argument's dtype torch.bfloat16"),
        (_TWO, _TWO, _TWO, _STATE, TypeError, "state.sum: expected torch.float64, in which tokens of torch.float64"),
        (_ONE, _ONE, _ONE, _STATE._replace(sum=_STATE.sum.double()), TypeError, "state.sum: expected torch.float32"),
        (_ONE, _ONE, _ONE, _STATE._replace(sum=_STATE.sum.bfloat16()), TypeError, "state.sum: expected torch.float32"),
        (_ONE[:, :2], _ONE, _ONE, _STATE, ValueError, "q: expected shape"),
    ],
)
def test_a_step_takes_one_dtype_and_a_state_of_it(
    q: Tensor, k: Tensor, v: Tensor, state: Any, kind: type[Exception], message: str
) -> None:
    with pytest.raises(kind, match=message):
        attention_step(q, k, v, state)


def test_a_history_has_one_dtype() -> None:
    with pytest.raises(TypeError, match="v: expected the first argument's dtype"):
        attention_state(_ONE[:, None], _TWO[:, None])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_tokens_step_on_a_state_in_float32(dtype: torch.dtype) -> None:
    half = torch.ones(2, 3, 4, dtype=dtype)
    out, state = attention_step(half, half, half, _STATE)
    assert (out.dtype, state.sum.dtype) == (dtype, torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert attention_step(half.bfloat16(), _ONE, half.bfloat16(), state)[0].dtype == torch.bfloat16


@needs_native
@pytest.mark.usefixtures("_threads_as_before")
@pytest.mark.parametrize("name", ["ragged", "causal", "packed"])
def test_the_native_sums_have_one_order_for_any_threads(name: str) -> None:
    leaves = [x.detach().float().requires_grad_() for x in heads(3, 100, 8)]
    made = []
    for threads in (1, 3):
        torch.set_num_threads(threads)
        made.append(with_gradients(linear_attention(*leaves, backend="cpu", **OPTIONS[name](3, 100)), leaves))
    assert all(torch.equal(x, y) for x, y in zip(*made, strict=True))


@needs_native
@pytest.mark.parametrize("name", ["mask", "causal mask"])
def test_every_instruction_set(name: str) -> None:
    options = OPTIONS[name](2, 70)
    for widths in ((8, 8), (33, 20), (48, 64), (100, 112)):
        leaves = heads(2, 70, *widths)
        exact = with_gradients(reference.linear_attention(*leaves, **options), leaves)
        for _ in each_instruction_set():
            for made, value in zip(
                with_gradients(linear_attention(*leaves, backend="cpu", **options), leaves), exact, strict=True
            ):
                torch.testing.assert_close(made, value, rtol=1e-10, atol=1e-12)


@on_every_backend
@pytest.mark.slow
@pytest.mark.parametrize("causal", [False, True])
def test_a_million_tokens(causal: bool, backend: str) -> None:
    """Forward and backward, against the recurrence at a few places."""
    tokens = 1_000_000
    leaves = [
        torch.randn(1, tokens, 1, 16, generator=torch.Generator().manual_seed(i), requires_grad=True) for i in range(3)
    ]
    out = linear_attention(*leaves, causal=causal, backend=backend)
    (grad,) = torch.autograd.grad(out[0, -1, 0, 0], leaves[2])
    q, k, v = (x.detach().double()[0, :, 0] for x in leaves)
    for place in (0, 63, 64, 499_999, tokens - 1):
        end = place + 1 if causal else tokens
        exact = q[place] @ (k[:end].T @ v[:end]) / end
        torch.testing.assert_close(out[0, place, 0].double(), exact, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(grad[0, :, 0, 0].double(), k @ q[-1] / tokens, rtol=1e-4, atol=1e-9)


BAD: dict[str, tuple[Callable[[Tensor], tuple[tuple[Any, ...], dict[str, Any]]], type[Exception], str]] = {
    "axes": (lambda x: ((x[0], x[0], x[0]), {}), ValueError, "q: expected queries"),
    "key shape": (lambda x: ((x, x[:, :-1], x), {}), ValueError, "k: expected q's shape"),
    "value shape": (lambda x: ((x, x, x[:, :-1]), {}), ValueError, "v: expected values"),
    "dtype": (lambda x: ((x, x.double(), x), {}), TypeError, "k: expected the first argument's dtype"),
    "kind": (lambda x: ((x, [1], x), {}), TypeError, "k: expected a dense tensor"),
    "causal kind": (lambda x: ((x, x, x), {"causal": 1}), TypeError, "causal: expected a bool"),
    "context and causal": (lambda x: ((x, x, x), {"causal": True, "context": 2}), ValueError, "context: .*causal"),
    "context range": (lambda x: ((x, x, x), {"context": 9}), ValueError, "context: .*from 1 to N = 8"),
    "lengths": (lambda x: ((x, x, x), {"context": torch.tensor([0, 3])}), ValueError, "lengths from 0 to 3"),
    "lengths kind": (lambda x: ((x, x, x), {"context": torch.ones(2)}), TypeError, "context: expected an int"),
    "mask kind": (lambda x: ((x, x, x), {"mask": torch.ones(2, 8)}), TypeError, "mask: expected a bool tensor"),
    "mask shape": (lambda x: ((x, x, x), {"mask": torch.ones(8, 2).bool()}), ValueError, "mask: expected shape"),
    "bounds": (lambda x: ((x, x, x), {"cu_seqlens": torch.tensor([0, 5])}), ValueError, "rise from 0 to N = 8"),
    "bounds fall": (lambda x: ((x, x, x), {"cu_seqlens": torch.tensor([0, 5, 3, 8])}), ValueError, "rise from 0"),
    "bounds and mask": (
        lambda x: ((x, x, x), {"cu_seqlens": torch.tensor([0, 8]), "mask": torch.ones(2, 8).bool()}),
        ValueError,
        "mask: expected None together with cu_seqlens",
    ),
    "backend": (lambda x: ((x, x, x), {"backend": "fast"}), ValueError, "backend: expected one of"),
}


@pytest.mark.parametrize("name", BAD)
def test_errors_name_the_argument(name: str) -> None:
    make, kind, message = BAD[name]
    arguments, options = make(torch.zeros(2, 8, 2, 4))
    with pytest.raises(kind, match=message):
        linear_attention(*arguments, **options)


def test_explain_knows_it() -> None:
    q, k, v = heads(2, 5, 4)
    assert explain(q, k, v, causal=True).backend == BACKENDS[-1]
    assert explain(q, k, v, backend="torch").backend == "torch"
    wide = torch.zeros(1, 2, 1, 300)
    assert explain(wide, wide, wide).backend == "torch"
    assert explain(q, k=k, v=v).regime == explain(q=q, k=k, v=v).regime == "factored heads"
    z, registers, gamma = torch.zeros(2, 3), [torch.zeros(2, 3)], torch.ones(1)
    assert explain(z, registers, gamma, backend="torch").backend == "torch"
    assert explain(z.bfloat16(), [z.bfloat16()], gamma).backend == "torch"
