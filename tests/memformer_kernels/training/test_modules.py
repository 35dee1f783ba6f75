"""Modules and states: what a module holds fixed stays so in training, and what was learned comes back into it."""

from typing import Any

import pytest
import torch
from torch import Tensor

from memformer_kernels import SGD, Adam, FixedTasks, TrainState, build_info, explain_training, train_steps
from memformer_kernels.nn import RULES, Memformer
from tests.memformer_kernels.cases import normal, seeded

D, N, LAYERS = 3, 8, 3
TRAINED = [rule for rule in RULES if rule != "recursive"]


def _module(layers: int = LAYERS, **options: Any) -> Memformer:
    torch.manual_seed(1)
    made = Memformer(D, layers, **{"dtype": torch.float64, **options})
    with torch.no_grad():
        for value in made.parameters():
            value += 0.05 * torch.randn_like(value)
    return made


def _tasks(dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    z = normal(seeded(0), 40, N + 1, D + 1).to(dtype)
    z[:, -1, -1] = 0
    return z, normal(seeded(1), 40, 1).to(dtype)


def _train(state: TrainState, steps: int = 5) -> Tensor:
    z, target = _tasks(state.dtype)
    return train_steps(state, FixedTasks(z, target, N), steps, optimizer=Adam(0.02))


@pytest.mark.parametrize("structure", ["response-only", "block"])
@pytest.mark.parametrize("rule", TRAINED)
def test_a_module_that_was_trained_in_a_state_has_the_states_loss(rule: str, structure: str) -> None:
    module = _module(rule=rule, structure=structure)
    state = TrainState.of([module])
    before = {name: value.clone() for name, value in module.named_parameters()}
    _train(state)
    state.into(0, module)
    loss = module.loss(*_tasks()).detach()
    assert float(loss) == pytest.approx(float(_train(state, 1)), rel=1e-12)
    assert all(not torch.equal(value, before[name]) for name, value in module.named_parameters())


def test_coefficients_that_a_rule_fixes_are_not_trained() -> None:
    module = _module(rule="lfom_residual")
    state = TrainState.of([module])
    _train(state)
    gamma = state.parameters["gamma"][0]
    assert bool((torch.diagonal(gamma) == 1).all())
    assert not torch.equal(gamma, module.stack_arguments()["gamma"])


def test_parameters_that_require_no_gradient_are_not_trained() -> None:
    module = _module()
    module.q.requires_grad_(False)
    state = TrainState.of([module])
    _train(state)
    assert torch.equal(state.parameters["q"][0], module.q)
    assert not torch.equal(state.parameters["gamma"][0], module.gamma)


def test_gates_take_the_steps_of_autograd() -> None:
    module = _module(heads=2, rule="gated_heads")
    state = TrainState.of([module])
    z, target = _tasks()
    train_steps(state, FixedTasks(z, target, N), 1, optimizer=SGD(0.1))
    module.loss(z, target).backward()
    assert module.gate is not None
    assert module.gate.grad is not None
    assert float(module.gate.grad.abs().min()) > 1e-4
    torch.testing.assert_close(state.parameters["gate"][0], module.gate - 0.1 * module.gate.grad, rtol=1e-10, atol=0)


def test_gates_that_are_held_fixed_stay() -> None:
    module = _module(heads=2, rule="gated_heads")
    assert module.gate is not None
    module.gate.requires_grad_(False)
    state = TrainState.of([module])
    _train(state)
    assert torch.equal(state.parameters["gate"][0], module.gate)


@pytest.mark.parametrize("layers", [1, 2, 3])
def test_a_gate_for_each_layer(layers: int) -> None:
    """As many heads as layers of the shallower model, where the axes of a gate are easily mistaken."""
    module, deep = _module(layers, heads=2, rule="cgd"), _module(3, heads=2, rule="cgd")
    gates = [1 + 0.1 * normal(seeded(2), depth, 2) for depth in (layers, 3)]
    given = [{**x.stack_arguments(), "gate": gate} for x, gate in zip((module, deep), gates, strict=True)]
    state, alone = TrainState.of(given, streams=[0, 0]), TrainState.of(given[:1])
    losses = _train(state)
    torch.testing.assert_close(_train(alone)[:, 0], losses[:, 0], rtol=1e-12, atol=0)
    torch.testing.assert_close(state.parameters["gate"][0, :layers], alone.parameters["gate"][0], rtol=1e-12, atol=0)
    assert not torch.equal(alone.parameters["gate"][0], gates[0])


def test_models_of_different_depth_share_no_axis_of_their_gates() -> None:
    modules = [_module(depth, heads=2, rule="gated_heads") for depth in (2, 3)]
    state = TrainState.of(modules)
    _train(state)
    for index, module in enumerate(modules):
        state.into(index, module)
        assert module.gate is not None
        assert torch.equal(state.parameters["gate"][index], module.gate)


def test_gates_are_left_to_torch() -> None:
    state, sampler = TrainState.of([_module(heads=2, rule="gated_heads")]), FixedTasks(*_tasks(), N)
    plan = explain_training(state, sampler, optimizer=Adam(0.02))
    assert plan.backend == "torch"
    assert "gates" in plan.reason
    if build_info().backends["cpu"].available:
        with pytest.raises(ValueError, match=r"^backend: expected .*gates"):
            train_steps(state, sampler, 1, optimizer=Adam(0.02), backend="cpu")


def test_masks_narrow_what_a_module_trains() -> None:
    module = _module(rule="lfom_residual")
    state = TrainState.of([module], trainable=[{"q": torch.tensor(False)}])
    assert not bool(state.masks["q"].any())
    assert bool((state.masks["gamma"][0].any(-1).squeeze() == ~torch.eye(LAYERS, dtype=torch.bool)).all())


@pytest.mark.parametrize("rule", ["lfom", "lfom_residual", "cgd", "linear"])
def test_layers_that_padded_a_model_are_left_out(rule: str) -> None:
    modules = [_module(1, rule=rule), _module(3, rule=rule)]
    state = TrainState.of(modules, streams=[0, 0])
    alone = TrainState.of(modules[:1])
    _train(state)
    _train(alone)
    for index, module in enumerate(modules):
        state.into(index, module)
    assert modules[0].q.shape[0] == 1
    torch.testing.assert_close(modules[0].q.detach(), alone.parameters["q"][0], rtol=1e-12, atol=0)


def test_what_was_learned_comes_into_a_module_of_another_dtype() -> None:
    state, module = TrainState.of([_module()]), _module(dtype=torch.float32)
    version = module.q._version
    state.into(0, module)
    torch.testing.assert_close(module.q.detach(), state.parameters["q"][0].float())
    assert module.q._version > version


def _state() -> TrainState:
    return TrainState.of([_module(1), _module(3)])


BAD: list[tuple[Any, type[Exception], str]] = [
    (lambda: TrainState.of(_module()), TypeError, "models"),  # type: ignore[arg-type]
    (lambda: TrainState.of([torch.nn.Linear(3, 3)]), TypeError, r"models\[0\]"),  # type: ignore[list-item]
    (lambda: TrainState.of([_module().stack_arguments() | {"gate": torch.ones(1, 1, 1)}]), ValueError, "gate"),
    (lambda: TrainState.of([_module().stack_arguments() | {"gate": torch.ones(2).double()}]), ValueError, "gate"),
    (lambda: TrainState.of([_module(1), _module(3)], trainable=[{}, {"w": torch.ones(1)}]), ValueError, "trainable"),
    (lambda: _state().into(2, _module()), ValueError, "index"),
    (lambda: _state().into(-1, _module()), ValueError, "index"),
    (lambda: _state().into(0, torch.nn.Linear(3, 3)), TypeError, "module"),  # type: ignore[arg-type]
    (lambda: _state().into(1, _module(2)), ValueError, "module"),
    (lambda: _state().into(0, _module(4)), ValueError, "module"),
    (lambda: _state().into(1, _module(rule="linear")), ValueError, "arguments"),
    (lambda: _state().into(1, _module(structure="block")), ValueError, "arguments"),
    (lambda: _state().into(1, _module(granularity="scalar")), ValueError, r"arguments\['gamma'\]"),
    (lambda: _state().into(1, _module(rule="lfom_residual")), ValueError, r"arguments\['gamma'\]"),
    (lambda: _state().into(1, _module(heads=2)), ValueError, r"arguments\['q'\]"),
]


@pytest.mark.parametrize(("make", "kind", "name"), BAD, ids=range(len(BAD)))
def test_what_does_not_fit(make: Any, kind: type[Exception], name: str) -> None:
    with pytest.raises(kind, match=rf"^{name}: expected "):
        make()


def test_a_module_that_does_not_fit_stays_as_it_was() -> None:
    module = _module(rule="lfom_residual")
    before = [value.clone() for value in module.parameters()]
    with pytest.raises(ValueError, match="gamma"):
        _state().into(1, module)
    assert all(map(torch.equal, before, module.parameters()))
