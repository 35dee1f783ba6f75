"""Several responses: every form holds to the token equation, and each response is a network of its own."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from memformer_kernels import explain, lfom_solve, memformer_loss, memformer_predict, memformer_stack, reference
from memformer_kernels.backends.pytorch import backend as torch_backend
from memformer_kernels.nn import STRUCTURES, Memformer
from memformer_kernels.testing import Case, float64_violations, in_form, public
from memformer_kernels.training import TrainState
from tests.memformer_kernels.cases import STRUCTURES as PROJECTIONS
from tests.memformer_kernels.cases import make_case, normal, seeded

M = 3
RULES = [("lfom", "feature"), ("recursive", "full"), ("gated_heads", "scalar"), ("lfom_shared", "token")]


def _case(structure: str = "block", rule: str = "lfom", granularity: str = "feature", **options: Any) -> Case:
    options = {"width": 3 + M, "tokens": 8, "queries": 2, "context": 5, "responses": M, **options}
    return make_case(structure=structure, rule=rule, granularity=granularity, **options)


def _algorithms(case: Case) -> list[Any]:
    return ["token"] if case.token_axis else ["token", "gram"]


@pytest.mark.parametrize("structure", PROJECTIONS)
@pytest.mark.parametrize(("rule", "granularity"), RULES)
def test_every_form_equals_the_token_equation(structure: str, rule: str, granularity: str) -> None:
    case = _case(structure, rule, granularity)
    assert float64_violations(in_form("reassociated"), case) == {}
    for algorithm in _algorithms(case):
        assert float64_violations(public("auto", algorithm), case) == {}, algorithm
        if algorithm == "gram":
            assert float64_violations(in_form("gram"), case) == {}


@pytest.mark.parametrize("structure", ["response-only", "block", "dense"])
def test_ragged_contexts_and_a_target(structure: str) -> None:
    case = _case(structure, context=torch.tensor([2, 5, 6]), queries=1)
    predictions = in_form("literal")(case)[1]
    assert predictions.shape == (3, 3, 1, M)
    case = replace(case, target=normal(seeded(5), 3, 1, M))
    for algorithm in _algorithms(case):
        assert float64_violations(public("auto", algorithm), case) == {}, algorithm


def _of_one(tensor: Tensor | None, response: int) -> Tensor | None:
    """The part of tokens or coefficients that belongs to the features and one response."""
    if tensor is None or tensor.ndim == 0 or tensor.shape[-1] == 1:
        return tensor
    return torch.cat([tensor[..., :-M], tensor[..., tensor.shape[-1] - M + response, None]], -1)


@pytest.mark.parametrize("structure", ["response-only", "block", "block q, dense p"])
@pytest.mark.parametrize(("rule", "granularity"), RULES)
def test_responses_are_networks_of_one(structure: str, rule: str, granularity: str) -> None:
    """Of the same attention, with their own columns of gamma and beta."""
    case = _case(structure, rule, granularity)
    p = case.p
    if structure == "block q, dense p":
        assert p is not None
        p[..., :-M, -M:] = 0.0  # features that read no response: attention is common
        p[..., -M:, -M:] = torch.eye(M, dtype=torch.float64)
    for algorithm in _algorithms(case):
        together = public("auto", algorithm)(case)[1]
        for response in range(M):
            z, gamma, beta = (_of_one(x, response) for x in (case.z, case.gamma, case.beta))
            assert z is not None
            own = p
            if structure == "block q, dense p":
                assert p is not None
                keep = [*range(case.z.shape[-1] - M), case.z.shape[-1] - M + response]
                own = p[..., keep, :][..., keep]
            alone = memformer_predict(
                z, case.q, own, gamma, beta, case.gate, context=5, queries=2, layers=True, algorithm=algorithm
            )
            torch.testing.assert_close(together[..., response], alone, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("structure", ["response-only", "block"])
def test_the_order_of_responses_does_not_matter(structure: str) -> None:
    case, order = _case(structure), torch.tensor([2, 0, 1])

    def moved(tensor: Tensor) -> Tensor:
        return torch.cat([tensor[..., :-M], tensor[..., -M:][..., order]], -1)

    assert case.gamma is not None
    shuffled = replace(case, z=moved(case.z), gamma=moved(case.gamma))
    for algorithm in ("gram", "token"):
        tokens, predictions = public("auto", algorithm)(case)
        other_tokens, other = public("auto", algorithm)(shuffled)
        torch.testing.assert_close(other, predictions[..., order], rtol=1e-13, atol=0.0)
        torch.testing.assert_close(other_tokens, moved(tokens), rtol=1e-13, atol=1e-15)


def test_the_loss_is_the_mean_over_all() -> None:
    case = _case("response-only")
    target = normal(seeded(4), 3, 2, M)
    arguments = (case.q, case.p, case.gamma)
    options: dict[str, Any] = {"context": 5, "queries": 2, "responses": M}
    predictions = memformer_predict(case.z, *arguments, **options)
    loss = memformer_loss(case.z, target, *arguments, **options)
    torch.testing.assert_close(loss, (predictions - target).square().mean())
    assert memformer_loss(case.z[:0], target[:0], *arguments, **options).isnan()


@pytest.mark.parametrize("structure", ["response-only", "block"])
@pytest.mark.parametrize("algorithm", ["gram", "token"])
def test_gradients_of_the_first_and_second_order(structure: str, algorithm: Any) -> None:
    case = _case(structure, tasks=2, tokens=3, width=4, context=2, queries=1, layers=2, heads=1, responses=2)
    given = {name: getattr(case, name) for name in ("z", "q", "gamma")}
    target = normal(seeded(3), 2, 1, 2).requires_grad_()
    leaves = [x.requires_grad_() for x in given.values()]

    def loss(target: Tensor, z: Tensor, q: Tensor, gamma: Tensor) -> Tensor:
        return memformer_loss(z, target, q, case.p, gamma, context=2, queries=1, responses=2, algorithm=algorithm)

    def predict(z: Tensor, q: Tensor, gamma: Tensor) -> Tensor:
        return memformer_predict(
            z, q, case.p, gamma, context=2, queries=1, layers=True, responses=2, algorithm=algorithm
        )

    assert torch.autograd.gradcheck(predict, leaves)
    assert torch.autograd.gradcheck(loss, (target, *leaves))
    assert torch.autograd.gradgradcheck(loss, (target, *leaves))


def test_transforms_and_fakes_know_the_axis() -> None:
    case = _case("response-only")

    def predict(z: Tensor) -> Tensor:
        return memformer_predict(z, case.q, case.p, case.gamma, context=5, queries=2, responses=M)

    one = predict(case.z)
    torch.testing.assert_close(torch.func.vmap(predict)(torch.stack([case.z, case.z]))[1], one)
    meta = {name: getattr(case, name).to("meta") for name in ("z", "q", "gamma")}
    assert memformer_predict(**meta, context=5, queries=2, responses=M).shape == one.shape


def test_a_compiler_traces_them() -> None:
    case = _case("response-only")

    def predict(z: Tensor) -> Tensor:
        return memformer_predict(z, case.q, case.p, case.gamma, context=5, queries=2, responses=M)

    compiled = torch.compile(predict, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(case.z), predict(case.z))


@pytest.mark.parametrize("structure", ["response-only", "block"])
def test_blocks_of_tasks_equal_one_block(structure: str, monkeypatch: pytest.MonkeyPatch) -> None:
    case = _case(structure, tasks=9)
    leaves = [x.requires_grad_() for x in (case.z, case.q)]
    target = normal(seeded(3), 9, 2, M)

    def made() -> list[Tensor]:
        options: dict[str, Any] = {"context": 5, "queries": 2, "responses": M}
        loss = memformer_loss(case.z, target, case.q, case.p, case.gamma, **options)
        predictions = memformer_predict(case.z, case.q, case.p, case.gamma, **options)
        return [loss, predictions, *torch.autograd.grad(loss + predictions.sin().sum(), leaves)]

    whole = made()
    monkeypatch.setattr(torch_backend, "_PART_ELEMENTS", 4 * 8 * (3 + M))
    torch.testing.assert_close(made(), whole, rtol=1e-12, atol=1e-12)


def test_half_precision_tokens() -> None:
    case = _case("block").to(torch.float32)
    z = case.z.detach().bfloat16()
    made = memformer_predict(z, case.q, case.p, case.gamma, context=5, responses=M)
    exact = memformer_predict(z.float(), case.q, case.p, case.gamma, context=5, responses=M)
    assert made.dtype == torch.float32
    assert torch.equal(made, exact)


# The method on quadratics


def _quadratics(d: int = 3, tasks: int = 2, layers: int = 3) -> dict[str, Tensor]:
    generator = seeded(1)
    return {
        "h": normal(generator, tasks, d, d),
        "b": normal(generator, tasks, d, M),
        "a": normal(generator, layers, d, d, scale=0.4),
        "gamma": normal(generator, layers, layers, d),
        "beta": normal(generator, layers, d),
        "w0": normal(generator, tasks, d, M),
    }


@pytest.mark.parametrize("left_out", [(), ("w0",), ("gamma", "beta")])
def test_columns_are_quadratics_of_their_own(left_out: tuple[str, ...]) -> None:
    given = {name: x for name, x in _quadratics().items() if name not in left_out}
    made = lfom_solve(**given, layers=True)
    torch.testing.assert_close(made, reference.lfom_solve(**given), rtol=1e-12, atol=1e-13)
    assert torch.equal(lfom_solve(**given), made[-1])
    for column in range(M):
        one = {name: x[..., column] if name in ("b", "w0") else x for name, x in given.items()}
        torch.testing.assert_close(made[..., column], lfom_solve(**one, layers=True), rtol=1e-12, atol=1e-13)


def test_gradients_of_columns() -> None:
    given = [x.requires_grad_() for x in _quadratics(d=2, tasks=1, layers=2).values()]

    def solve(h: Tensor, b: Tensor, a: Tensor, gamma: Tensor, beta: Tensor, w0: Tensor) -> Tensor:
        return lfom_solve(h, b, a, gamma, beta, w0=w0, layers=True)

    assert torch.autograd.gradcheck(solve, given)
    assert torch.autograd.gradgradcheck(solve, given)


def test_a_network_in_gram_space_is_the_method() -> None:
    case = _case("response-only", granularity="scalar", heads=1)
    x, y = case.z[:, :5, :-M], case.z[:, :5, -M:]
    assert case.gamma is not None
    w = lfom_solve(x.mT @ x / 5, x.mT @ y / 5, case.q[:, 0], case.gamma[:, :, 0, 0])
    queries = torch.cat([case.z[:, -2:, :-M], torch.zeros(3, 2, M, dtype=torch.float64)], -1)
    z = torch.cat([case.z[:, :5], queries], 1)
    made = memformer_predict(z, case.q, None, case.gamma, context=5, responses=M)
    torch.testing.assert_close(made, queries[..., :-M] @ w, rtol=1e-12, atol=1e-13)


# Who serves them, and what is refused


def test_torch_serves_them_and_says_why() -> None:
    case = _case("response-only")
    given = _quadratics()
    plans = [
        explain(case.z, case.q, gamma=case.gamma, responses=M),
        explain(case.z, normal(seeded(), 3, 3, M), case.q, gamma=case.gamma, context=5, responses=M),
        explain(**given),
        explain(given["h"], b=given["b"], a=given["a"]),
    ]
    for plan in plans:
        assert plan.backend == "torch"
        assert "one response a task" in plan.reason
    assert "asked for" in explain(case.z, case.q, gamma=case.gamma, responses=M, backend="torch").reason


@pytest.mark.parametrize("backend", ["cpu", "cuda", "triton"])
def test_another_backend_is_refused(backend: Any) -> None:
    case, given = _case("response-only"), _quadratics()
    with pytest.raises(ValueError, match=rf'backend: expected "auto" or "torch", since responses = 3 .*"{backend}"'):
        memformer_predict(case.z, case.q, gamma=case.gamma, responses=M, backend=backend)
    with pytest.raises(ValueError, match=rf'backend: expected "auto" or "torch", since b has columns .*"{backend}"'):
        lfom_solve(given["h"], given["b"], given["a"], backend=backend)


def test_errors_say_what_was_expected() -> None:
    case, given = _case("response-only"), _quadratics()
    z, q, target = case.z, case.q, normal(seeded(), 3, 3, M)
    refused: list[tuple[str, Any]] = [
        ("responses: expected an int from 1 to D = 6", lambda: memformer_stack(z, q, responses=7)),
        (r"q: expected shape \(3, 2, 4, 4\)", lambda: memformer_stack(z, q, responses=2)),
        (r"q: expected shape \(3, 2, 5, 5\)", lambda: memformer_stack(z, q)),
        (
            r"target: expected shape \(B, queries, responses\) = \(3, 3, 3\)",
            lambda: memformer_loss(z, target[..., 0], q, context=5, responses=M),
        ),
        (r"b: expected shape \(B, d\) = \(2, 3\), or", lambda: lfom_solve(given["h"], given["b"][:, :2], q[:, 0])),
        (
            r"w0: expected b's shape \(2, 3, 3\)",
            lambda: lfom_solve(given["h"], given["b"], q[:, 0], w0=given["w0"][..., 0]),
        ),
    ]
    for message, call in refused:
        with pytest.raises(ValueError, match=message):
            call()


# The module


@pytest.mark.parametrize("structure", STRUCTURES)
def test_the_module_is_the_function_and_trains(structure: Any) -> None:
    torch.manual_seed(0)
    model = Memformer(3, 2, responses=M, structure=structure, dtype=torch.float64)
    assert f"responses={M}" in repr(model)
    x, w = normal(seeded(1), 32, 9, 3), normal(seeded(2), 32, 3, M)
    z = torch.cat([x, x @ w], -1)
    target, z[:, 7:, -M:] = z[:, 7:, -M:].clone(), 0.0
    options: dict[str, Any] = {"context": 7, "responses": M}
    assert torch.equal(model.predict(z, context=7), memformer_predict(z, **model.stack_arguments(), **options))
    assert torch.equal(model(z, context=7), memformer_stack(z, **model.stack_arguments(), **options))
    optimizer, losses = torch.optim.Adam(model.parameters(), lr=0.02), []
    for _ in range(20):
        loss = model.loss(z, target, context=7)
        losses.append(loss.item())
        optimizer.zero_grad(), loss.backward(), optimizer.step()
    assert losses[-1] < 0.8 * losses[0]
    with pytest.raises(ValueError, match="z: expected D = 6 numbers a token, 3 features and 3 responses"):
        model.predict(z[..., :-1])
    for call in (lambda: model.prefix_predict(z), lambda: model.prefix_loss(z, target)):
        with pytest.raises(ValueError, match=f"responses: expected 1: every prefix predicts one response, got {M}"):
            call()


@pytest.mark.parametrize("structure", STRUCTURES)
def test_a_module_starts_near_a_gradient_step(structure: Any) -> None:
    torch.manual_seed(0)
    several = Memformer(3, 2, responses=M, structure=structure, dtype=torch.float64)
    size = 3 + M if structure == "dense" else 3
    q = torch.zeros(size, size, dtype=torch.float64)
    q[range(3), range(3)] = -0.5
    assert float((several.q.detach() - q).abs().max()) < 0.1
    if structure == "dense":
        assert several.p is not None
        p = torch.diag(torch.tensor([0.0] * 3 + [1.0] * M, dtype=torch.float64))
        assert float((several.p.detach() - p).abs().max()) < 0.1


@pytest.mark.parametrize("structure", ["response-only", "block"])
def test_scalar_coefficients_fit_any_number_of_responses(structure: Any) -> None:
    one = Memformer(3, 2, structure=structure, granularity="scalar")
    several = Memformer(3, 2, responses=M, structure=structure, granularity="scalar")
    several.load_state_dict(one.state_dict())
    z = normal(seeded(), 4, 9, 3 + M).float()
    alone = torch.stack([one.predict(torch.cat([z[..., :3], z[..., 3 + i, None]], -1)) for i in range(M)], -1)
    torch.testing.assert_close(several.predict(z), alone)


def test_whole_steps_train_one_response() -> None:
    with pytest.raises(ValueError, match=r"models\[0\]: expected one of a single response.*module of 3"):
        TrainState.of([Memformer(3, 2, responses=M)])


@pytest.mark.parametrize("structure", PROJECTIONS)
def test_one_response_said_is_one_response(structure: str) -> None:
    case = make_case(structure=structure, tokens=7, queries=2, context=5)
    made = memformer_predict(case.z, case.q, *case.parameters, context=5, queries=2, layers=True)
    assert torch.equal(made, public()(case)[1])
