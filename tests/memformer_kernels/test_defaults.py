"""torch.set_default_dtype and set_default_device change nothing about results: arguments say all."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from memformer_kernels import (
    SGD,
    Adam,
    DrawnTasks,
    FixedTasks,
    GaussianStatistics,
    GaussianTokens,
    TrainState,
    attention_state,
    attention_step,
    context_gram,
    lfom_solve,
    linear_attention,
    memformer_layer,
    memformer_loss,
    memformer_predict,
    memformer_stack,
    register_update,
    train_steps,
)
from memformer_kernels.nn import RULES, Memformer, MemformerAttention, MemformerLayer, RegisterMemory
from tests.defaults import assert_same_under, under_other_defaults
from tests.memformer_kernels.cases import make_case, normal, seeded

CASE = make_case(rule="gated_heads", context=4).to(torch.float32)
NETWORK = {"q": CASE.q, "p": CASE.p, "gamma": CASE.gamma, "gate": CASE.gate}
RAGGED = torch.tensor([2, 3, 4])
LINEAR = {"q": CASE.q, "p": CASE.p}
TARGET = normal(seeded(1), 3, 3).float()
ONE = normal(seeded(1), 3, 1).float()
H, A, B = (normal(seeded(seed), *shape).float() for seed, shape in enumerate([(3, 4, 4), (2, 4, 4), (3, 4)]))
Q, K, V = (normal(seeded(seed), 2, 70, 2, 4).float().requires_grad_() for seed in range(3))
MASK = torch.ones(2, 70, dtype=torch.bool).tril(-1)
R = normal(seeded(4), 3, 1, 7, 4).float()
BACKENDS = ("auto", "torch")


def _with_gradients(run: Callable[[str], Any], backend: str, *leaves: Any) -> list[torch.Tensor]:
    made = run(backend)
    flat = made if isinstance(made, tuple) else (made,)
    wanted = [leaf for leaf in leaves if leaf.requires_grad]
    if not wanted:
        return list(flat)
    return [*flat, *torch.autograd.grad(sum(x.square().sum() for x in flat), wanted, allow_unused=True)]


FUNCTIONS: dict[str, tuple[Callable[[str], Any], tuple[Any, ...]]] = {
    "stack": (lambda b: memformer_stack(CASE.z, **NETWORK, context=4, backend=b), (CASE.z, CASE.q, CASE.gate)),
    "linear stack": (lambda b: memformer_stack(CASE.z, **LINEAR, context=RAGGED, backend=b), (CASE.z, CASE.q)),
    "tokens": (lambda b: memformer_stack(CASE.z, **LINEAR, context=RAGGED, algorithm="token", backend=b), (CASE.q,)),
    "predict": (lambda b: memformer_predict(CASE.z, **NETWORK, context=RAGGED, backend=b), (CASE.z, CASE.q)),
    "loss": (lambda b: memformer_loss(CASE.z, TARGET, **NETWORK, context=4, backend=b), (CASE.z, CASE.q, CASE.gate)),
    "ragged loss": (lambda b: memformer_loss(CASE.z, ONE, **LINEAR, context=RAGGED, backend=b), (CASE.q,)),
    "weighted loss": (
        lambda b: memformer_loss(CASE.z, ONE, **LINEAR, context=RAGGED, weights=CASE.z[..., 0].abs(), backend=b),
        (CASE.q, CASE.z),
    ),
    "weighted stack": (
        lambda b: memformer_stack(CASE.z, **LINEAR, weights=CASE.z[..., 0].detach().abs(), backend=b),
        (CASE.q,),
    ),
    "layer": (lambda b: memformer_layer(CASE.z, CASE.q[0], registers=[R], context=RAGGED, backend=b), (CASE.q,)),
    "gram": (lambda b: context_gram(CASE.z, RAGGED), (CASE.z,)),
    "solve": (lambda b: lfom_solve(H, B, A, backend=b), (H,)),
    "attention": (lambda b: linear_attention(Q, K, V, context=5, backend=b), (Q, K, V)),
    "ragged attention": (lambda b: linear_attention(Q, K, V, context=RAGGED[:2], mask=MASK, backend=b), (Q, K)),
    "causal attention": (lambda b: linear_attention(Q, K, V, causal=True, backend=b), (Q, K, V)),
    "masked attention": (lambda b: linear_attention(Q, K, V, causal=True, mask=MASK, backend=b), (Q, K, V)),
    "packed attention": (
        lambda b: linear_attention(Q, K, V, causal=True, cu_seqlens=torch.tensor([0, 9, 70], device="cpu"), backend=b),
        (Q, K, V),
    ),
    "step": (lambda b: attention_step(Q[:, 0], K[:, 0], V[:, 0], attention_state(K, V))[0], (Q, K, V)),
    "update": (lambda b: register_update(Q, [K, V], A[:, 0], backend=b), (K, V)),
}


@under_other_defaults
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", FUNCTIONS)
def test_functions(name: str, backend: str, default: str) -> None:
    run, leaves = FUNCTIONS[name]
    assert_same_under(default, lambda: _with_gradients(run, backend, *leaves))


@under_other_defaults
@pytest.mark.parametrize("rule", RULES)
def test_networks(rule: str, default: str) -> None:
    def run() -> list[torch.Tensor]:
        model = Memformer(3, 2, heads=2, rule=rule, tokens=7, device="cpu", dtype=torch.float32)
        return [model(CASE.z), model.predict(CASE.z, layers=True), *model.parameters()]

    assert_same_under(default, run)


@under_other_defaults
def test_modules(default: str) -> None:
    options: dict[str, Any] = {"device": "cpu", "dtype": torch.float32}

    def run() -> list[torch.Tensor]:
        layer = MemformerLayer(3, registers=1, momentum=True, **options)
        attention = MemformerAttention(4, 2, causal=True, memory="lfom", norm=True, prenorm=True, **options)
        memory = RegisterMemory(4, 2, memory="cgd", **options)
        z, register, state = attention.prefill(CASE.z)
        stepped = attention.step(CASE.z[:, 0], [], attention.initial_state(3))
        return [*layer(CASE.z, [R]), z, register, *state, *stepped[:2], *memory(CASE.z, z)]

    assert_same_under(default, run)


@under_other_defaults
def test_modules_follow_the_defaults_where_nothing_is_said(default: str) -> None:
    expected = (default if default == "meta" else "cpu", torch.float64 if default == "float64" else torch.float32)
    kinds = []

    def run() -> None:
        for module in (Memformer(3, 2, structure="block"), MemformerLayer(3), MemformerAttention(4, 2, memory="lfom")):
            kinds.extend((parameter.device.type, parameter.dtype) for parameter in module.parameters())

    assert_same_under(default, run)
    assert set(kinds) == {("cpu", torch.float32), expected}


def _drawn(batch: int, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    options: dict[str, Any] = {"generator": generator, "device": "cpu", "dtype": torch.float32}
    return torch.randn(batch, 9, 4, **options), torch.randn(batch, 1, **options)


SAMPLERS = {
    "tokens": lambda: GaussianTokens(3, 8, 40, noise=0.1, queries=2),
    "integrated": lambda: GaussianTokens(3, 8, 40, query="integrated"),
    "statistics": lambda: GaussianStatistics(3, 8, 40, noise=0.1, factor=H[0, :3, :3], weights=A[0, :3, :3]),
    "fixed": lambda: FixedTasks(CASE.z.detach(), TARGET, 4, batch=2),
    "drawn": lambda: DrawnTasks(_drawn, 3, 8, 40),
}


@under_other_defaults
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_training(sampler: str, backend: str, default: str) -> None:
    trainable = torch.ones(3, 3, dtype=torch.bool).tril()

    def run() -> list[torch.Tensor]:
        model = Memformer(3, 2, device="cpu", dtype=torch.float32)
        shallow = Memformer(3, 1, device="cpu", dtype=torch.float32)
        state = TrainState.of([model.stack_arguments(), shallow.stack_arguments()], trainable=[{"q": trainable}, {}])
        losses = [
            train_steps(state, SAMPLERS[sampler](), 2, optimizer=optimizer, backend=backend)
            for optimizer in (Adam(0.1, clip=1.0), SGD([0.1, 0.2], momentum=0.9))
        ]
        return [*losses, *state.tensors()]

    assert_same_under(default, run)
