"""Steps of `lfom_solve` that end in a prox: against the reference, plain loops, and solvers of other libraries."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from scipy.optimize import nnls
from sklearn.linear_model import Lasso
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck

from memformer_kernels import availability, explain, lfom_solve, reference
from memformer_kernels.backends import PROXIMAL_BACKENDS
from memformer_kernels.backends.pytorch.proximal import ProximalSteps
from memformer_kernels.calls.arguments import Proximal
from memformer_kernels.testing import relative_error
from tests.marks import slow_but
from tests.memformer_kernels.cases import normal, seeded
from tests.memformer_kernels.paths import BACKENDS

B, L, D = 3, 4, 5
on_backends = pytest.mark.parametrize("backend", [name for name in BACKENDS if name in PROXIMAL_BACKENDS])


def _positive(*shape: int) -> Tensor:
    return 0.05 + 0.1 * normal(seeded(17), *shape).abs()


def _parameters(name: str) -> dict[str, Any]:
    """A prox of each kind, one number or tensor a parameter, of every shape that a parameter may have."""
    return {
        "a number": {"level": 0.1},
        "a level": {"level": _positive()},
        "a level a layer": {"level": _positive(L, 1)},
        "a level a coordinate": {"level": _positive(D)},
        "a level a layer and coordinate": {"level": _positive(L, D)},
        "non-negative": {"lower": 0.0},
        "a level, non-negative": {"level": _positive(1, D), "lower": 0},
        "at most": {"upper": _positive(L, D)},
        "box": {"lower": -_positive(D), "upper": _positive(L, 1)},
        "a level and a box": {"level": _positive(L, D), "lower": -_positive(1, 1), "upper": _positive(L, D)},
        "ball": {"radius": 0.5},
        "a ball a layer": {"radius": 3 * _positive(L, 1)},
    }[name]


NAMES = (
    *("a number", "a level", "a level a layer", "a level a coordinate", "a level a layer and coordinate"),
    *("non-negative", "a level, non-negative", "at most", "box", "a level and a box", "ball", "a ball a layer"),
)


def _leaf(generator: torch.Generator, *shape: int, scale: float = 1.0) -> Tensor:
    return normal(generator, *shape, scale=scale).requires_grad_()


def _method(memory: bool, start: bool) -> dict[str, Tensor]:
    generator = seeded(3)
    made = {"h": _leaf(generator, B, D, D, scale=0.4), "b": _leaf(generator, B, D)}
    made["a"] = _leaf(generator, L, D, D, scale=0.4)
    if memory:
        made |= {"gamma": _leaf(generator, L, L, D, scale=0.5), "beta": _leaf(generator, L, 1, scale=0.5)}
    return made | ({"w0": _leaf(generator, B, D)} if start else {})


def _learned(parameters: dict[str, Any]) -> dict[str, Any]:
    return {name: value.requires_grad_() if isinstance(value, Tensor) else value for name, value in parameters.items()}


@on_backends
@pytest.mark.parametrize("layers", [False, True])
@pytest.mark.parametrize(("memory", "start"), [(False, False), (True, True)])
@pytest.mark.parametrize("name", NAMES)
def test_it_is_the_reference(name: str, memory: bool, start: bool, layers: bool, backend: str) -> None:
    """Iterates, and gradients of all that may require one; the prox of each case does change the iterates."""
    given = _method(memory, start) | _learned(_parameters(name))
    made, expected = lfom_solve(**given, layers=layers, backend=backend), reference.lfom_solve(**given)
    expected = expected if layers else expected[-1]
    assert relative_error(made.detach(), expected.detach()) < 1e-14
    leaves = [x for x in given.values() if isinstance(x, Tensor)]
    direction = normal(seeded(4), *made.shape)
    of_made, of_expected = (torch.autograd.grad((x * direction).sum(), leaves) for x in (made, expected))
    for one, other in zip(of_made, of_expected, strict=True):
        assert relative_error(one, other) < 1e-13
    plain = {x: value for x, value in given.items() if x not in Proximal._fields}
    assert relative_error(made.detach(), lfom_solve(**plain, layers=layers).detach()) > 0.01


@on_backends
@pytest.mark.parametrize("name", slow_but(("a level a layer", "box", "ball"), NAMES))
def test_derivatives(name: str, backend: str) -> None:
    """Of first and second order, forward and backward, where no weight is at a kink.

    A bound of 0 is moved, since a level makes weights exactly 0.
    """
    given = {key: torch.as_tensor(x, dtype=torch.float64) for key, x in _parameters(name).items()}
    parameters = _learned({key: torch.where(x == 0, 0.02, x) for key, x in given.items()})
    method = _method(memory=True, start=True)
    names, values = tuple(method | parameters), tuple((method | parameters).values())

    def run(*tensors: Tensor) -> Tensor:
        return lfom_solve(**dict(zip(names, tensors, strict=True)), backend=backend)

    assert gradcheck(run, values, check_forward_ad=True, fast_mode=True)
    assert gradgradcheck(run, values, fast_mode=True)


def _one_prox(points: Tensor, **parameters: Any) -> Tensor:
    """The prox of `points` (B, d) alone: a step from 0 with h = 0 and a = -1."""
    d = points.shape[-1]
    eye = torch.eye(d, dtype=points.dtype)
    return lfom_solve(points.new_zeros(len(points), d, d), points, -eye[None], **parameters)


KINKS: dict[str, tuple[dict[str, Any], Callable[[Tensor], Tensor]]] = {
    "level": ({"level": 0.5}, lambda w: torch.nn.functional.softshrink(w, 0.5)),
    "no level": ({"level": 0.0}, lambda w: torch.nn.functional.softshrink(w, 0.0)),
    "lower": ({"lower": 0.5}, lambda w: w.clamp(min=0.5)),
    "upper": ({"upper": -0.5}, lambda w: w.clamp(max=-0.5)),
    "box": ({"lower": -0.5, "upper": 0.5}, lambda w: w.clamp(-0.5, 0.5)),
    "both": ({"level": 0.5, "lower": 0.0}, lambda w: torch.nn.functional.softshrink(w, 0.5).clamp(min=0)),
}


@on_backends
@pytest.mark.parametrize("name", KINKS)
def test_at_kinks_it_is_what_torch_takes(name: str, backend: str) -> None:
    parameters, expected = KINKS[name]
    points = torch.tensor([[-1.0, -0.5, -0.25, 0.0, 0.25, 0.5, 1.0]], dtype=torch.float64, requires_grad=True)
    made = _one_prox(points, **parameters, backend=backend)
    torch.testing.assert_close(made, expected(points), rtol=0, atol=0)
    ours, theirs = (torch.autograd.grad(x.sum(), points)[0] for x in (made, expected(points)))
    torch.testing.assert_close(ours, theirs, rtol=0, atol=0)


@on_backends
def test_a_ball_is_a_projection_and_smooth_at_its_centre(backend: str) -> None:
    points = torch.tensor([[0.0, 0.0], [0.3, -0.4], [3.0, 4.0]], dtype=torch.float64, requires_grad=True)
    made = _one_prox(points, radius=0.5, backend=backend)
    torch.testing.assert_close(made, torch.tensor([[0.0, 0.0], [0.3, -0.4], [0.3, 0.4]], dtype=torch.float64))
    (grad,) = torch.autograd.grad((made * torch.tensor([3.0, 4.0])).sum(), points)
    # Outside, what is left of a direction is what is along the sphere: none of the radius itself.
    torch.testing.assert_close(grad, torch.tensor([[3.0, 4.0], [3.0, 4.0], [0.0, 0.0]], dtype=torch.float64))
    torch.testing.assert_close(_one_prox(points, radius=0.0, backend=backend), torch.zeros_like(points))


@on_backends
def test_learned_parameters_outside_their_range_are_at_its_end(backend: str) -> None:
    """A level or radius below 0 is 0 and gets no gradient; `upper` has the last word where bounds cross."""
    points = normal(seeded(5), 4, 3).requires_grad_()
    below = torch.tensor(-0.25, dtype=torch.float64, requires_grad=True)
    assert torch.equal(_one_prox(points, level=below, backend=backend), points)
    assert torch.equal(_one_prox(points, radius=below, backend=backend), torch.zeros_like(points))
    for name in ("level", "radius"):
        assert torch.autograd.grad(_one_prox(points, **{name: below}, backend=backend).sum(), below)[0] == 0
    zero = torch.zeros((), dtype=torch.float64, requires_grad=True)
    assert torch.autograd.grad(_one_prox(points, level=zero, backend=backend).sum(), zero)[0] != 0
    lower, upper = (torch.tensor(x, dtype=torch.float64, requires_grad=True) for x in (1.0, 0.5))
    crossed = _one_prox(points, lower=lower, upper=upper, backend=backend)
    assert torch.equal(crossed, torch.full_like(points, 0.5))
    of_lower, of_upper, of_points = torch.autograd.grad(crossed.sum(), [lower, upper, points])
    assert (of_lower, of_upper, of_points.abs().sum()) == (0, points.numel(), 0)


def test_a_number_is_its_tensor() -> None:
    given = {name: x.detach().float() for name, x in _method(memory=True, start=False).items()}
    made = lfom_solve(**given, level=0.1, lower=-0.3, upper=1)
    tensors = {name: torch.tensor(x) for name, x in {"level": 0.1, "lower": -0.3, "upper": 1.0}.items()}
    assert made.dtype == torch.float32
    assert torch.equal(made, lfom_solve(**given, **tensors))


@on_backends
def test_levels_of_zero_change_nothing(backend: str) -> None:
    given = {**_method(memory=True, start=True), "layers": True, "backend": backend}
    wide = {"level": 0.0, "lower": -torch.inf, "upper": torch.inf}
    plain = lfom_solve(**given)
    ball = lfom_solve(**given, radius=torch.inf)
    # A compiler may round what stands around a prox in another order.
    error = 0 if backend == "torch" else 1e-15
    for made in (ball, lfom_solve(**given, **wide)):
        torch.testing.assert_close(made, plain, rtol=error, atol=error)
        (grad,) = torch.autograd.grad(made.square().sum(), given["b"], create_graph=True)
        assert torch.autograd.grad(grad.square().sum(), given["h"])[0].isfinite().all()


@on_backends
def test_a_task_that_is_no_number_is_alone(backend: str) -> None:
    given = {name: x.detach() for name, x in _method(memory=False, start=False).items()}
    spoilt = given["b"].clone()
    spoilt[1, 0] = torch.nan
    for parameters in ({"level": 0.1, "lower": -1.0, "upper": 1.0}, {"radius": 0.5}):
        clean = lfom_solve(**given, **parameters, backend=backend)
        made = lfom_solve(**{**given, "b": spoilt}, **parameters, backend=backend)
        assert torch.equal(made[[0, 2]], clean[[0, 2]])
        assert made[1].isnan().all()


@on_backends
def test_a_parameter_that_is_no_number_is_seen(backend: str) -> None:
    points, nan = torch.linspace(-1, 1, 5)[None], torch.tensor(torch.nan)
    for name in ("level", "lower", "upper", "radius"):
        assert _one_prox(points, **{name: nan}, backend=backend).isnan().all()


def test_explain_says_who_serves_it() -> None:
    h, b, a = (x.detach() for x in _method(memory=False, start=False).values())
    for parameters in ({"level": 0.1}, {"lower": 0.0}, {"upper": a[:1, 0]}, {"radius": 1.0}):
        plan = explain(h, b, a, **parameters)
        assert (plan.backend, plan.algorithm) == (explain(h, b, a).backend, "gram")
        assert "prox" in plan.reason
    assert "asked for" in explain(h, b, a, level=0.1, backend="torch").reason
    assert "prox" not in explain(h, b, a).reason
    assert explain(h=h, b=b[..., None], a=a, level=0.1).backend == "torch"


@pytest.mark.skipif(not availability.available("cpu"), reason="the native library is not built")
def test_widths_take_the_kernels_of_plain_steps() -> None:
    for weights in (1, 16, 17, 256, 257):
        h, b, a = torch.empty(2, weights, weights), torch.empty(2, weights), torch.empty(3, weights, weights)
        plain, found = explain(h, b, a), explain(h, b, a, level=0.1)
        assert (found.backend, found.regime) == (plain.backend, plain.regime)
        assert (plain.backend == "cpu") == (weights <= 256)


def test_without_gradients_no_point_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """A forward alone asks for the state after each prox, once a layer."""
    calls: list[int] = []
    after = ProximalSteps.after

    def counted(self: ProximalSteps, layer: int, state: Tensor) -> Tensor:
        calls.append(layer)
        return after(self, layer, state)

    monkeypatch.setattr(ProximalSteps, "after", counted)
    lfom_solve(*(x.detach() for x in _method(memory=False, start=False).values()), level=0.1, backend="torch")
    assert calls == list(range(L))


# Classical methods, written as loops.


def _lasso(seed: int, m: int, d: int, active: int) -> tuple[Tensor, Tensor]:
    """A dictionary with columns of norm 1, (m, d), and responses (m,) of a vector with few entries."""
    generator = seeded(seed)
    dictionary = normal(generator, m, d)
    dictionary = dictionary / dictionary.norm(dim=0)
    truth = torch.zeros(d, dtype=torch.float64)
    truth[torch.randperm(d, generator=generator)[:active]] = normal(generator, active)
    return dictionary, dictionary @ truth + 0.01 * normal(generator, m)


def _soft(w: Tensor, level: float) -> Tensor:
    return torch.sign(w) * torch.clamp(w.abs() - level, min=0)


def _quadratic(dictionary: Tensor, y: Tensor) -> tuple[Tensor, Tensor, float]:
    """h (1, d, d), b (1, d) and the step 1 / L of the half squared error."""
    h = dictionary.T @ dictionary
    return h[None], (dictionary.T @ y)[None], 1 / float(torch.linalg.eigvalsh(h)[-1])


def _momenta(steps: int) -> list[float]:
    """(t_l - 1) / t_{l+1} of Beck & Teboulle (2009), of which the first is 0."""
    t, made = 1.0, []
    for _ in range(steps):
        following = (1 + (1 + 4 * t * t) ** 0.5) / 2
        made.append((t - 1) / following)
        t = following
    return made


def test_ista_is_a_level_of_lambda_times_the_step() -> None:
    dictionary, y = _lasso(1, 6, 10, 2)
    h, b, step = _quadratic(dictionary, y)
    eye = torch.eye(10, dtype=torch.float64)
    made = lfom_solve(h, b, -step * eye.expand(20, 10, 10), level=0.05 * step, layers=True)
    sizes = torch.full((20,), step, dtype=torch.float64).diag()[:, :, None]  # a step size a layer, with a = -1
    by_sizes = lfom_solve(h, b, -eye.expand(20, 10, 10), sizes, level=0.05 * step, layers=True)
    assert relative_error(by_sizes, made) < 1e-14
    w = torch.zeros(10, dtype=torch.float64)
    for layer in range(20):
        w = _soft(w + step * dictionary.T @ (y - dictionary @ w), 0.05 * step)
        assert relative_error(made[layer, 0], w) < 1e-12


def test_lista_of_any_analysis_matrix_is_a_preconditioner() -> None:
    """x + W^T (y - D x) is x - a (b - h x) for a = -W^T (D D^T)^{-1} D, for D of full row rank (Chen et al., 2018)."""
    dictionary, y = _lasso(2, 4, 7, 2)
    h, b, _ = _quadratic(dictionary, y)
    analysis, levels = normal(seeded(6), 3, 4, 7, scale=0.3), _positive(3, 7)
    a = -analysis.mT @ torch.linalg.solve(dictionary @ dictionary.T, dictionary)
    made = lfom_solve(h, b, a, level=levels, layers=True)
    x = torch.zeros(7, dtype=torch.float64)
    for layer in range(3):
        point = x + analysis[layer].T @ (y - dictionary @ x)
        x = point.sign() * (point.abs() - levels[layer]).relu()
        assert relative_error(made[layer, 0], x) < 1e-11


def test_accelerated_gradients_are_a_choice_of_gamma_where_there_is_no_prox() -> None:
    """y = x_l + m_l (x_l - x_{l-1}), x_{l+1} = y + t g(y): g is affine, so the step is a sum of earlier gradients."""
    dictionary, y = _lasso(3, 8, 6, 6)
    h, b, step = _quadratic(dictionary, y)
    steps, momenta = 12, _momenta(12)
    gamma = torch.zeros(steps, steps, dtype=torch.float64)
    for layer, m in enumerate(momenta):
        if layer:
            gamma[layer] = m * gamma[layer - 1]
            gamma[layer, layer - 1] -= m
        gamma[layer, layer] += 1 + m if layer else 1
    a = -step * torch.eye(6, dtype=torch.float64).expand(steps, 6, 6)
    made = lfom_solve(h, b, a, gamma[:, :, None], layers=True)[:, 0]
    for layer, expected in enumerate(_fista(dictionary, y, 0.0, steps)):
        assert relative_error(made[layer], expected) < 1e-12
    # With a prox the difference of iterates is no sum of gradients any more.
    with_prox = lfom_solve(h, b, a, gamma[:, :, None], level=0.05 * step, layers=True)[:, 0]
    assert relative_error(with_prox[-1], _fista(dictionary, y, 0.05, steps)[-1]) > 1e-3


def test_fista_is_one_layer_at_a_time() -> None:
    """From the extrapolated point, which `w0` is."""
    dictionary, y = _lasso(4, 6, 10, 2)
    h, b, step = _quadratic(dictionary, y)
    a = -step * torch.eye(10, dtype=torch.float64)[None]
    x, before = torch.zeros_like(b), torch.zeros_like(b)
    for m, expected in zip(_momenta(15), _fista(dictionary, y, 0.05, 15), strict=True):
        x, before = lfom_solve(h, b, a, w0=x + m * (x - before), level=0.05 * step), x
        assert relative_error(x[0], expected) < 1e-12


def _fista(dictionary: Tensor, y: Tensor, weight: float, steps: int) -> list[Tensor]:
    step = _quadratic(dictionary, y)[2]
    x = before = torch.zeros(dictionary.shape[1], dtype=torch.float64)
    made = []
    for m in _momenta(steps):
        point = x + m * (x - before)
        before, x = x, _soft(point + step * dictionary.T @ (y - dictionary @ point), weight * step)
        made.append(x)
    return made


def test_projected_gradients_reach_non_negative_least_squares() -> None:
    generator = seeded(7)
    design, y = normal(generator, 12, 6), normal(generator, 12)
    h, b, step = _quadratic(design, y)
    expected = nnls(design.numpy(), y.numpy())[0]
    assert 0 < np.count_nonzero(expected) < 6
    made = lfom_solve(h, b, -step * torch.eye(6, dtype=torch.float64).expand(600, 6, 6), lower=0.0)
    np.testing.assert_allclose(made[0].numpy(), expected, rtol=0, atol=1e-10)


def test_many_layers_reach_the_lasso() -> None:
    dictionary, y = _lasso(8, 12, 20, 3)
    h, b, step = _quadratic(dictionary, y)
    solver = Lasso(alpha=0.02 / 12, fit_intercept=False, tol=1e-14, max_iter=100_000)
    expected = solver.fit(dictionary.numpy(), y.numpy()).coef_
    assert 0 < np.count_nonzero(expected) < 20
    made = lfom_solve(h, b, -step * torch.eye(20, dtype=torch.float64).expand(2000, 20, 20), level=0.02 * step)
    np.testing.assert_allclose(made[0].numpy(), expected, rtol=0, atol=1e-6)


def test_in_a_box_the_gradient_of_what_is_free_is_zero() -> None:
    """And in a ball it is along the solution, which is on the sphere: the conditions of Karush, Kuhn and Tucker."""
    generator = seeded(9)
    design, y = normal(generator, 12, 6), 3 * normal(generator, 12)
    h, b, step = _quadratic(design, y)
    a = -step * torch.eye(6, dtype=torch.float64).expand(800, 6, 6)
    w = lfom_solve(h, b, a, lower=-0.2, upper=0.3)[0]
    g = b[0] - h[0] @ w
    free = (w > -0.2) & (w < 0.3)
    assert 0 < free.sum() < 6
    assert g[free].abs().max() < 1e-9
    assert (g[w == 0.3] > 0).all()
    assert (g[w == -0.2] < 0).all()
    w = lfom_solve(h, b, a, radius=0.2)[0]
    g = b[0] - h[0] @ w
    assert float(w.norm()) == pytest.approx(0.2)
    assert float(g @ w) == pytest.approx(float(g.norm() * w.norm()), rel=1e-9)
