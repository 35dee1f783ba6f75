"""Layers that share q and p: states train them as autograd trains the module that holds them once."""

import copy
import dataclasses
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from memformer_kernels import (
    SGD,
    Adam,
    AdamW,
    FixedTasks,
    GaussianStatistics,
    GaussianTokens,
    TrainState,
    availability,
    explain_training,
    train_steps,
)
from memformer_kernels.nn import Memformer
from memformer_kernels.training import cuda, definition, native
from memformer_kernels.training.optimizers import Optimizer
from memformer_kernels.training.samplers import Sampler
from tests.memformer_kernels.training.runs import D, N, alone, model, tensors

STEPS = 60
BACKENDS = [
    "torch",
    pytest.param(
        "cpu",
        marks=pytest.mark.skipif(not availability.available("cpu"), reason="the native library was not built"),
    ),
]
NATIVE = BACKENDS[1]
NETWORKS: dict[str, dict[str, Any]] = {
    "response-only": {},
    "two heads": {"heads": 2, "rule": "cgd"},
    "linear": {"rule": "linear"},
    "residual": {"rule": "lfom_residual", "structure": "block"},
    "block, two heads": {"structure": "block", "heads": 2},
    "dense": {"structure": "dense", "rule": "lfom_shared"},
}
OPTIMIZERS: dict[str, Optimizer] = {
    "adam": Adam(0.01),
    "adamw, clipped by matrix": AdamW(0.01, weight_decay=0.1, clip=0.02),
    "momentum, clipped by model": SGD(0.02, momentum=0.8, weight_decay=0.01, clip=0.05, clip_by="model"),
}


def _module(layers: int = 3, *, tied: bool = True, seed: int = 0, **options: Any) -> Memformer:
    torch.manual_seed(seed)
    made = Memformer(D, layers, tied=tied, dtype=torch.float64, **options)
    with torch.no_grad():
        for value in made.parameters():
            value += 0.05 * torch.randn_like(value)
    return made


def _tasks() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(40, N + 1, D, generator=generator, dtype=torch.float64)
    y = x @ torch.randn(40, D, 1, generator=generator, dtype=torch.float64)
    z = torch.cat([x, y], -1)
    z[:, -1, -1] = 0
    return z, y[:, -1]


def _trained_by_autograd(module: Memformer, optimizer: Optimizer, steps: int) -> Tensor:
    """The losses of steps of `torch.optim`, with gradients clipped by hand; changes the module."""
    named, (rate,) = dict(module.named_parameters()), optimizer.rates(1)
    shared: dict[str, Any] = {"lr": rate, "weight_decay": optimizer.weight_decay}
    stepped: torch.optim.Optimizer
    if isinstance(optimizer, SGD):
        stepped = torch.optim.SGD(named.values(), momentum=optimizer.momentum, **shared)
    else:
        kind = torch.optim.AdamW if isinstance(optimizer, AdamW) else torch.optim.Adam
        stepped = kind(named.values(), **shared)
    losses = []
    for _ in range(steps):
        stepped.zero_grad()
        loss = module.loss(*_tasks())
        loss.backward()
        losses.append(float(loss.detach()))
        entries = module.trainable_entries()
        grads = {name: torch.where(entries[name], x.grad, 0.0) for name, x in named.items() if x.grad is not None}
        definition.clip_gradients(grads, optimizer)
        for name, grad in grads.items():
            named[name].grad = grad
        stepped.step()
    return torch.tensor(losses, dtype=torch.float64)[:, None]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("optimizer", OPTIMIZERS.values(), ids=OPTIMIZERS.keys())
def test_the_steps_are_those_of_autograd_on_the_module(optimizer: Optimizer, backend: Any) -> None:
    for name, options in NETWORKS.items():
        module = _module(**options)
        state, learned = TrainState.of([module]), copy.deepcopy(module)
        losses = train_steps(state, FixedTasks(*_tasks(), N), STEPS, optimizer=optimizer, backend=backend)
        expected = _trained_by_autograd(module, optimizer, STEPS)
        torch.testing.assert_close(losses, expected, rtol=1e-8, atol=0, msg=lambda text, name=name: f"{name}: {text}")
        for group in (state.parameters, state.first, state.second):
            for shared in (group[matrix] for matrix in ("q", "p") if matrix in group):
                assert torch.equal(shared, shared[:, :1].expand_as(shared))
        state.into(0, learned)
        for ours, theirs in zip(learned.stack_arguments().values(), module.stack_arguments().values(), strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-9)
        assert not torch.equal(module.q, _module(**options).q)


def _ensemble() -> tuple[list[Memformer], TrainState]:
    """Three depths, two of them tied; the shallow ones are padded."""
    modules = [
        _module(2, structure="block", seed=1),
        _module(3, tied=False, structure="block", seed=2),
        _module(4, structure="block", seed=3),
    ]
    return modules, TrainState.of(modules, seeds=5)


SAMPLER = GaussianStatistics(D, N, 2100, query="integrated")
RATES = AdamW([0.01, 0.02, 0.005], weight_decay=0.1, clip=0.5)


def test_tied_and_other_models_of_several_depths_share_a_state() -> None:
    modules, state = _ensemble()
    assert state.tied is not None
    assert state.tied.tolist() == [2, 0, 4]
    assert [state.tied_layers(index) for index in range(3)] == [2, 1, 4]
    trace = train_steps(state, SAMPLER, 5, optimizer=RATES, backend="torch")
    for index, module in enumerate(modules):
        single = TrainState.of([module], seeds=5, streams=[index])
        (rate,) = RATES.rates(3)[index : index + 1]
        own = train_steps(single, SAMPLER, 5, optimizer=dataclasses.replace(RATES, learning_rate=rate), backend="torch")
        torch.testing.assert_close(trace[:, index : index + 1], own, rtol=1e-12, atol=0)
        q = state.parameters["q"][index]
        assert not bool(q[module.layers :].any())
        assert torch.equal(q[:1].expand(module.layers, -1, -1, -1), q[: module.layers]) == module.tied
        state.into(index, module)
        assert torch.equal(module.q, q[: len(module.q)])


@pytest.mark.parametrize("backend", [NATIVE])
def test_an_ensemble_trains_natively(backend: Any) -> None:
    """As the definition trains it, and bit for bit from sums that ranks gathered."""
    (_, state), (_, other), (_, parts) = _ensemble(), _ensemble(), _ensemble()
    assert explain_training(state, SAMPLER, optimizer=RATES).backend == backend
    trace = train_steps(state, SAMPLER, 5, optimizer=RATES, backend=backend)
    expected = train_steps(other, SAMPLER, 5, optimizer=RATES, backend="torch")
    torch.testing.assert_close(trace, expected, rtol=1e-8, atol=0)
    for left, right in zip(tensors(state), tensors(other), strict=True):
        torch.testing.assert_close(left, right, rtol=1e-6, atol=1e-8)
    losses = torch.empty_like(trace)
    for step in range(5):
        sums = native.block_sums(parts, SAMPLER, range(3), [True] * 3)
        native.apply_sums(parts, SAMPLER, RATES, sums, None, losses[step])
    assert torch.equal(losses, trace)
    assert all(torch.equal(left, right) for left, right in zip(tensors(parts), tensors(state), strict=True))


def test_a_shared_matrix_counts_once_in_a_norm() -> None:
    """A gradient whose norm is just at the limit when the matrix is counted once is not scaled."""
    module, z = _module(4, rule="linear"), FixedTasks(*_tasks(), N)
    module.loss(*_tasks()).backward()
    assert module.q.grad is not None
    norm = float(module.q.grad.norm())
    for clip, scale in ((1.001 * norm, 1.0), (0.5 * norm, 0.5)):
        for clip_by in ("model", "matrix"):
            state = TrainState.of([module])
            train_steps(state, z, 1, optimizer=SGD(0.1, clip=clip, clip_by=clip_by), backend="torch")  # type: ignore[arg-type]
            expected = module.q.detach() - 0.1 * scale * module.q.grad
            torch.testing.assert_close(state.parameters["q"][0, :1], expected, rtol=1e-9, atol=0)


def test_masks_are_those_of_the_shared_matrix() -> None:
    free = torch.eye(D, dtype=torch.bool)
    module = _module()
    state = TrainState.of([module], trainable=[{"q": free}])
    train_steps(state, FixedTasks(*_tasks(), N), 3, optimizer=Adam(0.01), backend="torch")
    changed = state.parameters["q"][0] != module.q.detach()
    assert torch.equal(changed, free.expand_as(changed))
    with pytest.raises(ValueError, match=r"^masks\['q'\]: expected the same in its first 3 layers, which are tied"):
        TrainState.of([module], trainable=[{"q": torch.tensor([True, False, True])[:, None, None, None]}])


@pytest.mark.parametrize(
    ("tied", "kind", "message"),
    [
        (torch.tensor([0.0]), TypeError, "tied: expected a dense int64 tensor"),
        (torch.tensor([1, 2]), ValueError, "tied: expected 1 integers from 0 to 3"),
        (torch.tensor([4]), ValueError, "tied: expected 1 integers from 0 to 3"),
        (torch.tensor([2]), ValueError, r"parameters\['q'\]: expected the same in its first 2 layers"),
        ([3], TypeError, "tied: expected a dense int64 tensor"),
    ],
)
def test_what_ties_no_layers(tied: Any, kind: type[Exception], message: str) -> None:
    state = TrainState.of([model()])
    assert state.tied is None
    state.tied = tied
    with pytest.raises(kind, match=f"^{message}"):
        state.check()


def test_layers_that_are_no_longer_the_same_are_refused() -> None:
    state = TrainState.of([_module()])
    state.first["q"] = state.first["q"] + torch.arange(3.0, dtype=torch.float64)[:, None, None, None]
    with pytest.raises(ValueError, match=r"^first\['q'\]: expected the same in its first 3 layers"):
        train_steps(state, SAMPLER, 1, optimizer=Adam(0.01))


def test_a_copy_that_somebody_writes_to_is_found_before_the_next_step() -> None:
    state = TrainState.of([Memformer(4, 3, tied=True)])
    state.parameters["q"][0, 1] += 1
    with pytest.raises(ValueError, match=r"the same in its first 3 layers, which are tied"):
        train_steps(state, GaussianTokens(4, 9, batch=8), 1, optimizer=SGD(0.1))


def test_layers_that_are_no_numbers_alike_are_the_same() -> None:
    module = Memformer(4, 3, structure="block", tied=True)
    torch.nn.init.constant_(module.q, torch.nan)
    TrainState.of([module]).into(0, module)
    assert bool(module.q.isnan().all())


def test_a_model_alone_keeps_its_ties() -> None:
    """One model of an ensemble by its parameters, tied again by hand."""
    _, state = _ensemble()
    single = alone(state, 2)
    assert single.tied is None
    single.tied = torch.tensor([4])
    trace = train_steps(state, SAMPLER, 3, optimizer=Adam(0.01), backend="torch")
    own = train_steps(single, SAMPLER, 3, optimizer=Adam(0.01), backend="torch")
    torch.testing.assert_close(own[:, 0], trace[:, 2], rtol=1e-12, atol=0)


def test_the_cuda_trainer_leaves_them_to_plain_pytorch() -> None:
    made = {name: value[None] for name, value in model(dtype=torch.float32).items() if value is not None}
    held: Any = SimpleNamespace(
        parameters=made, dtype=torch.float32, device=torch.device("cuda:0"), models=1, tied_layers=lambda index: 3
    )
    sampler: Sampler = GaussianTokens(D, N, 4)
    assert "tied layers" in str(cuda.fault(held, sampler))
