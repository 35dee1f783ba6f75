"""Modules: every named rule constructs, is the function it stands for, trains, and can be saved and copied."""

import copy
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import memformer_kernels
from memformer_kernels import (
    memformer_layer,
    memformer_loss,
    memformer_predict,
    memformer_prefix_loss,
    memformer_prefix_predict,
    memformer_stack,
)
from memformer_kernels.nn import (
    GRANULARITIES,
    MEMORIES,
    RULES,
    STRUCTURES,
    LayerMemory,
    Memformer,
    MemformerAttention,
    MemformerLayer,
    RegisterMemory,
)
from tests.memformer_kernels.cases import normal, seeded
from tests.memformer_kernels.paths import PATHS, Path, on_every_path

D, LAYERS, HEADS, TOKENS = 3, 3, 2, 8
EVERY_MODEL = [
    pytest.param(rule, granularity, structure, id=f"{rule}-{granularity}-{structure}")
    for rule in RULES
    for granularity in (("scalar",) if rule == "linear" else GRANULARITIES)
    for structure in STRUCTURES
]
DEFAULTS = {"cgd": "scalar", "recursive": "full"}


def _model(**options: Any) -> Memformer:
    torch.manual_seed(0)
    return Memformer(D, LAYERS, **{"heads": HEADS, "tokens": TOKENS, "dtype": torch.float64, **options})


def _tasks(count: int = 16, seed: int = 1) -> tuple[Tensor, Tensor]:
    """Linear regression with one query, whose response is the target."""
    generator = seeded(seed)
    x, w = normal(generator, count, TOKENS, D), normal(generator, count, D)
    z = torch.cat([x, x @ w[..., None]], -1)
    target = z[:, -1:, -1].clone()
    z[:, -1, -1] = 0
    return z, target


def _shaken(model: nn.Module) -> nn.Module:
    """Away from the start, where many coefficients are 0 or 1."""
    generator = seeded(2)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += normal(generator, *parameter.shape, scale=0.1).to(parameter.dtype)
    return model


@pytest.mark.parametrize(("rule", "granularity", "structure"), EVERY_MODEL)
def test_every_model_is_the_function_with_its_arguments(rule: str, granularity: str, structure: str) -> None:
    model = _model(rule=rule, granularity=granularity, structure=structure)
    _shaken(model)
    z, target = _tasks()
    arguments = model.stack_arguments()
    assert list(arguments) == ["q", "p", "gamma", "beta", "gate"]
    assert torch.equal(model(z), memformer_stack(z, **arguments))
    assert torch.equal(model(z, context=5), memformer_stack(z, **arguments, context=5))
    assert torch.equal(model.predict(z), memformer_predict(z, **arguments))
    options: dict[str, Any] = {"context": torch.full((16,), 4), "queries": 2, "layers": True}
    assert torch.equal(model.predict(z, **options), memformer_predict(z, **arguments, **options))
    assert torch.equal(model.loss(z, target), memformer_loss(z, target, **arguments))
    both = target.expand(-1, 2)
    expected = memformer_loss(z, both, **arguments, context=5, queries=2)
    assert torch.equal(model.loss(z, both, context=5, queries=2), expected)
    if granularity in ("token", "full"):
        return
    prefixes = memformer_prefix_predict(z, **arguments, first=2, layers=True)
    assert torch.equal(model.prefix_predict(z, first=2, layers=True), prefixes)
    labels = z[:, 2:, -1]
    assert torch.equal(model.prefix_loss(z, labels, first=2), memformer_prefix_loss(z, labels, **arguments, first=2))


@pytest.mark.parametrize(("rule", "granularity", "structure"), EVERY_MODEL)
def test_every_model_trains(rule: str, granularity: str, structure: str) -> None:
    """The loss falls over 20 steps of Adam, and every parameter takes part."""
    model = _model(rule=rule, granularity=granularity, structure=structure)
    z, target = _tasks(64)
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    losses = []
    for _ in range(20):
        optimizer.zero_grad()
        loss = model.loss(z, target)
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.9 * losses[0], losses
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None
        assert parameter.grad.any(), name
        assert not torch.equal(parameter, before[name]), name


SHAPES: dict[str, dict[str, tuple[int, ...] | None]] = {
    "linear": {"gamma": None, "beta": None, "gate": None},
    "cgd": {"gamma": (3, 1, 1, 1), "beta": (3, 1, 1, 1), "gate": None},
    "recursive": {"gamma": (3, 1, 1, 1), "beta": (3, 1, 8, 4), "gate": None},
    "lfom": {"gamma": (3, 3, 1, 1, 4), "beta": None, "gate": None},
    "lfom_shared": {"gamma": (1, 3, 1, 1, 4), "beta": None, "gate": None},
    "lfom_residual": {"gamma": (3, 3, 1, 1, 4), "beta": None, "gate": None},
    "gated_heads": {"gamma": (3, 3, 2, 1, 4), "beta": None, "gate": (2,)},
}


@pytest.mark.parametrize("rule", RULES)
def test_parameters_of_a_rule_at_its_own_granularity(rule: str) -> None:
    model = _model(rule=rule)
    assert rule == "linear" or model.granularity == DEFAULTS.get(rule, "feature")
    for name, shape in SHAPES[rule].items():
        parameter = getattr(model, name)
        assert (None if parameter is None else tuple(parameter.shape)) == shape, name
        assert parameter is None or name in dict(model.named_parameters())


@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_grids(granularity: str) -> None:
    grid = {"scalar": (1, 1), "feature": (1, 4), "token": (8, 1), "full": (8, 4)}[granularity]
    gamma = _model(granularity=granularity).gamma
    assert gamma is not None
    assert tuple(gamma.shape[-2:]) == grid


@pytest.mark.parametrize("structure", STRUCTURES)
def test_parameters_of_a_structure(structure: str) -> None:
    model = _model(structure=structure)
    size = D + 1 if structure == "dense" else D
    assert model.q.shape == (LAYERS, HEADS, size, size)
    assert (model.p is None) == (structure == "response-only")
    if model.p is not None:
        assert model.p.shape == model.q.shape


@pytest.mark.parametrize("structure", STRUCTURES)
@pytest.mark.parametrize("rule", RULES)
def test_models_start_near_gradient_descent_without_memory(rule: str, structure: str) -> None:
    torch.manual_seed(1)
    model = Memformer(D, LAYERS, rule=rule, structure=structure, tokens=TOKENS, dtype=torch.float64)
    z, target = _tasks(200)
    plain = Memformer(D, LAYERS, rule="linear", dtype=torch.float64)
    with torch.no_grad():
        plain.q.copy_((-0.5 * torch.eye(D)).expand_as(plain.q))
        error = (model.predict(z) - plain.predict(z)).norm() / target.norm()
        assert error < (0.5 if rule == "lfom_shared" else 0.25)
        assert model.loss(z, target) < target.square().mean()


def test_the_start_is_drawn_from_the_default_generator() -> None:
    for make in (lambda: Memformer(D, 2, structure="block"), lambda: MemformerLayer(D)):
        models = []
        for seed in (3, 3, 4):
            torch.manual_seed(seed)
            models.append(make())
        assert torch.equal(models[0].q, models[1].q)
        assert not torch.equal(models[0].q, models[2].q)


@on_every_path
def test_backend_and_algorithm_are_passed_on(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[str, str]] = []

    def record(*arguments: Any, backend: str, algorithm: str, **options: Any) -> Tensor:
        seen.append((backend, algorithm))
        return torch.zeros(())

    for name in ("memformer_stack", "memformer_predict", "memformer_loss"):
        monkeypatch.setattr(f"memformer_kernels.nn.memformer.{name}", record)
    model = _model(**path.options)
    z, target = _tasks()
    model(z)
    model.predict(z)
    model.loss(z, target)
    assert seen == [tuple(path)] * 3


@pytest.mark.parametrize("width", [1, D, D + 2])
@pytest.mark.parametrize("structure", STRUCTURES)
def test_tokens_of_another_width_are_refused(structure: str, width: int) -> None:
    model = _model(structure=structure, granularity="scalar", heads=1)
    layer = MemformerLayer(D, structure=structure, granularity="scalar", dtype=torch.float64)
    z, target = torch.zeros(2, TOKENS, width, dtype=torch.float64), torch.zeros(2, 1, dtype=torch.float64)
    for call in (
        lambda: model(z),
        lambda: model.predict(z),
        lambda: model.loss(z, target),
        lambda: model.prefix_predict(z),
        lambda: model.prefix_loss(z, target),
        lambda: layer(z),
    ):
        with pytest.raises(ValueError, match=rf"^z: expected D = {D + 1} .*shape \(2, {TOKENS}, {width}\)"):
            call()


def test_paths_agree() -> None:
    z, target = _tasks()
    models = [_shaken(_model(rule="gated_heads", structure="block", **path.options)) for path in PATHS]
    losses = [model.loss(z, target) for model in models]
    for model, loss in zip(models, losses, strict=True):
        torch.testing.assert_close(loss, losses[0], rtol=1e-11, atol=0)
        loss.backward()
        for ours, first in zip(model.parameters(), models[0].parameters(), strict=True):
            torch.testing.assert_close(ours.grad, first.grad, rtol=1e-9, atol=1e-12)


def _assert_same_model(one: nn.Module, other: nn.Module) -> None:
    for ours, theirs in zip(one.named_parameters(), other.named_parameters(), strict=True):
        assert ours[0] == theirs[0]
        assert torch.equal(ours[1], theirs[1])
        assert ours[1].data_ptr() != theirs[1].data_ptr()


@pytest.mark.parametrize("rule", RULES)
def test_state_dict_and_copies(rule: str) -> None:
    model = _model(rule=rule, structure="block")
    _shaken(model)
    state = model.state_dict()
    assert set(state) == {name for name, _ in model.named_parameters()}
    fresh = _model(rule=rule, structure="block")
    fresh.load_state_dict(state)
    _assert_same_model(fresh, model)
    twin = copy.deepcopy(model)
    _assert_same_model(twin, model)
    z, _ = _tasks()
    assert torch.equal(fresh(z), model(z))
    assert torch.equal(twin(z), model(z))
    with pytest.raises(RuntimeError, match="size mismatch"):
        Memformer(D, LAYERS + 1, heads=HEADS, rule=rule, structure="block", tokens=TOKENS).load_state_dict(state)


@pytest.mark.parametrize("make", [_model, lambda **options: MemformerLayer(D, registers=2, momentum=True, **options)])
def test_device_and_dtype(make: Any) -> None:
    for dtype in (torch.float32, torch.float64, torch.bfloat16):
        assert {parameter.dtype for parameter in make(dtype=dtype).parameters()} == {dtype}
    assert {parameter.dtype for parameter in make(dtype=None).parameters()} == {torch.get_default_dtype()}
    assert {parameter.device.type for parameter in make(device="meta").parameters()} == {"meta"}
    assert {parameter.dtype for parameter in make(dtype=torch.float32).double().parameters()} == {torch.float64}


TIED = [*((rule, "block") for rule in RULES), ("lfom", "response-only"), ("lfom", "dense")]


def _tied(rule: str = "lfom", structure: str = "block", **options: Any) -> Memformer:
    model = _model(rule=rule, structure=structure, granularity="feature", tied=True, **options)
    _shaken(model)
    return model


def _untied(model: Memformer) -> Memformer:
    """The same network with matrices for each layer."""
    untied = _model(rule=model.rule, structure=model.structure, granularity="feature", tied=False)
    untied.load_arguments({name: x for name, x in model.stack_arguments().items() if isinstance(x, Tensor)})
    return untied


@on_every_path
@pytest.mark.parametrize(("rule", "structure"), TIED)
def test_tied_layers_are_layers_with_the_same_matrices(rule: str, structure: str, path: Path) -> None:
    """The gradient of a shared matrix is the sum of the layers' gradients."""
    model = _tied(rule, structure, **path.options)
    untied, (z, target) = _untied(model), _tasks()
    assert model.q.shape[0] == 1
    torch.testing.assert_close(model.predict(z), untied.predict(z), rtol=1e-10, atol=1e-12)
    for one in (model, untied):
        one.loss(z, target).backward()
    for (name, ours), theirs in zip(model.named_parameters(), untied.parameters(), strict=True):
        assert theirs.grad is not None
        expected = theirs.grad.sum(0, keepdim=True) if name in ("q", "p") else theirs.grad
        if rule in ("lfom_residual", "gated_heads") and name == "gamma":
            expected = ours.grad  # the new register's weight is fixed
        torch.testing.assert_close(ours.grad, expected, rtol=1e-8, atol=1e-11)


def test_tied_layers_are_held_once() -> None:
    model = _tied()
    assert {name: tuple(x.shape[:2]) for name, x in model.named_parameters() if name in ("q", "p")} == {
        "q": (1, HEADS),
        "p": (1, HEADS),
    }
    assert {name: tuple(x.shape[:2]) for name, x in model.trainable_entries().items()} == {
        "q": (1, HEADS),
        "p": (1, HEADS),
        "gamma": (LAYERS, LAYERS),
    }
    q = model.stack_arguments()["q"]
    assert q.shape[0] == LAYERS
    assert q.data_ptr() == model.q.data_ptr()
    fresh = _model(rule="lfom", structure="block", tied=True)
    fresh.load_state_dict(model.state_dict())
    _assert_same_model(fresh, model)
    _assert_same_model(copy.deepcopy(model), model)
    with pytest.raises(RuntimeError, match="size mismatch"):
        _untied(model).load_state_dict(model.state_dict())
    assert "tied=True" in repr(model)
    assert "tied" not in repr(_untied(model))


def test_tied_layers_take_arguments_that_are_the_same_in_every_layer() -> None:
    model, fresh = _tied(), _model(rule="lfom", structure="block", tied=True)
    arguments = {name: x.detach().clone() for name, x in model.stack_arguments().items() if isinstance(x, Tensor)}
    fresh.load_arguments(arguments)
    _assert_same_model(fresh, model)
    arguments["p"][1] += 1
    arguments["gamma"] += 1
    with pytest.raises(ValueError, match=r"^arguments\['p'\]: expected the same in every layer"):
        fresh.load_arguments(arguments)
    with pytest.raises(ValueError, match=r"^arguments\['q'\]: expected a tensor of shape \(3, 2, 3, 3\)"):
        fresh.load_arguments({**arguments, "q": model.q.detach()})
    _assert_same_model(fresh, model)
    with pytest.raises(TypeError, match=r"^tied: expected a bool"):
        _model(tied=1)


def test_models_print_what_they_are() -> None:
    text = repr(Memformer(5, 4, heads=2, rule="lfom_shared", granularity="scalar", structure="block"))
    for part in ("d=5", "layers=4", "heads=2", "'lfom_shared'", "'scalar'", "'block'"):
        assert part in text
    text = repr(MemformerLayer(5, heads=2, registers=3, momentum=True))
    for part in ("d=5", "heads=2", "registers=3", "momentum=True"):
        assert part in text


ERRORS: list[tuple[type[Exception], str, dict[str, Any]]] = [
    (ValueError, r"d: .*0", {"d": 0}),
    (ValueError, r"layers: .*-1", {"layers": -1}),
    (ValueError, r"heads: .*0", {"heads": 0}),
    (ValueError, r"tokens: .*0", {"tokens": 0}),
    (ValueError, r"rule: .*linear.*'adam'", {"rule": "adam"}),
    (ValueError, r"granularity: .*scalar.*'row'", {"granularity": "row"}),
    (ValueError, r"granularity: .*''", {"granularity": ""}),
    (ValueError, r"structure: .*block.*'sparse'", {"structure": "sparse"}),
    (ValueError, r"tokens: .*'token'.*None", {"granularity": "token"}),
    (ValueError, r"tokens: .*'full'.*None", {"rule": "recursive"}),
    (ValueError, r"backend: .*'gpu'", {"backend": "gpu"}),
    (ValueError, r"algorithm: .*'fast'", {"algorithm": "fast"}),
    (ValueError, r"d: .*2\^63 bytes.*got 1099511627776", {"d": 2**40, "layers": 1}),
    (ValueError, r"d: .*2\^63 bytes", {"d": 2**30, "layers": 2, "structure": "dense", "dtype": torch.float64}),
    (ValueError, r"layers: .*2\^63 bytes", {"layers": 2**40}),
    (ValueError, r"heads: .*2\^63 bytes", {"heads": 2**62}),
    (ValueError, r"tokens: .*2\^63 bytes", {"granularity": "token", "tokens": 2**60}),
    (TypeError, r"d: .*2\.0 \(float\)", {"d": 2.0}),
    (TypeError, r"d: .*True", {"d": True}),
    (TypeError, r"layers: .*'3'", {"layers": "3"}),
    (TypeError, r"heads: .*None", {"heads": None}),
    (TypeError, r"tokens: .*8\.0", {"tokens": 8.0}),
    (TypeError, r"rule: .*3 \(int\)", {"rule": 3}),
    (TypeError, r"granularity: .*1 \(int\)", {"granularity": 1}),
    (TypeError, r"structure: .*None", {"structure": None}),
    (TypeError, r"dtype: .*int64", {"dtype": torch.int64}),
]


@pytest.mark.parametrize(("kind", "message", "options"), ERRORS, ids=range(len(ERRORS)))
def test_bad_models(kind: type[Exception], message: str, options: dict[str, Any]) -> None:
    with pytest.raises(kind, match=message):
        Memformer(**{"d": 2, "layers": 3, **options})


def test_sizes_that_take_no_memory_are_made() -> None:
    """Models are laid out on no device before they are spread over many."""
    model = Memformer(2**29, 2, device="meta")
    assert model.q.shape == (2, 1, 2**29, 2**29)


LAYER_ERRORS: list[tuple[type[Exception], str, dict[str, Any]]] = [
    (ValueError, r"d: .*0", {"d": 0}),
    (ValueError, r"heads: .*0", {"heads": 0}),
    (ValueError, r"registers: .*-1", {"registers": -1}),
    (ValueError, r"structure: .*'sparse'", {"structure": "sparse"}),
    (ValueError, r"granularity: .*'row'", {"granularity": "row"}),
    (ValueError, r"tokens: .*None", {"granularity": "full"}),
    (ValueError, r"tokens: .*0", {"granularity": "full", "tokens": 0}),
    (ValueError, r"backend: .*'gpu'", {"backend": "gpu"}),
    (ValueError, r"d: .*2\^63 bytes", {"d": 2**31}),
    (ValueError, r"heads: .*2\^63 bytes", {"heads": 2**61}),
    (ValueError, r"registers: .*2\^63 bytes", {"registers": 2**61}),
    (ValueError, r"tokens: .*2\^63 bytes", {"granularity": "full", "tokens": 2**60}),
    (TypeError, r"registers: .*1\.0", {"registers": 1.0}),
    (TypeError, r"registers: .*True", {"registers": True}),
    (TypeError, r"tokens: .*'8'", {"granularity": "token", "tokens": "8"}),
    (TypeError, r"momentum: .*1 \(int\)", {"momentum": 1}),
    (TypeError, r"dtype: .*int64", {"dtype": torch.int64}),
]


@pytest.mark.parametrize(("kind", "message", "options"), LAYER_ERRORS, ids=range(len(LAYER_ERRORS)))
def test_bad_layers(kind: type[Exception], message: str, options: dict[str, Any]) -> None:
    with pytest.raises(kind, match=message):
        MemformerLayer(**{"d": 2, **options})


def _chain(layers: Sequence[MemformerLayer], z: Tensor, **options: Any) -> tuple[Tensor, list[Tensor]]:
    registers: list[Tensor] = []
    for layer in layers:
        z, register = layer(z, registers, **options)
        registers.append(register)
    return z, registers


@pytest.mark.parametrize("momentum", [False, True])
@pytest.mark.parametrize("granularity", GRANULARITIES)
@pytest.mark.parametrize("structure", STRUCTURES)
def test_a_chain_of_layers_is_a_stack(structure: str, granularity: str, momentum: bool) -> None:
    layers = [
        MemformerLayer(
            D,
            heads=HEADS,
            registers=index,
            momentum=momentum,
            granularity=granularity,
            structure=structure,
            tokens=TOKENS,
            dtype=torch.float64,
        )
        for index in range(LAYERS)
    ]
    for layer in layers:
        _shaken(layer)
    z, _ = _tasks()
    made, registers = _chain(layers, z, context=5)
    assert {tuple(register.shape) for register in registers} == {(16, 1, TOKENS, D + 1)}
    gamma = z.new_zeros(LAYERS, LAYERS, *layers[0].gamma.shape[1:])
    for index, layer in enumerate(layers):
        gamma[index, : index + 1] = layer.gamma.detach()
    q = torch.stack([layer.q for layer in layers])
    p = None if layers[0].p is None else torch.stack([layer.p for layer in layers if layer.p is not None])
    beta = torch.stack([layer.beta for layer in layers if layer.beta is not None]) if momentum else None
    torch.testing.assert_close(made, memformer_stack(z, q, p, gamma, beta, context=5), rtol=1e-11, atol=1e-13)
    one, register = layers[0](z, context=5)
    expected = memformer_layer(z, layers[0].q, layers[0].p, (), layers[0].gamma, layers[0].beta, context=5)
    assert torch.equal(one, expected[0])
    assert torch.equal(register, expected[1])


def test_a_chain_of_layers_trains() -> None:
    torch.manual_seed(0)
    layers = nn.ModuleList(MemformerLayer(D, registers=index, momentum=True) for index in range(LAYERS))
    z, target = (x.float() for x in _tasks(64))
    optimizer = torch.optim.Adam(layers.parameters(), lr=0.01)
    losses = []
    for _ in range(20):
        optimizer.zero_grad()
        loss = (_chain(list(layers), z)[0][:, -1:, -1] + target).square().mean()  # type: ignore[arg-type]
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.9 * losses[0], losses


def test_a_layer_counts_its_registers() -> None:
    z, _ = _tasks()
    layer = MemformerLayer(D, registers=1, dtype=torch.float64)
    with pytest.raises(ValueError, match=r"registers: expected 1 .* got 0"):
        layer(z)
    with pytest.raises(ValueError, match=r"registers: expected 1 .* got 2"):
        layer(z, [z[:, None], z[:, None]])


MODULES: dict[str, Any] = {
    **{
        f"{rule}-{structure}": lambda rule=rule, structure=structure: Memformer(
            D, LAYERS, heads=HEADS, rule=rule, structure=structure, tokens=TOKENS
        )
        for rule in RULES
        for structure in STRUCTURES
    },
    "layer": lambda: MemformerLayer(D, registers=2, momentum=True, structure="dense"),
    "attention": lambda: MemformerAttention(4, 2, memory="cgd", registers=1, norm=True, prenorm=True, bias=True),
    **{name: lambda name=name: LayerMemory(4, 2, memory=name) for name in MEMORIES},
    "registers": lambda: RegisterMemory(4, 3),
}


@pytest.mark.parametrize("name", MODULES)
def test_a_module_made_without_memory_starts_as_one_made_with_it(name: str) -> None:
    torch.manual_seed(5)
    expected = MODULES[name]()
    with torch.device("meta"):
        module = MODULES[name]()
    assert all(parameter.is_meta for parameter in module.parameters())
    module.to_empty(device="cpu")
    torch.manual_seed(5)
    module.reset_parameters()
    for ours, theirs in zip(module.parameters(), expected.parameters(), strict=True):
        assert torch.equal(ours, theirs)


def test_every_module_can_be_started_anew() -> None:
    made = {type(make()) for make in MODULES.values()}
    named = [getattr(memformer_kernels.nn, name) for name in memformer_kernels.nn.__all__]
    assert made == {x for x in named if isinstance(x, type) and issubclass(x, nn.Module)}
    for kind in made:
        assert "reset_parameters" in vars(kind), kind
