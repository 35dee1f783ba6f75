"""A task with a non-finite number spoils its own results and no other's; a sum over tasks shows it."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from memformer_kernels import (
    context_gram,
    lfom_solve,
    memformer_layer,
    memformer_loss,
    memformer_predict,
    memformer_stack,
)
from memformer_kernels.testing import Case
from tests.memformer_kernels.cases import GRANULARITIES, NAMED_STRUCTURES, leaves, make_case, normal, seeded
from tests.memformer_kernels.paths import PATHS, Path, on_every_backend, on_every_path

BAD = 2
TASKS = 5
KEPT = [0, 1, 3, 4]
NETWORKS = [
    pytest.param(path, structure, granularity, id=f"{path}-{structure}-{granularity}")
    for path in PATHS
    for structure in NAMED_STRUCTURES
    for granularity in GRANULARITIES
    if path.serves(make_case(granularity=granularity))
]
ON_NETWORKS = pytest.mark.parametrize(("path", "structure", "granularity"), NETWORKS)
VALUES = pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
# A feature of the first example, and the response of the last.
PLACES = pytest.mark.parametrize("place", [(0, 1), (3, -1)], ids=["feature", "response"])


def _case(structure: str, granularity: str) -> Case:
    return make_case(structure=structure, granularity=granularity, tasks=TASKS, context=4)


def _spoilt(z: Tensor, place: tuple[int, int], value: float) -> Tensor:
    spoilt = z.clone()
    spoilt[BAD][place] = value
    return spoilt


@VALUES
@PLACES
@ON_NETWORKS
def test_networks(path: Path, structure: str, granularity: str, place: tuple[int, int], value: float) -> None:
    case = _case(structure, granularity)
    spoilt = _spoilt(case.z, place, value)
    network = (case.q, *case.parameters)
    functions: dict[str, Callable[[Tensor], Tensor]] = {
        "stack": lambda z: memformer_stack(z, *network, context=4, **path.options),
        "predict": lambda z: memformer_predict(z, *network, context=4, **path.options),
        "layers": lambda z: memformer_predict(z, *network, context=4, layers=True, **path.options).transpose(0, 1),
    }
    for name, function in functions.items():
        clean, made = function(case.z), function(spoilt)
        assert torch.equal(made[KEPT], clean[KEPT]), name
        responses = made[BAD, 4:, -1] if name == "stack" else made[BAD]
        assert not responses.isfinite().any(), name


@VALUES
@PLACES
@ON_NETWORKS
def test_gradients(path: Path, structure: str, granularity: str, place: tuple[int, int], value: float) -> None:
    """Each task's own gradient stays its own; those of the parameters, summed over tasks, are NaN."""
    case = _case(structure, granularity)
    target = normal(seeded(1), TASKS, 3)

    def run(z: Tensor) -> tuple[Tensor, ...]:
        inputs = {"z": z, **{name: x for name, x in leaves(case).items() if name != "z"}}
        values = [x.detach().clone().requires_grad_() for x in inputs.values()]
        own = dict(zip(inputs, values, strict=True))
        tensors = (own["q"], own.get("p"), own["gamma"])
        loss = memformer_loss(own["z"], target, *tensors, context=4, **path.options)
        return loss.detach(), *torch.autograd.grad(loss, values)

    clean_loss, clean_z, *_ = run(case.z)
    loss, z_gradient, *parameter_gradients = run(_spoilt(case.z, place, value))
    assert clean_loss.isfinite()
    assert torch.equal(z_gradient[KEPT], clean_z[KEPT])
    assert not z_gradient[BAD].isfinite().all()
    assert loss.isnan() if math.isnan(value) else not loss.isfinite()
    for gradient in parameter_gradients:
        assert gradient.isnan().any()
    q_gradient = parameter_gradients[0]
    if math.isnan(value):
        assert q_gradient.isnan().all()


CONTEXTS = pytest.mark.parametrize("context", [4, torch.tensor([4, 1, 5, 2, 3])], ids=["int", "ragged"])


@CONTEXTS
@ON_NETWORKS
def test_a_spoilt_query_spoils_itself_alone(
    path: Path, structure: str, granularity: str, context: int | Tensor
) -> None:
    case = _case(structure, granularity)
    spoilt = case.z.clone()
    spoilt[BAD, 5] = torch.nan
    network = (case.q, *case.parameters)
    clean = memformer_stack(case.z, *network, context=context, **path.options)
    made = memformer_stack(spoilt, *network, context=context, **path.options)
    rows = torch.ones(TASKS, 7, dtype=torch.bool)
    rows[BAD, 5] = False
    assert torch.equal(made[rows], clean[rows])
    assert made[BAD, 5].isnan().all()
    predictions = memformer_predict(spoilt, *network, context=context, queries=2, **path.options)
    assert predictions.isnan().nonzero().tolist() == [[BAD, 0]]


@CONTEXTS
@on_every_path
def test_a_spoilt_query_spoils_its_own_gradient_alone(path: Path, context: int | Tensor) -> None:
    """The context's Gram matrix is a selection backward too; only what sums over tokens sees the query."""
    case = _case("block", "feature")
    spoilt = case.z.clone()
    spoilt[:, 6] = torch.nan
    z = spoilt.requires_grad_()
    (gradient,) = torch.autograd.grad(context_gram(z, context).square().sum(), z)
    assert gradient.isfinite().all()
    tokens = memformer_stack(z, case.q, *case.parameters, context=context, **path.options)
    weights = torch.ones_like(tokens)
    weights[:, 6] = 0
    (gradient,) = torch.autograd.grad(tokens, z, weights)
    assert gradient[:, 5].isfinite().all()


@on_every_path
def test_a_spoilt_target_spoils_its_task_alone(path: Path) -> None:
    case = _case("block", "feature")
    z, q = case.z.requires_grad_(), case.q.requires_grad_()
    target = normal(seeded(2), TASKS, 3)
    target[BAD, 0] = torch.nan
    loss = memformer_loss(z, target, q, *case.parameters, context=4, **path.options)
    z_gradient, q_gradient = torch.autograd.grad(loss, [z, q])
    assert loss.isnan()
    assert z_gradient[KEPT].isfinite().all()
    assert z_gradient[BAD].isnan().any()
    assert q_gradient.isnan().all()


@on_every_path
def test_ragged_contexts_isolate_too(path: Path) -> None:
    case = _case("block", "feature")
    lengths = torch.tensor([1, 6, 3, 2, 5])
    spoilt = _spoilt(case.z, (0, 1), torch.nan)
    network = (case.q, *case.parameters)
    clean = memformer_predict(case.z, *network, context=lengths, **path.options)
    made = memformer_predict(spoilt, *network, context=lengths, **path.options)
    assert torch.equal(made[KEPT], clean[KEPT])
    assert made[BAD].isnan().all()


@VALUES
def test_gram(value: float) -> None:
    z = normal(seeded(3), TASKS, 6, 3)
    spoilt = z.clone()
    spoilt[BAD, 0, 1] = value
    clean, made = context_gram(z, 4), context_gram(spoilt, 4)
    assert torch.equal(made[KEPT], clean[KEPT])
    assert not made[BAD, 1].isfinite().any()
    spoilt = z.clone()
    spoilt[BAD, 4:] = value
    assert torch.equal(context_gram(spoilt, 4), clean)
    lengths = torch.tensor([4, 1, 4, 6, 2])
    assert torch.equal(context_gram(spoilt, lengths), context_gram(z, lengths))


@VALUES
@on_every_backend
def test_layer(backend: str, value: float) -> None:
    case = _case("block", "feature")
    assert case.p is not None
    past = normal(seeded(4), TASKS, 1, 7, 4)
    gamma = normal(seeded(5), 2, 1, 1, 4)

    def run(z: Tensor, past: Tensor) -> tuple[Tensor, Tensor]:
        assert case.p is not None
        return memformer_layer(z, case.q[0], case.p[0], [past], gamma, gamma[0], context=4, backend=backend)

    spoilt_past = past.clone()
    spoilt_past[BAD, 0, 5, 2] = value
    clean = run(case.z, past)
    for made in (run(_spoilt(case.z, (0, 1), value), past), run(case.z, spoilt_past)):
        for ours, exact in zip(made, clean, strict=True):
            assert torch.equal(ours[KEPT], exact[KEPT])
            assert not ours[BAD].isfinite().all()
    assert int((~run(case.z, spoilt_past)[1].isfinite()).sum()) == 1
    spoilt = case.z.clone()
    spoilt[BAD, 6, 1] = value
    for context in (4, torch.tensor([4, 1, 5, 2, 3])):
        made = memformer_layer(spoilt, case.q[0], case.p[0], context=context, backend=backend)
        clean = memformer_layer(case.z, case.q[0], case.p[0], context=context, backend=backend)
        assert torch.equal(made[0][:, :6], clean[0][:, :6])
        assert torch.equal(made[1][:, :, :6], clean[1][:, :, :6])


@VALUES
@on_every_backend
def test_first_order_method(backend: str, value: float) -> None:
    generator = seeded(6)
    h, b, a = normal(generator, TASKS, 3, 3), normal(generator, TASKS, 3), normal(generator, 2, 3, 3)
    spoilt = b.clone()
    spoilt[BAD, 1] = value
    clean = lfom_solve(h, b, a, layers=True, backend=backend)
    made = lfom_solve(h, spoilt, a, layers=True, backend=backend)
    assert torch.equal(made[:, KEPT], clean[:, KEPT])
    assert not made[:, BAD].isfinite().any()
    a.requires_grad_()
    (gradient,) = torch.autograd.grad(lfom_solve(h, spoilt, a, backend=backend).square().sum(), a)
    assert gradient.isnan().any()
