"""What the mathematics says about the functions, beyond the equations themselves."""

import itertools
from typing import Any

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
from tests.memformer_kernels.cases import GRANULARITIES, NAMED_STRUCTURES, RULES, leaves, make_case, normal, seeded
from tests.memformer_kernels.paths import PATHS, Path, on_every_backend, on_every_path

TASKS, TOKENS, D, LAYERS = 4, 9, 3, 3


def _case(**options: Any) -> Case:
    return make_case(**{"tasks": TASKS, "tokens": TOKENS, "width": D + 1, "layers": LAYERS, **options})


def _with_blank_queries(z: Tensor, context: int) -> Tensor:
    """Queries whose response slot is 0, as tasks come."""
    blank = z.clone()
    blank[:, context:, -1] = 0
    return blank


def _quadratic(z: Tensor, context: int) -> tuple[Tensor, Tensor]:
    """H = X^T X / n and b = X^T y / n of the context."""
    gram = context_gram(z, context) / context
    return gram[:, :-1, :-1], gram[:, :-1, -1]


def _close(made: Any, expected: Any) -> None:
    torch.testing.assert_close(made, expected, rtol=1e-11, atol=1e-13)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("granularity", GRANULARITIES)
@pytest.mark.parametrize("structure", NAMED_STRUCTURES)
def test_a_prediction_is_minus_the_response_slot(rule: str, granularity: str, structure: str) -> None:
    """Of the query rows of the stack, for queries with any response, and so are its gradients."""
    case = _case(rule=rule, granularity=granularity, structure=structure, context=6)
    assert case.z[:, 6:, -1].abs().min() > 0
    inputs = [value.requires_grad_() for value in leaves(case).values()]
    weights = normal(seeded(1), TASKS, 3)
    for path in PATHS:
        if path.serves(case):
            predictions = memformer_predict(case.z, case.q, *case.parameters, context=6, **path.options)
            tokens = memformer_stack(case.z, case.q, *case.parameters, context=6, **path.options)
            _close(predictions, -tokens[:, 6:, -1])
            made = torch.autograd.grad((weights * predictions).sum(), inputs)
            expected = torch.autograd.grad((weights * -tokens[:, 6:, -1]).sum(), inputs)
            _close(made, expected)


@on_every_path
def test_the_last_layer_is_the_prediction(path: Path) -> None:
    for rule in RULES:
        case = _case(rule=rule, context=6)
        after_layers = memformer_predict(case.z, case.q, *case.parameters, context=6, layers=True, **path.options)
        last = memformer_predict(case.z, case.q, *case.parameters, context=6, **path.options)
        assert after_layers.shape == (LAYERS, TASKS, 3)
        _close(after_layers[-1], last)
        first = memformer_predict(case.z, case.q[:1], None if case.p is None else case.p[:1], context=6, **path.options)
        if rule == "linear":
            _close(after_layers[0], first)


@on_every_path
def test_the_loss_is_the_mean_squared_error(path: Path) -> None:
    case = _case(rule="gated_heads", context=6)
    target = normal(seeded(2), TASKS, 3)
    inputs = [target.requires_grad_(), *(value.requires_grad_() for value in leaves(case).values())]
    predictions = memformer_predict(case.z, case.q, *case.parameters, context=6, **path.options)
    loss = memformer_loss(case.z, target, case.q, *case.parameters, context=6, **path.options)
    expected = torch.nn.functional.mse_loss(predictions, target)
    _close(loss, expected)
    _close(torch.autograd.grad(3 * loss, inputs), torch.autograd.grad(3 * expected, inputs))


def test_gram_matrices_add() -> None:
    z = normal(seeded(3), TASKS, 20, 5)
    whole = context_gram(z, 17)
    for cuts in ([0, 17], [0, 1, 17], [0, 5, 6, 13, 17]):
        parts = [context_gram(z[:, a:b], b - a) for a, b in itertools.pairwise(cuts)]
        _close(torch.stack(parts).sum(0), whole)
    _close(whole, z[:, :17].mT @ z[:, :17])
    _close(whole, whole.mT.contiguous())


@pytest.mark.parametrize("rule", RULES)
@on_every_path
def test_response_only_leaves_features_alone(rule: str, path: Path) -> None:
    case = _case(rule=rule, structure="response-only", context=6)
    tokens = memformer_stack(case.z, case.q, *case.parameters, context=6, **path.options)
    assert torch.equal(tokens[..., :-1], case.z[..., :-1])
    assert not torch.equal(tokens[..., -1], case.z[..., -1])


@on_every_path
def test_response_only_is_block_structure_with_no_block(path: Path) -> None:
    for granularity in ("scalar", "feature", "token", "full"):
        case = _case(structure="response-only", granularity=granularity, rule="recursive", context=6)
        if path.serves(case):
            without = memformer_stack(case.z, case.q, *case.parameters, context=6, **path.options)
            parameters = (torch.zeros_like(case.q), *case.parameters[1:])
            _close(without, memformer_stack(case.z, case.q, *parameters, context=6, **path.options))


@on_every_path
def test_block_structure_is_dense_with_borders(path: Path) -> None:
    case = _case(rule="gated_heads", structure="block", context=6)
    assert case.p is not None
    q, p = (torch.nn.functional.pad(x, (0, 1, 0, 1)) for x in (case.q, case.p))
    p[..., -1, -1] = 1
    made = memformer_stack(case.z, case.q, *case.parameters, context=6, **path.options)
    for q_form, p_form in ((q, p), (q, case.p), (case.q, p)):
        dense = memformer_stack(case.z, q_form, p_form, *case.parameters[1:], context=6, **path.options)
        _close(dense, made)


def _solver_coefficients(gamma_kind: str, beta_kind: str) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """gamma of the stack, beta of the stack, gamma of the solver: only the response column is read."""
    generator = seeded(4)
    gamma = {
        "none": None,
        "full": normal(generator, LAYERS, LAYERS, 1, 1, D + 1),
        "scalar": normal(generator, LAYERS, LAYERS, 1, 1, 1),
        "shared": normal(generator, 1, LAYERS, 1, 1, D + 1),
    }[gamma_kind]
    beta = {"none": None, "scalar": normal(generator, LAYERS, 1, 1, 1), "shared": normal(generator, 1)}[beta_kind]
    return gamma, beta, None if gamma is None else gamma[:, :, 0, 0, -1:]


@pytest.mark.parametrize("gamma_kind", ["none", "full", "scalar", "shared"])
@pytest.mark.parametrize("beta_kind", ["none", "scalar", "shared"])
@on_every_path
def test_response_only_is_a_first_order_method(path: Path, gamma_kind: str, beta_kind: str) -> None:
    """yhat = x . w_L with w_l the iterates on w^T H w / 2 - b^T w, layer by layer."""
    case = _case(structure="response-only", heads=1)
    z = _with_blank_queries(case.z, 6)
    gamma, beta, gamma_solver = _solver_coefficients(gamma_kind, beta_kind)
    made = memformer_predict(z, case.q, None, gamma, beta, context=6, layers=True, **path.options)
    h, b = _quadratic(z, 6)
    beta_solver = None if beta is None else beta.reshape(-1, 1)
    iterates = lfom_solve(h, b, case.q[:, 0], gamma_solver, beta_solver, layers=True, backend=path.backend)
    _close(made, torch.einsum("bqd,lbd->lbq", z[:, 6:, :-1], iterates))
    last = lfom_solve(h, b, case.q[:, 0], gamma_solver, beta_solver, backend=path.backend)
    _close(last, iterates[-1])


@on_every_backend
def test_first_order_method_starts_where_it_is_told(backend: str) -> None:
    """From w_1 the rest of the way is the way from 0, when nothing is remembered."""
    case = _case(structure="response-only", heads=1)
    h, b = _quadratic(case.z, 6)
    a = case.q[:, 0]
    iterates = lfom_solve(h, b, a, layers=True, backend=backend)
    _close(lfom_solve(h, b, a[1:], w0=iterates[0], layers=True, backend=backend), iterates[1:])
    _close(lfom_solve(h, b, a, w0=torch.zeros_like(b), backend=backend), iterates[-1])


@on_every_path
def test_heads_collapse(path: Path) -> None:
    """With Bm = 0, gamma and beta shared by heads and the gate by layers: sum_h gate_h A_h is one head."""
    for granularity in ("feature", "full"):
        case = _case(structure="response-only", granularity=granularity, heads=3, context=6)
        if path.serves(case):
            gate = normal(seeded(5), 3)
            beta = normal(seeded(6), LAYERS, 1, 1, D + 1, scale=0.3)
            many = memformer_stack(case.z, case.q, None, case.gamma, beta, gate, context=6, **path.options)
            one = (gate[:, None, None] * case.q).sum(1, keepdim=True)
            _close(many, memformer_stack(case.z, one, None, case.gamma, beta, context=6, **path.options))


@on_every_path
def test_the_linear_transformer_is_preconditioned_gradient_descent(path: Path) -> None:
    """Ahn et al., arXiv 2306.00297: w_{l+1} = w_l - A_l (b - H w_l), A = -preconditioner."""
    case = _case(rule="linear", structure="response-only", heads=1)
    z = _with_blank_queries(case.z, 6)
    h, b = _quadratic(z, 6)
    w = torch.zeros(TASKS, D, dtype=torch.float64)
    made = memformer_predict(z, case.q, context=6, layers=True, **path.options)
    for layer, a in enumerate(case.q[:, 0]):
        w = w - (b - (h @ w[..., None])[..., 0]) @ a.T
        _close(made[layer], (z[:, 6:, :-1] @ w[..., None])[..., 0])


@on_every_path
def test_one_layer_is_one_step_of_gradient_descent(path: Path) -> None:
    """von Oswald et al., arXiv 2212.07677: A = -eta I steps along the mean squared error's negative gradient."""
    z = _with_blank_queries(normal(seeded(7), TASKS, 9, D + 1), 6)
    q = -0.7 * torch.eye(D, dtype=torch.float64)[None, None]
    w = torch.zeros(TASKS, D, dtype=torch.float64, requires_grad=True)
    residual = (z[:, :6, :-1] @ w[..., None])[..., 0] - z[:, :6, -1]
    (gradient,) = torch.autograd.grad((residual.square() / 2).mean(1).sum(), w)
    step = -0.7 * gradient
    _close(memformer_predict(z, q, context=6, **path.options), (z[:, 6:, :-1] @ step[..., None])[..., 0])


@on_every_path
def test_block_structure_transforms_features(path: Path) -> None:
    """GD++ (arXiv 2212.07677): X_{l+1} = X_l + X_l A (X^T X / n) Bm^T over the context."""
    case = _case(rule="linear", heads=1, context=6)
    assert case.p is not None
    tokens = memformer_stack(case.z, case.q, case.p, context=6, **path.options)
    x = case.z[..., :-1]
    for a, bm in zip(case.q[:, 0], case.p[:, 0], strict=True):
        x = x + x @ a @ (x[:, :6].mT @ x[:, :6] / 6) @ bm.T
    _close(tokens[..., :-1], x)


@on_every_path
def test_momentum_by_its_own_recursion(path: Path) -> None:
    """Eqs. 17-18 of arXiv 2410.07263: R = att + beta R, Z += alpha R is gradient descent with momentum."""
    case = _case(rule="cgd", granularity="scalar", structure="response-only", heads=1)
    assert case.gamma is not None
    assert case.beta is not None
    z = _with_blank_queries(case.z, 6)
    h, b = _quadratic(z, 6)
    w = r = torch.zeros(TASKS, D, dtype=torch.float64)
    for a, alpha, beta in zip(case.q[:, 0], case.gamma.flatten(), case.beta.flatten(), strict=True):
        r = -((b - (h @ w[..., None])[..., 0]) @ a.T) + beta * r
        w = w + alpha * r
    made = memformer_predict(z, case.q, None, case.gamma, case.beta, context=6, **path.options)
    _close(made, (z[:, 6:, :-1] @ w[..., None])[..., 0])


@on_every_path
def test_shapes_of_gamma_that_mean_the_same(path: Path) -> None:
    case = _case(context=6)
    shared = normal(seeded(8), 1, LAYERS, 1, 1, D + 1)
    diagonal = normal(seeded(9), LAYERS, 1, 1, D + 1)
    eye = torch.eye(LAYERS, dtype=torch.float64)[:, :, None, None, None]
    pairs = [
        (shared, shared.expand(LAYERS, LAYERS, 1, 1, D + 1)),
        (diagonal, eye * diagonal[:, None]),
        (None, torch.ones(1, 1, 1, 1, dtype=torch.float64)),
        (None, eye),
        (shared, shared.expand(1, LAYERS, 2, 1, D + 1)),
    ]
    for one, other in pairs:
        made, expected = (
            memformer_stack(case.z, case.q, case.p, gamma, context=6, **path.options) for gamma in (one, other)
        )
        _close(made, expected)


@on_every_path
def test_gates_multiply_a_heads_registers(path: Path) -> None:
    """A gate is a factor of gamma; ones change nothing, and zeros turn the network off."""
    for rule in ("linear", "recursive", "lfom", "gated_heads"):
        case = _case(rule=rule, context=6)
        network = (case.z, case.q, case.p, case.gamma, case.beta)
        gate = 1 + normal(seeded(10), LAYERS, 2, scale=0.3)
        ones = torch.ones(2, dtype=torch.float64)
        plain = memformer_stack(*network, context=6, **path.options)
        _close(memformer_stack(*network, ones, context=6, **path.options), plain)
        off = memformer_stack(*network, torch.zeros(LAYERS, 2).double(), context=6, **path.options)
        assert torch.equal(off, case.z)
        gated = memformer_stack(*network, gate, context=6, **path.options)
        gamma = torch.eye(LAYERS, dtype=torch.float64)[:, :, None, None, None]
        if case.gamma is not None:
            gamma = gamma * case.gamma[:, None] if case.gamma.ndim == 4 else case.gamma
        folded = gamma * gate[:, None, :, None, None]
        _close(gated, memformer_stack(case.z, case.q, case.p, folded, case.beta, context=6, **path.options))


@on_every_path
def test_tasks_and_queries_are_independent(path: Path) -> None:
    case = _case(context=6)
    whole = memformer_stack(case.z, case.q, *case.parameters, context=6, **path.options)
    order = torch.tensor([2, 0, 3, 1])
    tokens = torch.tensor([5, 3, 0, 1, 4, 2, 8, 6, 7])
    shuffled = memformer_stack(case.z[order][:, tokens], case.q, *case.parameters, context=6, **path.options)
    _close(shuffled, whole[order][:, tokens])
    without = memformer_stack(case.z[:, :7], case.q, *case.parameters, context=6, **path.options)
    _close(without, whole[:, :7])


@pytest.mark.parametrize("per_head", [False, True])
@pytest.mark.parametrize("structure", NAMED_STRUCTURES)
@pytest.mark.parametrize("granularity", ["scalar", "feature", "full"])
@on_every_backend
def test_a_chain_of_layers_is_the_stack(backend: str, per_head: bool, structure: str, granularity: str) -> None:
    """Gates fold into gamma; registers are kept for every head where gamma or beta tells heads apart, else summed."""
    case = _case(rule="gated_heads" if per_head else "lfom", granularity=granularity, structure=structure, context=6)
    assert case.gamma is not None
    kept = 2 if per_head else 1
    grid = case.gamma.shape[-2:]
    beta = normal(seeded(11), LAYERS, kept, *grid, scale=0.3)
    gate = 1 + normal(seeded(12), LAYERS, 2, scale=0.3) if per_head else None
    inputs = {**leaves(case), "beta": beta}
    if gate is not None:
        inputs["gate"] = gate
    for value in inputs.values():
        value.requires_grad_()
    folded = case.gamma if gate is None else case.gamma * gate[:, None, :, None, None]
    z, registers = case.z, []
    for layer in range(LAYERS):
        z, register = memformer_layer(
            z,
            case.q[layer],
            None if case.p is None else case.p[layer],
            registers,
            folded[layer, : layer + 1],
            beta[layer],
            context=6,
            backend=backend,
        )
        assert register.shape == (TASKS, kept, TOKENS, D + 1)
        registers.append(register)
    stack = memformer_stack(case.z, case.q, case.p, case.gamma, beta, gate, context=6, backend=backend)
    _close(z, stack)
    values = list(inputs.values())
    _close(torch.autograd.grad(z.square().sum(), values), torch.autograd.grad(stack.square().sum(), values))


@on_every_backend
def test_a_layer_without_gamma_adds_the_new_register_alone(backend: str) -> None:
    case = _case(context=6)
    past = [normal(seeded(13), TASKS, 1, TOKENS, D + 1) for _ in range(2)]
    weigh = torch.tensor([0.0, 0.0, 1.0], dtype=torch.float64)[:, None, None, None]
    made = memformer_layer(case.z, case.q[0], None, past, context=6, backend=backend)
    expected = memformer_layer(case.z, case.q[0], None, past, weigh, context=6, backend=backend)
    _close(made, expected)
    _close(made[0], case.z + made[1].sum(1))
    beta = torch.tensor(0.5, dtype=torch.float64)
    momentum = memformer_layer(case.z, case.q[0], None, past, beta=beta, context=6, backend=backend)
    _close(momentum[1], made[1] + 0.5 * past[-1])
    first = memformer_layer(case.z, case.q[0], beta=beta, context=6, backend=backend)
    _close(first, memformer_layer(case.z, case.q[0], context=6, backend=backend))
