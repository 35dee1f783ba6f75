"""Weights of a context's tokens: the definition, what weights of 0 and of all kinds mean, and their gradients."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from memformer_kernels import explain, memformer_layer, memformer_loss, memformer_predict, memformer_stack, reference
from memformer_kernels.availability import available
from memformer_kernels.backends import BACKENDS as BACKENDS_BY_NAME
from memformer_kernels.nn import Memformer, MemformerLayer
from memformer_kernels.testing import Case, float64_violations, public
from tests.memformer_kernels.cases import leaves, make_case, normal, seeded
from tests.memformer_kernels.paths import BACKENDS, PATHS, Path, on_every_backend, on_every_path

TASKS, TOKENS, WIDTH, QUERIES = 3, 7, 3, 2
STRUCTURES = pytest.mark.parametrize("structure", ["response-only", "block", "dense"])
CONTEXTS: dict[str, int | Tensor] = {"int": 4, "ragged": torch.tensor([2, 5, 3])}
KINDS = pytest.mark.parametrize("kind", CONTEXTS)
ENDS = [2, 5, 3]


def _weighted(case: Case, seed: int = 5) -> Case:
    """Some are 0, and one past the context is no number at all."""
    weights = normal(seeded(seed), *case.z.shape[:2]).square() + 0.1
    weights[0, 1] = weights[2, 0] = 0
    weights[:, -1] = torch.nan
    return replace(case, weights=weights)


def _case(kind: str = "int", structure: str = "block", granularity: str = "feature", **options: Any) -> Case:
    sizes = {"tasks": TASKS, "tokens": TOKENS, "width": WIDTH, "layers": 2, "queries": QUERIES, **options}
    return _weighted(make_case(structure=structure, granularity=granularity, context=CONTEXTS[kind], **sizes))


def _network(case: Case) -> tuple[Any, ...]:
    return (case.z, case.q, *case.parameters)


def _context(case: Case) -> dict[str, Any]:
    return {"context": case.context, "weights": case.weights}


def _loss(case: Case, **options: Any) -> Tensor:
    target = _target().to(case.z.dtype)
    context = {**_context(case), "queries": QUERIES}
    return memformer_loss(case.z, target, case.q, *case.parameters, **context, **options)


def _target() -> Tensor:
    """Numbers that are the same in half precision."""
    return (4 * normal(seeded(6), TASKS, QUERIES)).round() / 4


def _close(made: Any, expected: Any) -> None:
    torch.testing.assert_close(made, expected, rtol=1e-11, atol=1e-13)


def _paths() -> list[Any]:
    return [
        pytest.param(path, granularity, id=f"{path}-{granularity}")
        for path in PATHS
        for granularity in ("feature", "full")
        if path.serves(_case(granularity=granularity))
    ]


needs_library = pytest.mark.skipif(not available("cpu"), reason="the native library is not built")
ON_EVERY_PATH = pytest.mark.parametrize(("path", "granularity"), _paths())


@STRUCTURES
@KINDS
@ON_EVERY_PATH
def test_results_and_gradients_are_the_references(path: Path, granularity: str, kind: str, structure: str) -> None:
    """With the gradient of weights, at 0 too, which torch makes, and without it, where kernels see scaled tokens."""
    case = _case(kind, structure, granularity, rule="recursive")
    tensors = leaves(case)
    for tensor in tensors.values():
        tensor.requires_grad_()
    expected = reference.predict(*_network(case), **_context(case), queries=QUERIES)
    made = memformer_predict(*_network(case), **_context(case), queries=QUERIES, layers=True, **path.options)
    _close(made, expected)
    cotangent = normal(seeded(7), *expected.shape)
    wanted = torch.autograd.grad(expected, list(tensors.values()), cotangent, retain_graph=True)
    wanted = tuple(torch.where(x.isfinite(), x, 0.0) for x in wanted)  # 0 times the NaN past the context
    _close(torch.autograd.grad(made, list(tensors.values()), cotangent), wanted)
    assert case.weights is not None
    apart = replace(case, weights=case.weights.detach())
    made = memformer_predict(*_network(apart), **_context(apart), queries=QUERIES, layers=True, **path.options)
    _close(made, expected)
    others = [tensor for name, tensor in tensors.items() if name != "weights"]
    _close(torch.autograd.grad(made, others, cotangent), wanted[:-1])
    stacked = memformer_stack(*_network(case), **_context(case), **path.options)
    whole = reference.stack(*_network(case), **_context(case))
    _close(stacked, whole)
    cotangent = normal(seeded(8), *whole.shape)
    wanted = torch.autograd.grad(whole, list(tensors.values()), cotangent)
    wanted = tuple(torch.where(x.isfinite(), x, 0.0) for x in wanted)
    _close(torch.autograd.grad(stacked, list(tensors.values()), cotangent), wanted)


@KINDS
@ON_EVERY_PATH
def test_the_loss_and_its_gradients_are_those_of_the_predictions(path: Path, granularity: str, kind: str) -> None:
    case = _case(kind, granularity=granularity)
    tensors = list(leaves(case).values())
    for tensor in tensors:
        tensor.requires_grad_()
    target = _target()
    expected = (memformer_predict(*_network(case), **_context(case), queries=QUERIES) - target).square().mean()
    wanted = torch.autograd.grad(expected, tensors)
    made = _loss(case, **path.options)
    _close(made, expected)
    _close(torch.autograd.grad(made, tensors), wanted)
    assert case.weights is not None
    made = _loss(replace(case, weights=case.weights.detach()), **path.options)
    _close(made, expected)
    _close(torch.autograd.grad(made, tensors[:-1]), wanted[:-1])


@STRUCTURES
@KINDS
@pytest.mark.parametrize(
    ("algorithm", "rule", "granularity"),
    [("gram", "lfom", "feature"), ("gram", "recursive", "feature"), ("token", "lfom", "full")],
)
def test_several_responses_have_weights_in_common(
    algorithm: Any, rule: str, granularity: str, kind: str, structure: str
) -> None:
    """Results, and derivatives of the first and second order, are the reference's, at weights of 0 too."""
    case = _case(kind, structure, granularity, rule=rule, width=4, responses=2)
    assert case.weights is not None
    case = replace(case, weights=torch.where(case.weights.isnan(), 0.7, case.weights))
    assert float64_violations(public("auto", algorithm), case) == {}
    target, network, found = normal(seeded(6), TASKS, QUERIES, 2), _network(case)[1:], []
    inputs = [tensor.requires_grad_() for tensor in leaves(case).values()]
    predicted = reference.predict(case.z, *network, **case.options, queries=QUERIES)[-1]
    made = memformer_loss(case.z, target, *network, **case.options, queries=QUERIES, algorithm=algorithm)
    for value in (made, (predicted - target).square().mean()):
        first = torch.autograd.grad(value, inputs, create_graph=True)
        mixed = torch.stack([grad.square().sum() for grad in first]).sum()
        found.append((value, *first, *torch.autograd.grad(mixed, inputs)))
    _close(found[0], found[1])


def test_another_backend_is_refused_for_several_responses() -> None:
    z, q, weights = torch.zeros(3, 7, 4), torch.zeros(2, 1, 2, 2), torch.ones(3, 7)
    assert "one response a task" in explain(z, q, weights=weights, responses=2).reason
    calls: list[Callable[..., object]] = [
        memformer_stack,
        memformer_predict,
        lambda z, *options, **named: memformer_loss(z, torch.zeros(3, 1, 2), *options, **named),
    ]
    for call in calls:
        with pytest.raises(ValueError, match=r'backend: expected "auto" or "torch", since responses = 2 .*"cpu"'):
            call(z, q, weights=weights, responses=2, backend="cpu")


@STRUCTURES
@on_every_backend
def test_a_layer_is_the_references(backend: str, structure: str) -> None:
    for kind in CONTEXTS:
        case = _case(kind, structure)
        register = normal(seeded(9), TASKS, 1, TOKENS, WIDTH)
        gamma, beta = normal(seeded(10), 2, 1, TOKENS, WIDTH), normal(seeded(11), 1, 1, WIDTH)
        inputs = [x.requires_grad_() for x in (case.z, case.q, register, gamma, beta, case.weights) if x is not None]
        p = None if case.p is None else case.p[0]
        given = (case.z, case.q[0], p, [register], gamma, beta)
        made = memformer_layer(*given, **_context(case), backend=backend)
        expected = reference.layer(*given, **_context(case))
        _close(made, expected)
        grads = [torch.autograd.grad([x.square().sum() for x in both], inputs) for both in (made, expected)]
        _close(grads[0], tuple(torch.where(x.isfinite(), x, 0.0) for x in grads[1]))


@STRUCTURES
@on_every_path
def test_whole_numbers_are_repetitions(path: Path, structure: str) -> None:
    """Of tokens that have no coefficients of their own place; 0 leaves one out."""
    case, counts = _case(structure=structure, rule="lfom"), torch.tensor([2, 0, 1, 3])
    weights = torch.zeros(TASKS, TOKENS, dtype=torch.float64)
    weights[:, :4] = counts
    repeated = torch.cat([case.z[:, :4].repeat_interleave(counts, 1), case.z[:, 4:]], 1)
    options: dict[str, Any] = {"queries": QUERIES, **path.options}
    expected = memformer_predict(repeated, *_network(case)[1:], context=6, **options)
    _close(memformer_predict(*_network(case), context=4, weights=weights, **options), expected)
    tokens = memformer_stack(*_network(case), context=4, weights=weights, **path.options)
    whole = memformer_stack(repeated, *_network(case)[1:], context=6, **path.options)
    _close(tokens[:, [0, 2, 3, 4, 5, 6]], whole[:, [0, 2, 3, 6, 7, 8]])


@on_every_path
def test_order_and_scale_do_not_matter_and_ones_are_none(path: Path) -> None:
    case = _case()
    assert case.weights is not None
    weights = torch.where(case.weights.isnan(), 1.0, case.weights)
    options: dict[str, Any] = {"context": 4, "queries": QUERIES, **path.options}
    plain = memformer_predict(*_network(case), weights=weights, **options)
    order = [2, 0, 3, 1, 4, 5, 6]
    _close(memformer_predict(case.z[:, order], *_network(case)[1:], weights=weights[:, order], **options), plain)
    for factor in (3.0, 1e-300, 1e307):
        _close(memformer_predict(*_network(case), weights=factor * weights, **options), plain)
    unweighted = memformer_predict(*_network(case), **options)
    _close(memformer_predict(*_network(case), weights=torch.full_like(weights, 0.3), **options), unweighted)


@pytest.mark.parametrize("filling", [torch.nan, -torch.inf, 1e30])
@STRUCTURES
@ON_EVERY_PATH
def test_a_token_of_weight_0_is_dropped_by_selection(
    path: Path, granularity: str, structure: str, filling: float
) -> None:
    """Whatever it holds, no bit of a result or gradient of the others changes, and its own gradient is exactly zero."""
    for kind in CONTEXTS:
        case = _case(kind, structure, granularity)
        assert case.weights is not None
        filled = case.z.clone()
        filled[0, 1] = filled[2, 0] = filling
        made = []
        for tokens in (case.z, filled):
            own = replace(case, z=tokens.clone().requires_grad_(), q=case.q.clone().requires_grad_())
            loss = _loss(own, **path.options)
            made.append((loss, *torch.autograd.grad(loss, [own.z, own.q])))
        assert all(torch.equal(one, other) for one, other in zip(*made, strict=True))
        assert not made[0][1][0, 1].any()
        assert made[0][1][0, 0].all()
        tokens, others = (memformer_stack(z, *_network(case)[1:], **_context(case)) for z in (case.z, filled))
        changed = torch.zeros(TASKS, TOKENS, dtype=torch.bool)
        changed[0, 1] = changed[2, 0] = True
        assert torch.equal(tokens[~changed], others[~changed])


@pytest.mark.parametrize("filling", [torch.nan, -torch.inf, 1e30, -3e38])
@pytest.mark.parametrize("structure", ["response-only", "dense"])
@KINDS
@ON_EVERY_PATH
def test_weights_learn_whatever_a_token_of_weight_0_holds(
    path: Path, granularity: str, kind: str, structure: str, filling: float
) -> None:
    """Numbers that are none, or too large to be squared, count as 0 in the gradient of its weight."""
    case, found = _case(kind, structure, granularity).to(torch.float32), []
    assert case.weights is not None
    for numbers in (0.0, filling):
        z, weights = case.z.clone(), case.weights.clone().requires_grad_()
        z[0, 1, 1] = z[2, 0] = numbers
        inputs = [z.requires_grad_(), case.q.clone().requires_grad_(), weights]
        own = replace(case, z=z, q=inputs[1], weights=weights)
        predicted = memformer_predict(*_network(own), **_context(own), queries=QUERIES, **path.options)
        loss = _loss(own, **path.options)
        found.append([*torch.autograd.grad(loss, inputs), *torch.autograd.grad(predicted.square().sum(), inputs)])
    torch.testing.assert_close(found[1], found[0], rtol=0, atol=0)
    assert all(grad.isfinite().all() for grad in found[0])
    assert found[0][2][0, 1] != 0


@STRUCTURES
@KINDS
@ON_EVERY_PATH
def test_the_gradient_of_a_weight_of_0_may_be_too_large_for_a_number(
    path: Path, granularity: str, kind: str, structure: str
) -> None:
    """It is 0 then, and those of the others are as they were."""
    case, found = _case(kind, structure, granularity).to(torch.float32), []
    assert case.weights is not None
    target = 1e4 * _target().float()  # a loss whose gradients are large
    for numbers in (1.0, 1.5e19):
        z, weights = case.z.clone(), case.weights.clone().requires_grad_()
        z[0, 1] = numbers
        options: dict[str, Any] = {"context": case.context, "queries": QUERIES, "weights": weights, **path.options}
        loss = memformer_loss(z, target, *_network(case)[1:], **options)
        found.append(torch.autograd.grad(loss, weights)[0])
    others = torch.arange(TASKS * TOKENS).view(TASKS, TOKENS) != 1
    torch.testing.assert_close(found[1][others], found[0][others])
    assert found[0][0, 1] != 0
    assert found[1][0, 1] == 0


@KINDS
@ON_EVERY_PATH
def test_a_task_without_weight_has_a_sum_of_zero(path: Path, granularity: str, kind: str) -> None:
    """Its tokens stay where they are, and nothing comes of the others' or its own being so."""
    case = _case(kind, granularity=granularity)
    assert case.weights is not None
    weights = case.weights.clone()
    weights[1] = 0
    emptied = replace(case, weights=weights)
    stacked = memformer_stack(*_network(emptied), **_context(emptied), **path.options)
    assert torch.equal(stacked[1], case.z[1])
    _close(stacked[[0, 2]], memformer_stack(*_network(case), **_context(case), **path.options)[[0, 2]])
    predicted = memformer_predict(*_network(emptied), **_context(emptied), queries=QUERIES, **path.options)
    _close(predicted[1], -case.z[1, -QUERIES:, -1])
    for learned in (False, True):
        inputs = [emptied.z.requires_grad_(), emptied.q.requires_grad_()]
        if learned:
            inputs.append(weights.requires_grad_())
        grads = torch.autograd.grad(_loss(emptied, **path.options), inputs)
        assert all(grad.isfinite().all() for grad in grads)
        assert not grads[0][1, : ENDS[1] - 1].any()
    assert not grads[2][1].any()
    assert grads[2][0].any()


@KINDS
@pytest.mark.parametrize("structure", ["response-only", "dense"])
@pytest.mark.parametrize("algorithm", ["gram", "token"])
def test_gradcheck(algorithm: str, structure: str, kind: str) -> None:
    case = _case(kind, structure, tasks=TASKS, heads=1, rule="lfom")
    assert case.weights is not None
    positive = torch.where(case.weights > 0, case.weights, 0.7).requires_grad_()

    def predict(q: Tensor, weights: Tensor) -> Tensor:
        options: dict[str, Any] = {"context": case.context, "queries": 1, "algorithm": algorithm}
        return memformer_predict(case.z, q, *case.parameters, weights=weights, **options)

    inputs = (case.q.requires_grad_(), positive)
    torch.autograd.gradcheck(predict, inputs)
    torch.autograd.gradgradcheck(predict, inputs, fast_mode=True)


@pytest.mark.parametrize("function", ["predict", "loss", "stack"])
@pytest.mark.parametrize("algorithm", ["gram", "token"])
def test_second_derivatives_at_zero_are_the_references(algorithm: str, function: str) -> None:
    case = _case(rule="lfom")
    assert case.weights is not None
    weights = torch.where(case.weights.isnan(), 0.0, case.weights).requires_grad_()
    target = _target()

    def ours() -> Tensor:
        options: dict[str, Any] = {"context": 4, "weights": weights, "algorithm": algorithm}
        if function == "stack":
            return memformer_stack(*_network(case), **options).square().sum()
        if function == "loss":
            network = (case.z, target, case.q, *case.parameters)
            return memformer_loss(*network, **options, queries=QUERIES)
        return (memformer_predict(*_network(case), **options, queries=QUERIES) - target).square().mean()

    def plain() -> Tensor:
        if function == "stack":
            return reference.stack(*_network(case), context=4, weights=weights).square().sum()
        made = reference.predict(*_network(case), context=4, weights=weights, queries=QUERIES)[-1]
        return (made - target).square().mean()

    inputs, found = [weights, case.z.requires_grad_()], []
    for value in (ours(), plain()):
        first = torch.autograd.grad(value, inputs, create_graph=True)
        mixed = sum(grad.square().sum() for grad in first)
        assert isinstance(mixed, Tensor)
        found.append((value, *first, *torch.autograd.grad(mixed, inputs)))
    _close(found[0], found[1])


@on_every_path
def test_transforms(path: Path) -> None:
    case = _case(rule="lfom")
    assert case.weights is not None
    weights = torch.where(case.weights.isnan(), 0.0, case.weights)

    def predict(z: Tensor, weights: Tensor) -> Tensor:
        options: dict[str, Any] = {"context": 4, "queries": QUERIES, **path.options}
        return memformer_predict(z, case.q, *case.parameters, weights=weights, **options)

    whole = predict(case.z, weights)
    mapped = torch.func.vmap(lambda z, own: predict(z[None], own[None])[0])(case.z, weights)
    _close(mapped, whole)
    leaf = weights.clone().requires_grad_()
    (expected,) = torch.autograd.grad(predict(case.z, leaf).square().sum(), leaf)
    one: Callable[..., Tensor] = lambda own, z: predict(z[None], own[None]).square().sum()  # noqa: E731
    _close(torch.func.vmap(torch.func.grad(one))(weights, case.z), expected)
    tangent = normal(seeded(12), TASKS, TOKENS)
    _, pushed = torch.func.jvp(lambda own: predict(case.z, own).square().sum(), (weights,), (tangent,))
    _close(pushed, (expected * tangent).sum())


@pytest.mark.parametrize("backend", BACKENDS)
def test_compiled_graphs_have_weights(backend: str) -> None:
    case = _case(rule="lfom")
    assert case.weights is not None
    weights, target = torch.where(case.weights.isnan(), 0.0, case.weights).requires_grad_(), _target()
    network = (case.z, target, case.q, *case.parameters)

    def loss(weights: Tensor) -> Tensor:
        options: dict[str, Any] = {"context": 4, "queries": QUERIES, "backend": backend}
        return memformer_loss(*network, weights=weights, **options)

    compiled = torch.compile(loss, backend="aot_eager", fullgraph=True)
    _close(compiled(weights), loss(weights))
    _close(torch.autograd.grad(compiled(weights), weights), torch.autograd.grad(loss(weights), weights))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@on_every_path
def test_half_precision_is_rounded_no_more_than_once(path: Path, dtype: torch.dtype) -> None:
    """Scaled tokens are float32, whatever the tokens are."""
    double = _case(rule="lfom", structure="block")
    values = {name: value.to(dtype) for name, value in leaves(double).items()}
    case = replace(double, **values)
    exact = replace(double, **{name: value.double() for name, value in values.items()})
    made, expected = _loss(case, **path.options), _loss(exact)
    assert made.dtype == torch.float32
    torch.testing.assert_close(made.double(), expected, rtol=1e-4, atol=1e-6)
    inputs = [case.z.requires_grad_(), case.q.requires_grad_()]
    grads = torch.autograd.grad(_loss(case, **path.options), inputs)
    predicted = memformer_predict(*_network(case), **_context(case), queries=QUERIES, **path.options)
    assert predicted.dtype == torch.float32
    grads += torch.autograd.grad(predicted.square().sum(), inputs)
    assert [grad.dtype for grad in grads] == [dtype] * 4
    assert all(grad.isfinite().all() for grad in grads)


def test_modules_pass_weights_on() -> None:
    case = _case()
    model = Memformer(WIDTH - 1, 2, dtype=torch.float64)
    network, options = model.stack_arguments(), {**_context(case), "queries": QUERIES}
    _close(model(case.z, **_context(case)), memformer_stack(case.z, **network, **_context(case)))
    _close(model.predict(case.z, **options), memformer_predict(case.z, **network, **options))
    target = _target()
    _close(model.loss(case.z, target, **options), memformer_loss(case.z, target, **network, **options))
    layer = MemformerLayer(WIDTH - 1, dtype=torch.float64)
    expected = memformer_layer(case.z, layer.q, layer.p, gamma=layer.gamma, **_context(case))
    _close(layer(case.z, **_context(case)), expected)


@pytest.mark.parametrize(
    ("weights", "error", "message"),
    [
        (torch.ones(3, 4), ValueError, r"weights: expected one weight per token, shape \(B, N\) = \(3, 7\), got"),
        (torch.ones(7), ValueError, "weights: expected one weight per token"),
        (torch.ones(3, 7, dtype=torch.int64), TypeError, "weights: expected a dense tensor of float32"),
        (torch.ones(3, 7, dtype=torch.float64), TypeError, "weights: expected torch.float32"),
        ([1.0] * 7, TypeError, "weights: expected a dense tensor of float32"),
        (torch.ones(3, 7, device="meta"), ValueError, "weights: expected a tensor on cpu"),
        (-torch.ones(3, 7), ValueError, "weights: expected finite numbers of at least 0 for the context's tokens"),
        (torch.full((3, 7), torch.nan), ValueError, "got numbers from nan to nan"),
        (torch.full((3, 7), torch.inf), ValueError, "got numbers from .* to inf"),
    ],
)
def test_bad_weights_are_refused(weights: Any, error: type[Exception], message: str) -> None:
    z, q, target = torch.zeros(3, 7, 3), torch.zeros(2, 1, 2, 2), torch.zeros(3, 2)
    calls: list[Callable[[], object]] = [
        lambda: memformer_stack(z, q, context=5, weights=weights),
        lambda: memformer_predict(z, q, context=5, weights=weights),
        lambda: memformer_loss(z, target, q, context=torch.tensor([5, 5, 4]), queries=2, weights=weights),
        lambda: memformer_layer(z, q[0], context=5, weights=weights),
    ]
    for call in calls:
        with pytest.raises(error, match=message):
            call()


def test_explain_says_who_knows_of_weights() -> None:
    z, q = torch.zeros(3, 7, 3), torch.zeros(2, 1, 2, 2)
    weights, target = torch.ones(3, 7), torch.zeros(3, 1)
    assert explain(z, q[0], weights=weights).backend == "torch"
    assert explain(z, q, context=torch.tensor([3, 4, 5]), weights=weights).backend == explain(z, q).backend
    for algorithm, said in (("gram", "summed by weight"), ("token", "scaled by their weights")):
        chosen = explain(z, target, q, weights=weights, algorithm=algorithm)
        assert chosen.backend == explain(z, target, q, algorithm=algorithm).backend
        if chosen.backend != "torch":
            assert said in chosen.reason


SIZES = [
    pytest.param("response-only", 2, 6, 19, id="smallest"),
    pytest.param("response-only", 6, 37, 19, id="more than a block"),
    pytest.param("block", 6, 70, 19, id="rows that stream"),
    pytest.param("dense", 16, 33, 19, id="widest dense"),
    pytest.param("response-only", 17, 20, 19, id="widest with features that stay"),
    pytest.param("response-only", 18, 20, 19, id="wider"),
    pytest.param("response-only", 4, 1200, 19, id="long"),
    pytest.param("response-only", 4, 2100, 1, id="cut into pieces"),
    pytest.param("block", 5, 2053, 1, id="cut into whole pieces"),
]


@needs_library
@KINDS
@pytest.mark.parametrize(("structure", "width", "tokens", "tasks"), SIZES)
def test_native_kernels_of_every_size_are_torch(structure: str, width: int, tokens: int, tasks: int, kind: str) -> None:
    """Tasks fill some lanes and vectors; whatever argument has a gradient, alone and with all others."""
    sizes = {"tasks": tasks, "tokens": tokens, "width": width, "layers": 2, "heads": 1, "rule": "lfom", "queries": 2}
    context = tokens - 5
    case = make_case(structure=structure, context=context, **sizes)
    if kind == "ragged":
        case = replace(case, context=context - torch.arange(tasks) * (context - 1) // 18)
    weights = normal(seeded(5), tasks, tokens).square()
    weights[:, 1::3] = 0
    weights[4:5] = 0
    weights[:, -2:] = torch.nan
    case = replace(case, weights=weights)
    tensors = leaves(case)
    target = normal(seeded(6), tasks, 2).requires_grad_()

    def loss(backend: str, wanted: list[str]) -> list[Tensor]:
        given = {name: tensor.detach().requires_grad_(name in wanted) for name, tensor in tensors.items()}
        own, goal = replace(case, **given), target.detach().requires_grad_("target" in wanted)
        options: dict[str, Any] = {**_context(own), "queries": 2, "backend": backend, "algorithm": "gram"}
        made = memformer_loss(own.z, goal, own.q, *own.parameters, **options)
        predicted = memformer_predict(*_network(own), **options, layers=True)
        inputs = [goal if name == "target" else given[name] for name in wanted]
        first = torch.autograd.grad(made, inputs)
        inner = [x for x in inputs if x is not goal]
        second = torch.autograd.grad(predicted, inner, torch.ones_like(predicted)) if inner else ()
        return [made.detach(), predicted.detach(), *first, *second]

    for wanted in ([*tensors, "target"], ["weights"], ["z"], ["q"], ["target"]):
        made, expected = loss("cpu", wanted), loss("torch", wanted)
        torch.testing.assert_close(made, expected, rtol=1e-10, atol=1e-12)


@needs_library
def test_native_kernels_run_where_a_plan_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    case, target = _case(rule="lfom"), _target()
    operators: Any = BACKENDS_BY_NAME["cpu"]._operators  # type: ignore[attr-defined]
    called: list[str] = []

    def spy(name: str, right: Callable[..., Any]) -> Callable[..., Any]:
        def seen(*arguments: Any) -> Any:
            called.append(name)
            return right(*arguments)

        return seen

    for name in ("weighted_forward", "weighted_backward", "weighted_loss"):
        monkeypatch.setattr(operators, name, spy(name, getattr(operators, name)))
    weights = torch.where(case.weights.isnan(), 0.0, case.weights).requires_grad_()  # type: ignore[union-attr]
    options: dict[str, Any] = {"context": 4, "queries": QUERIES, "weights": weights, "algorithm": "gram"}
    memformer_predict(*_network(case), **options, backend="cpu").sum().backward()
    memformer_loss(case.z, target, *_network(case)[1:], **options, backend="cpu").backward()
    assert called == ["weighted_forward", "weighted_backward", "weighted_loss"]


@needs_library
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_native_kernels_make_the_same_bits_on_any_number_of_threads(dtype: torch.dtype) -> None:
    case = make_case(tasks=700, tokens=12, width=5, layers=3, heads=1, rule="lfom", context=9).to(dtype)
    weights = normal(seeded(5), 700, 12).square().to(dtype)
    inputs = [x.requires_grad_() for x in (case.z, case.q, weights)]
    before, found = torch.get_num_threads(), []
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            options: dict[str, Any] = {"context": 9, "queries": 2, "weights": weights, "backend": "cpu"}
            predicted = memformer_predict(*_network(case), **options)
            loss = memformer_loss(case.z, torch.ones(700, 2, dtype=dtype), *_network(case)[1:], **options)
            grads = torch.autograd.grad(predicted.square().sum(), inputs) + torch.autograd.grad(loss, inputs)
            found.append([predicted, loss, *grads])
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))


@needs_library
@KINDS
@pytest.mark.parametrize("context", [1100, 2048, 2500])
def test_cutting_a_long_context_changes_no_bit(context: int, kind: str) -> None:
    """One task's context is cut into pieces; those of many tasks are not."""
    case = make_case(tasks=1, tokens=2503, width=5, layers=3, heads=1, rule="lfom", context=context).to(torch.float32)
    weights, found = normal(seeded(5), 1, 2503).square().float(), []
    weights[:, ::7] = 0
    for tasks in (1, 70):
        z, own = (x.detach().expand(tasks, *x.shape[1:]).clone().requires_grad_() for x in (case.z, weights))
        lengths = context if kind == "int" else torch.full((tasks,), context)
        options: dict[str, Any] = {"context": lengths, "queries": 2, "weights": own, "backend": "cpu"}
        predicted = memformer_predict(z, *_network(case)[1:], **options)
        found.append([x[0] for x in (predicted, *torch.autograd.grad(predicted.square().sum(), [z, own]))])
    assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))


@needs_library
@pytest.mark.parametrize("layout", ["expanded", "transposed", "half", "shifted"])
def test_native_kernels_read_weights_of_any_layout(layout: str) -> None:
    case = make_case(tasks=37, tokens=21, width=6, layers=2, heads=1, rule="lfom", context=18).to(torch.float32)
    plain = normal(seeded(5), 37, 21).square().float()
    weights = {
        "expanded": plain[0].expand(37, 21),
        "transposed": plain.t().contiguous().t(),
        "half": plain.bfloat16().float(),
        "shifted": torch.cat([plain, plain], 1)[:, 3:24],
    }[layout]
    z = case.z.bfloat16() if layout == "half" else case.z
    given = weights.bfloat16() if layout == "half" else weights
    found = []
    for own in (given, weights.contiguous().clone()):
        own.requires_grad_()
        predicted = memformer_predict(z, *_network(case)[1:], context=18, queries=2, weights=own, backend="cpu")
        (grad,) = torch.autograd.grad(predicted.square().sum(), own)
        assert grad.dtype == own.dtype
        found.append((predicted, grad.float() if layout != "half" else grad.bfloat16()))
    assert torch.equal(found[0][0], found[1][0])
    assert torch.equal(found[0][1], found[1][1])


@needs_library
def test_masks_are_padding() -> None:
    """Weights of 1 and 0 in float32: the numbers of a batch whose tokens of weight 0 are cut out, to rounding."""
    case = make_case(tasks=50, tokens=16, width=6, layers=3, heads=1, rule="lfom", context=15).to(torch.float32)
    kept = torch.arange(15).remainder(3) != 1
    weights = torch.ones(50, 16)
    weights[:, :15] = kept.float()
    z = case.z.detach().clone()
    z[:, :15][:, ~kept] = torch.nan
    cut = torch.cat([case.z[:, :15][:, kept], case.z[:, 15:]], 1)
    masked = memformer_predict(z, *_network(case)[1:], context=15, weights=weights, backend="cpu")
    torch.testing.assert_close(masked, memformer_predict(cut, *_network(case)[1:], context=10, backend="cpu"))
