"""The modules mean what they say: a layer is its formulas, memory starts as none, steps equal the whole."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from memformer_kernels import reference
from memformer_kernels.nn import FEATURE_MAPS, MEMORIES, LayerMemory, MemformerAttention, RegisterMemory
from tests.memformer_kernels.own_models.models import DIM, Block, Remembering, Stack, model, tokens


def _shaken(module: nn.Module) -> nn.Module:
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter += 0.3 * torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype)
    return module


def _by_hand(layer: MemformerAttention, z: Tensor, registers: list[Tensor], **options: Any) -> tuple[Tensor, Tensor]:
    """The formulas of the docstring, with the reference's attention."""
    read = z if layer.prenorm is None else F.rms_norm(z, (DIM,), layer.prenorm.weight, 1e-6)
    q, k, v = (
        p(read).view(*z.shape[:2], layer.num_heads, layer.head_dim) for p in (layer.q_proj, layer.k_proj, layer.v_proj)
    )
    mapped = {"identity": lambda x: x, "elu": lambda x: F.elu(x) + 1, "relu": torch.relu}[layer.feature_map]
    out = reference.linear_attention(mapped(q), mapped(k) / layer.head_dim**0.5, v, causal=layer.causal, **options)
    if layer.norm is not None:
        out = out * (out.square().mean(-1, keepdim=True) + 1e-6).rsqrt() * layer.norm.weight
    att = layer.o_proj(out.flatten(2))
    rule, gamma, beta = layer.memory.memory, layer.memory.gamma, layer.memory.beta
    if rule == "none":
        return z + att, att
    assert gamma is not None or not registers
    if rule == "cgd":
        if beta is not None:
            att = att + beta[0] * registers[-1]
        assert gamma is not None
        return z + gamma[0] * att, att
    own = registers if rule == "lfom_residual" else [*registers, att]
    total = z + att if rule == "lfom_residual" else z
    for index, register in enumerate(own):
        assert gamma is not None
        total = total + gamma[index] * register
    return total, att


@pytest.mark.parametrize("memory", MEMORIES)
@pytest.mark.parametrize("granularity", ["scalar", "feature"])
@pytest.mark.parametrize("causal", [False, True])
def test_a_layer_is_its_formulas(memory: str, granularity: str, causal: bool) -> None:
    for registers in (0, 2):
        layer = MemformerAttention(
            DIM, 2, 5, causal, memory, registers=registers, granularity=granularity, norm=causal, prenorm=not causal,
            bias=causal, dtype=torch.float64,
        )  # fmt: skip
        _shaken(layer)
        z = tokens().double()
        past = [tokens(seed=index).double() for index in range(registers)]
        for made, exact in zip(layer(z, past), _by_hand(layer, z, past), strict=True):
            torch.testing.assert_close(made, exact, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("feature_map", FEATURE_MAPS)
def test_feature_maps_contexts_and_packing(feature_map: str) -> None:
    layer = MemformerAttention(DIM, 4, feature_map=feature_map, dtype=torch.float64)
    z = tokens().double()
    mask = torch.ones(2, 9, dtype=torch.bool)
    mask[1, 6:] = False
    for options in ({"context": 4}, {"context": torch.tensor([3, 9])}, {"mask": mask}):
        exact = _by_hand(layer, z, [], **options)[0]
        torch.testing.assert_close(layer(z, **options)[0], exact, rtol=1e-10, atol=1e-10)
    packed = layer(z[:1], cu_seqlens=torch.tensor([0, 4, 9]))[0]
    torch.testing.assert_close(packed[:, :4], layer(z[:1, :4])[0])
    torch.testing.assert_close(packed[:, 4:], layer(z[:1, 4:])[0])


def test_padding_may_hold_anything() -> None:
    layer = MemformerAttention(DIM, 2, memory="lfom", prenorm=True, norm=True)
    mask = torch.ones(2, 9, dtype=torch.bool)
    mask[0, 5:] = False
    z = torch.where(mask[..., None], tokens(), torch.nan)
    out = layer(z, mask=mask)[0][mask]
    grads = torch.autograd.grad(out.square().sum(), list(layer.parameters()))
    assert out.isfinite().all()
    assert all(grad.isfinite().all() for grad in grads)


@pytest.mark.parametrize("memory", MEMORIES)
def test_memory_starts_as_none_and_every_coefficient_learns(memory: str) -> None:
    torch.manual_seed(0)
    plain = nn.ModuleList(Block() for _ in range(3))
    z = expected = tokens()
    for block in plain:
        expected = block(expected)
    around = RegisterMemory(DIM, 3, memory=memory)
    torch.testing.assert_close(around.run(plain, z), expected)
    out = around.run(plain, z).square().sum()
    for grad in torch.autograd.grad(out, list(around.parameters())) if memory != "none" else ():
        assert grad.ne(0).all()


def test_blocks_by_hand_and_by_run() -> None:
    made = model("blocks")
    assert isinstance(made, Remembering)
    z, registers = tokens(), []
    for block in made.blocks:
        z, register = made.memory(z, block(z) - z, registers)
        registers.append(register)
    assert torch.equal(z, made(tokens()))
    gamma = [layer.gamma for layer in made.memory.layers]
    first = made.blocks[0](tokens()) - tokens()
    second = tokens() + gamma[0] * first
    third = second + gamma[1][0] * first + gamma[1][1] * (made.blocks[1](second) - second)
    exact = third + sum(g * r for g, r in zip(gamma[2], [*registers[:2], made.blocks[2](third) - third], strict=True))
    torch.testing.assert_close(z, exact)


@pytest.mark.parametrize("memory", MEMORIES)
def test_steps_equal_the_whole(memory: str) -> None:
    torch.manual_seed(0)
    stack = _shaken(Stack(causal=True, memory=memory)).double()
    z = tokens(count=80).double()
    whole = stack(z)
    states, prompt, registers = [], z[:, :70], []
    for layer in stack.layers:
        prompt, register, state = layer.prefill(prompt, registers)
        registers.append(register)
        states.append(state)
    torch.testing.assert_close(prompt, whole[:, :70])
    for place in range(70, 80):
        token, registers = z[:, place], []
        for index, layer in enumerate(stack.layers):
            token, register, states[index] = layer.step(token, registers, states[index])
            registers.append(register)
        torch.testing.assert_close(token, whole[:, place], rtol=1e-9, atol=1e-9)
    layer = stack.layers[0]
    first, _, state = layer.step(z[:, 0], [], layer.initial_state(2))
    torch.testing.assert_close(first, layer(z[:, :1])[0][:, 0])
    assert state.tokens.tolist() == [1, 1]


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("feature_map", ["identity", "elu"])
def test_prompts_of_unequal_lengths_go_on_as_each_alone(side: str, feature_map: Any) -> None:
    torch.manual_seed(0)
    layer, lengths = MemformerAttention(16, 2, causal=True, feature_map=feature_map).double(), (7, 3, 1)
    prompts, after = [torch.randn(1, n, 16).double() for n in lengths], torch.randn(3, 16).double()
    padded, mask = torch.full((3, 7, 16), math.nan).double(), torch.zeros(3, 7, dtype=torch.bool)
    for row, prompt in enumerate(prompts):
        there = slice(prompt.shape[1]) if side == "right" else slice(7 - prompt.shape[1], 7)
        padded[row, there], mask[row, there] = prompt[0], True
    z, _, state = layer.prefill(padded, mask=mask)
    assert state.tokens.tolist() == [*lengths]
    following, _, _ = layer.step(after, [], state)
    for row, prompt in enumerate(prompts):
        alone, _, own = layer.prefill(prompt)
        torch.testing.assert_close(z[row][mask[row]], alone[0], rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(following[row], layer.step(after[row : row + 1], [], own)[0][0])


def test_wide_models_stay_of_order_one() -> None:
    """Forward and gradients at width 256, 8 layers, with the normalisations."""
    torch.manual_seed(0)
    z = torch.randn(2, 40, 256)
    layers = [
        MemformerAttention(256, 4, memory="lfom", registers=i, norm=True, prenorm=True) for i in range(8)
    ]  # fmt: skip
    registers: list[Tensor] = []
    out = z
    for layer in layers:
        out, register = layer(out, registers)
        registers.append(register)
    assert 0.5 < float(out.detach().std()) < 5
    out.square().mean().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for layer in layers for p in layer.parameters())


CAUSAL = MemformerAttention(16, 2, causal=True)


@pytest.mark.parametrize(
    ("make", "kind", "message"),
    [
        (lambda: MemformerAttention(10, 3), ValueError, "num_heads: expected a divisor of dim = 10"),
        (lambda: MemformerAttention(16, 0), ValueError, "num_heads: expected an int of at least 1"),
        (lambda: MemformerAttention(2**40, 1), ValueError, "dim: expected sizes that make tensors of less than 2"),
        (lambda: MemformerAttention(16, 1, 2**60), ValueError, "head_dim: expected sizes that make tensors of less"),
        (lambda: LayerMemory(2**62, 0), ValueError, "dim: expected sizes that make tensors of less than 2"),
        (lambda: LayerMemory(16, 2**60), ValueError, "registers: expected sizes that make tensors of less than 2"),
        (lambda: RegisterMemory(16, 2**60), ValueError, "layers: expected sizes that make tensors of less than 2"),
        (lambda: RegisterMemory(16, 2**40), ValueError, "layers: expected at most 65536 layers"),
        (lambda: MemformerAttention(16, 2).initial_state(2**60), ValueError, "batch: expected sizes that make"),
        (lambda: MemformerAttention(16, 2).initial_state(-1), ValueError, "batch: expected an int of at least 0"),
        (lambda: MemformerAttention(16, 2).initial_state(1.0), TypeError, "batch: expected an int"),
        (lambda: MemformerAttention(16.0, 2), TypeError, "dim: expected an int"),
        (lambda: MemformerAttention(16, 2, memory="all"), ValueError, "memory: expected one of none, cgd"),
        (lambda: MemformerAttention(16, 2, feature_map="exp"), ValueError, "feature_map: expected one of"),
        (lambda: MemformerAttention(16, 2, causal=1), TypeError, "causal: expected a bool"),
        (lambda: LayerMemory(16, 0, granularity="full"), ValueError, "granularity: expected one of"),
        (lambda: RegisterMemory(16, 0), ValueError, "layers: expected an int of at least 1"),
        (lambda: RegisterMemory(16, 1)(tokens(), tokens(), [tokens()]), ValueError, "registers: expected fewer"),
        (lambda: MemformerAttention(16, 2)(tokens(), [tokens()]), ValueError, "registers: expected 0 of them"),
        (lambda: MemformerAttention(16, 2).prefill(tokens()), ValueError, "causal: expected a layer made with"),
        (lambda: MemformerAttention(16, 2)(torch.ones(2, 5, 8)), ValueError, "z: expected tokens .*dim = 16"),
        (lambda: MemformerAttention(16, 2)(torch.ones(5, 16)), ValueError, "z: expected tokens .B, N, dim = 16"),
        (
            lambda: CAUSAL.step(torch.ones(2, 1, 16), [], CAUSAL.initial_state(2)),
            ValueError,
            "z: expected tokens .B, d",
        ),
        (lambda: CAUSAL.prefill(torch.ones(2, 5, 8)), ValueError, "z: expected tokens .B, N, dim = 16"),
        (
            lambda: CAUSAL.prefill(torch.ones(2, 5, 16), mask=torch.ones(5, 2).bool()),
            ValueError,
            r"mask: expected shape \(B, N\) = \(2, 5\)",
        ),
        (
            lambda: MemformerAttention(16, 2)(torch.ones(2, 5, 16), mask=torch.ones(2, 5)),
            TypeError,
            "mask: expected a bool tensor",
        ),
    ],
)
def test_errors_name_the_argument(make: Any, kind: type[Exception], message: str) -> None:
    with pytest.raises(kind, match=message):
        make()
