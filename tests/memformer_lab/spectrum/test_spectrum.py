"""What a network learned: known ones are told by name, and the function of NumPy is the network."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import matplotlib.image
import numpy as np
import pytest
import torch
from typer.testing import CliRunner, Result

from memformer_kernels.nn import RULES, Memformer
from memformer_lab import GaussianTasks, StandardisedTasks, spectrum
from memformer_lab.cli import app
from memformer_lab.experiments.common import network
from memformer_lab.solvers.first_order import first_order_method
from memformer_lab.solvers.optimum import exact_optimum
from memformer_lab.spectrum.explanation import BEST, CGD, CHEBYSHEV, DESCENT, HEAVY_BALL, NETWORK, ONE
from memformer_lab.tasks.families import FamilyTasks

TASKS = GaussianTasks.nonisotropic()


def _model(rule: str = "lfom", layers: int = 3, **arguments: Any) -> Memformer:
    """Preconditioned by Sigma^-1 and more, with memory that is in use."""
    model = network(0, 5, layers, rule=rule, **arguments)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        if model.q.requires_grad:
            model.q.copy_(-0.5 * torch.linalg.inv(TASKS.covariance).expand_as(model.q))
        for value in model.trainable_entries():
            parameter = model.get_parameter(value)
            if value != "q":
                parameter += 0.2 * torch.randn(parameter.shape, generator=generator)
        if model.rule in ("lfom_residual", "gated_heads"):
            assert model.gamma is not None
            model.gamma.copy_(model.stack_arguments()["gamma"])
    return model


def _predict(source: str) -> Any:
    scope: dict[str, Any] = {}
    exec(source, scope)
    return scope["predict"]


def _explained(model: Memformer, count: int = 300) -> spectrum.Explanation:
    return spectrum.explain(model, TASKS, count=count)


@pytest.mark.parametrize("rule", [rule for rule in RULES if rule != "recursive"])
@pytest.mark.parametrize("spread", [0.0, 0.3])
def test_the_function_of_numpy_is_the_network(rule: str, spread: float) -> None:
    """Predictions of the module in float64, to 1e-10; layers of different matrices too."""
    model = _model(rule)
    with torch.no_grad():
        model.q += spread * torch.randn(model.q.shape, generator=torch.Generator().manual_seed(2))
    method = first_order_method(model.double())
    assert method is not None
    predict = _predict(spectrum.numpy_source(method))
    batch = GaussianTasks.nonisotropic(dtype=torch.float64).tokens(20, torch.Generator().manual_seed(3), queries=4)
    with torch.no_grad():
        expected = model.predict(batch.z, context=20).numpy()
    z = batch.z.numpy()
    found = np.stack([predict(task[:20, :-1], task[:20, -1], task[20:, :-1]) for task in z])
    assert np.abs(found - expected).max() < 1e-10 * max(1.0, np.abs(expected).max())


def test_the_function_runs_without_this_package(tmp_path: Path) -> None:
    method = first_order_method(_model())
    assert method is not None
    (tmp_path / "learned.py").write_text(spectrum.numpy_source(method))
    code = (
        "import sys, numpy as np, learned; print(learned.predict(np.eye(5), np.ones(5), np.eye(5)).shape, "
        "sorted({name.split('.')[0] for name in sys.modules} & {'torch', 'memformer_kernels', 'memformer_lab'}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=tmp_path)
    assert done.stdout.strip() == "(5,) []"


def test_a_network_that_is_a_polynomial_is_one() -> None:
    """One preconditioner: nothing is mixed, and what is measured along the eigenvectors lies on the curve."""
    found = _explained(_model())
    assert found.likeness == pytest.approx(np.ones(3), abs=1e-6)
    assert found.mixed < 1e-5
    expected = found.learned.residuals(found.eigenvalues.flatten())[-1].reshape(found.eigenvalues.shape)
    np.testing.assert_allclose(found.measured, expected, atol=1e-5)
    assert found.errors[NETWORK].log_mean == pytest.approx(found.errors[ONE].log_mean, abs=1e-5)
    assert float((found.preconditioner @ TASKS.covariance).trace()) == pytest.approx(5.0, rel=0.05)


def test_layers_of_different_matrices_are_said_to_be() -> None:
    model = _model()
    with torch.no_grad():
        model.q += 0.1 * torch.randn(model.q.shape, generator=torch.Generator().manual_seed(2))
    found = _explained(model)
    assert found.likeness.min() < 0.999
    assert found.mixed > 0.01


def test_heavy_ball_and_gradient_descent_are_recognised() -> None:
    ball = network(0, 5, 3, rule="cgd")
    plain = network(0, 5, 3, rule="linear")
    with torch.no_grad():
        for model in (ball, plain):
            model.q.copy_(-0.7 * torch.linalg.inv(TASKS.covariance).expand_as(model.q))
        assert ball.beta is not None
        ball.beta.fill_(0.25)
    recurrences = [_explained(model).learned.recurrence() for model in (ball, plain)]
    for found, momentum in zip(recurrences, (0.25, 0.0), strict=True):
        assert found.exact
        assert found.momenta[1:] == pytest.approx(momentum, abs=1e-5)
        assert found.steps == pytest.approx(found.steps[0], rel=1e-5)
        assert found.steps[0] == pytest.approx(0.7, rel=0.05)


def test_rivals_are_at_their_best_constants() -> None:
    """The best polynomial is the known optimum but for the sample, and no classical method passes it by much."""
    found = _explained(_model("linear"), count=4000)
    logs = {name: one.log_mean for name, one in found.errors.items()}
    assert set(logs) == {NETWORK, ONE, BEST, CHEBYSHEV, HEAVY_BALL, DESCENT, CGD}
    assert logs[BEST] == pytest.approx(exact_optimum(TASKS, 3).log_error, abs=0.15)
    for name in (CHEBYSHEV, HEAVY_BALL, DESCENT, NETWORK):
        assert logs[name] > logs[BEST] - 0.05
    assert logs[CGD] < logs[BEST] - 1
    assert logs[DESCENT] > logs[HEAVY_BALL] + 0.2
    x = np.linspace(0, found.top, 9)
    assert found.cgd_residuals(x)[:, 0] == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("model", "said"),
    [
        ({"structure": "block"}, "expected structure 'response-only', where features stay as they are, got 'block'"),
        ({"structure": "dense"}, "got 'dense'"),
        (
            {"heads": 2, "rule": "gated_heads"},
            "expected heads that share their coefficients, got 2 of rule 'gated_heads'",
        ),
        ({"granularity": "token", "tokens": 21}, "the same for all tokens, got granularity 'token'"),
    ],
)
def test_what_has_no_polynomial_is_refused(model: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        spectrum.explain(network(0, 5, 2, **{"rule": "lfom", **model}), TASKS, count=10)


def test_other_bad_input_is_refused() -> None:
    with pytest.raises(ValueError, match="count must be at least 1, got 0"):
        spectrum.explain(_model(), TASKS, count=0)
    climbing = network(0, 5, 1)
    with torch.no_grad():
        climbing.q.copy_(torch.diag(torch.tensor([1.0, -1.0, 1.0, -1.0, 1.0])).expand_as(climbing.q))
    with pytest.raises(ValueError, match="share no positive definite preconditioner"):
        spectrum.explain(climbing, TASKS, count=10)


def test_tasks_of_other_kinds_are_explained() -> None:
    found = spectrum.explain(network(0, 3, 2), StandardisedTasks(3, 9), count=60)
    assert all(np.isfinite(one.log_mean) for one in found.errors.values())
    family = spectrum.explain(network(0, 3, 2), FamilyTasks("relu", 3, 9), count=60)
    assert np.isfinite(family.errors[NETWORK].log_mean)
    one = spectrum.explain(network(0, 1, 1), GaussianTasks.isotropic(1, 4), count=60)
    assert one.learned.zeros().shape == (1,)
    assert len(spectrum.draw(one, "svg")) > 1000
    few = spectrum.explain(network(0, 6, 2), GaussianTasks.isotropic(6, 4), count=60)
    assert few.eigenvalues[:, 0] == pytest.approx(0.0, abs=1e-12)


def _call(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    assert _call("train", "--steps", 40, "--batch", 16, "--layers", 2, "--output", folder).exit_code == 0
    return folder


def test_the_command_writes_a_figure_and_a_function_and_keeps_earlier_ones(run: Path, tmp_path: Path) -> None:
    figure, function = tmp_path / "plot.png", tmp_path / "learned.py"
    words = ["explain", run, "--figure", figure, "--function", function, "--tasks", 200]
    result = _call(*words)
    assert result.exit_code == 0, result.output
    for said in ("lfom, 2 layers on nonisotropic tasks", "heavy ball", "momentum", "1 / zero", f"Wrote {figure}"):
        assert said in result.stdout
    assert "the earlier one" not in result.stdout
    picture = matplotlib.image.imread(figure)
    assert picture.shape[1] > 1000
    assert picture[..., :3].std() > 0.05
    before = function.read_bytes()
    compile(before, "learned.py", "exec")
    again = _call(*words).stdout
    assert f"the earlier one is {tmp_path / 'plot.1.png'}" in again
    assert f"the earlier one is {tmp_path / 'learned.1.py'}" in again
    assert (tmp_path / "learned.1.py").read_bytes() == before == function.read_bytes()


def test_the_command_refuses_before_it_writes(run: Path, tmp_path: Path) -> None:
    block = tmp_path / "block"
    assert _call("train", "--steps", 1, "--batch", 4, "--structure", "block", "--output", block).exit_code == 0
    for arguments, said in (
        ([block], "expected structure 'response-only'"),
        ([run, "--figure", tmp_path / "a.txt"], ".png"),
        ([tmp_path / "none"], "none"),
    ):
        refused = _call("explain", "--figure", tmp_path / "a.png", "--function", tmp_path / "a.py", *arguments)
        assert refused.exit_code == 2
        assert said in refused.stderr
        assert "Traceback" not in refused.output
    assert not list(tmp_path.glob("a.*"))
