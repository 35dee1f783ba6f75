"""Networks that a record ships, and the script that computes their figures again."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from memformer_kernels.nn import Memformer
from memformer_lab.experiments.runner import find
from memformer_lab.reports.curves import series
from memformer_lab.reports.networks import Network, Statistic
from memformer_lab.reports.protocol import Setting
from memformer_lab.reports.results import Panel, Results
from memformer_lab.runs.fitting import Recipe, fit_on_tasks, memformer
from memformer_lab.solvers.judging import classical_estimates, distributions, network_errors
from memformer_lab.tasks.gaussian import GaussianTasks
from tests import recomputed

ROOT = Path(__file__).parents[3]
TASKS = GaussianTasks.nonisotropic(rotation_seed=3)
CASES = {
    "lfom": {"rule": "lfom"},
    "lfom, block": {"rule": "lfom", "structure": "block"},
    "linear": {"rule": "linear", "structure": "block"},
    "cgd": {"rule": "cgd"},
    "shared": {"rule": "lfom_shared"},
    "experts": {"rule": "gated_heads", "heads": 2},
}


def _record(name: str, rule: dict[str, str], statistic: Statistic) -> dict[str, object]:
    model = memformer(0, 5, 2, **rule)
    fit_on_tasks(model, TASKS, Recipe(300, 256, 0.03, 0.1), 0)
    found = distributions(network_errors([model], TASKS.compressed), 200_000, 5)[0]
    value = found.log_mean if statistic == "mean" else found.log_median
    cgd = classical_estimates(["conjugate_gradient"], TASKS, 2, 200_000, 5)
    curves = series("ours", (2,), (value,)), series("CGD", (1, 2), cgd)
    panel = Panel("errors", "errors", "depth", "ln error", curves)
    shipped = Network.of(model, TASKS, "errors", "ours", 2, statistic)
    return {"name": name, "results": Results((panel,), networks=(shipped,)).to_plain()}


@pytest.mark.parametrize("statistic", ["mean", "median"])
@pytest.mark.parametrize("name", CASES)
def test_the_script_comes_to_the_figures_of_what_is_shipped(name: str, statistic: Statistic, tmp_path: Path) -> None:
    record = _record(name, CASES[name], statistic)
    (tmp_path / "one.json").write_text(json.dumps(record))
    found = list(recomputed.figures(tmp_path, 40_000))
    assert len(found) == (2 if statistic == "mean" else 1)
    assert all(one.agrees for one in found), found
    for one in found:
        # An error of a tenth is seen.
        assert not one._replace(recorded=one.recorded + 0.1).agrees
        assert not one._replace(recorded=one.recorded - 0.1).agrees


def test_ten_figures_of_the_experiments_are_recomputed(tmp_path: Path) -> None:
    """Of brief runs here; `python tests/recomputed.py` does the same for the committed records."""
    setting = Setting("tiny")
    for name in ("cgd", "lfom", "gdpp"):
        record = {"name": name, "results": find(name).run(setting).to_plain()}
        (tmp_path / f"{name}.json").write_text(json.dumps(record))
    found = {one.name for one in recomputed.figures(tmp_path, 200)}
    assert len(found) >= 10


def test_what_is_shipped_comes_back_from_json() -> None:
    model = Memformer(3, 2, rule="cgd", dtype=torch.float64)
    results = Results((), networks=(Network.of(model, GaussianTasks.isotropic(3, 7), "p", "ours", 2),))
    assert Results.from_plain(json.loads(json.dumps(results.to_plain()))) == results


def test_the_script_needs_nothing_of_the_package() -> None:
    text = (ROOT / "tests" / "recomputed.py").read_text()
    assert len(text.splitlines()) <= 300
    code = "import sys, recomputed; print({'torch', 'memformer_lab', 'memformer_kernels'} & sys.modules.keys())"
    made = subprocess.run([sys.executable, "-c", code], cwd=ROOT / "tests", check=True, capture_output=True, text=True)
    assert made.stdout.strip() == "set()"
