from __future__ import annotations

import dataclasses
import io
import json
import math
from pathlib import Path
from typing import Any

import matplotlib.image
import pytest
import torch
from rich.console import Console

from memformer_lab.experiments.common import DEPTHS
from memformer_lab.experiments.contests import METHODS, Budget, depth_contests, depth_runs, real_runs
from memformer_lab.experiments.showcase import run_showcase
from memformer_lab.reports.drawing import draw_report
from memformer_lab.reports.results import Report
from memformer_lab.reports.tables import depth_table, print_report, set_table
from memformer_lab.runs.metrics import read_metrics
from memformer_lab.runs.models import load_model
from memformer_lab.runs.parallel import Job, Workers
from memformer_lab.runs.trainer import fault
from memformer_lab.runs.training import CHECKPOINT, METRICS
from memformer_lab.solvers.held_out import best_penalty, context_length, judge_set
from memformer_lab.solvers.optimizers import OPTIMIZERS
from memformer_lab.tasks import real
from tests.marks import slow_but

TINY = Budget(
    response_steps=6,
    block_steps=6,
    real_steps=4,
    tasks=40_000,
    block_tasks=500,
    classical_tasks=500,
    sets=("linnerud", "stackloss", "longley"),
    contexts=30,
)


def _silent() -> Console:
    return Console(file=io.StringIO(), width=100)


def _text(shown: Any, width: int = 100) -> str:
    console = Console(file=io.StringIO(), width=width)
    console.print(shown)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("results")


@pytest.fixture(scope="module")
def report(folder: Path) -> Report:
    return run_showcase(folder, budget=TINY, workers=1, console=_silent())


def test_everything_is_written(report: Report, folder: Path) -> None:
    names = [f"{kind}-{depth}" for kind in ("response-only", "block") for depth in DEPTHS]
    names += ["measured-d3", "measured-d5"]
    assert sorted(path.name for path in (folder / "runs").iterdir()) == sorted(names)
    assert {path.name for path in folder.iterdir()} == {"runs", "report.json", "figure.png"}
    for run in report.runs:
        model, config = load_model(folder / "runs" / run.name / CHECKPOINT)
        assert config.to_dict() == run.config
        assert model.layers == config.layers
        assert read_metrics(folder / "runs" / run.name / METRICS)[-1]["step"] == config.steps
    assert sorted(run.name for run in report.runs) == sorted(names)


def test_the_json_holds_the_report(report: Report, folder: Path) -> None:
    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is no JSON")

    held = json.loads((folder / "report.json").read_text(), parse_constant=refuse)
    assert held["format"] == "memformer_lab.report"
    assert held["version"] == 1
    assert [method["name"] for method in held["methods"]] == list(METHODS)
    for method, found in zip(held["methods"], report.methods, strict=True):
        assert [one["log_mean"] for one in method["depths"]] == [one.log_mean for one in found.depths]
    assert [one["name"] for one in held["sets"]] == list(TINY.sets)
    assert held["seconds"].keys() == {"training", "random tasks", "measured data"}


def test_methods_are_judged_on_the_tasks_they_say(report: Report) -> None:
    tasks = {method.name: {one.tasks for one in method.depths} for method in report.methods}
    assert tasks["conjugate_gradient"] == tasks["response-only"] == {40_000}
    assert tasks["gradient_descent"] == tasks["momentum"] == tasks["nesterov"] == {500}
    assert tasks["block"] == {500}
    assert all(len(method.depths) == 4 for method in report.methods)
    exact = next(method for method in report.methods if method.name == "conjugate_gradient")
    assert [one.log_mean for one in exact.depths] == pytest.approx([0.69, 0.14, -0.60, -1.61], abs=0.05)


@pytest.mark.slow
def test_results_do_not_depend_on_the_number_of_workers(report: Report, tmp_path: Path) -> None:
    other = run_showcase(tmp_path, budget=TINY, workers=2, console=_silent())
    assert other.methods == report.methods
    assert other.sets == report.sets
    assert [run.loss for run in other.runs] == [run.loss for run in report.runs]


def test_the_tables_show_every_figure(report: Report) -> None:
    by_depth = _text(depth_table(report))
    for method in report.methods:
        assert f"{method.depths[0].tasks:,} tasks" in by_depth
        for one in method.depths:
            assert f"{one.log_mean:.2f}" in by_depth
            assert f"[{one.low:.2f},{one.high:.2f}]" in by_depth
            assert f"med {one.log_median:.2f}" in by_depth
    assert "k steps of an optimiser" in by_depth
    by_set = _text(set_table(report))
    for one in report.sets:
        line = next(line for line in by_set.splitlines() if line.split()[:1] == [one.name])
        assert line.split()[1:3] == [str(one.d), str(one.n)]
        assert len(line.split()) == 11
        for name in ("memformer", "ols", "ridge", "nesterov"):
            assert f"{math.exp(one.methods[name].log_mean):#.3g}" in line


def test_the_tables_fit_a_terminal_of_80_columns(report: Report) -> None:
    for table in (depth_table(report), set_table(report)):
        assert "…" not in _text(table, width=80)


def test_the_report_says_how_fast_training_was(report: Report) -> None:
    console = _silent()
    print_report(report, console)
    assert isinstance(console.file, io.StringIO)
    tasks = sum(run.tasks for run in report.runs)
    assert f"Trained 10 models on {tasks:,} tasks" in console.file.getvalue()
    assert "tasks/s in 1 process" in console.file.getvalue()


def test_the_figure_is_a_picture_with_something_on_it(report: Report, folder: Path) -> None:
    picture = matplotlib.image.imread(folder / "figure.png")
    assert picture.shape[0] > 500
    assert picture.shape[1] > 1000
    assert picture[..., :3].std() > 0.05
    assert draw_report(report)[:8] == b"\x89PNG\r\n\x1a\n"


def test_a_figure_without_finite_values_is_drawn_all_the_same(report: Report) -> None:
    broken = dataclasses.replace(report.methods[-1].depths[-1], log_mean=math.inf, low=math.inf, high=math.inf)
    block = dataclasses.replace(report.methods[-1], depths=(*report.methods[-1].depths[:-1], broken))
    changed = dataclasses.replace(report, methods=(*report.methods[:-1], block))
    assert draw_report(changed)[:4] == b"\x89PNG"
    assert json.loads(changed.to_json())["methods"][-1]["depths"][-1]["log_mean"] is None
    assert "inf" in _text(depth_table(changed))


def test_runs_train_in_whole_steps() -> None:
    budget = Budget()
    runs = [run for row in depth_runs(budget, 0).values() for run in row]
    runs += real_runs([real.load(x) for x in budget.sets], budget, 0).values()
    assert {run.config.backend for run in runs} == {"auto"}
    assert [fault(run.config) for run in runs if fault(run.config)] == []


def test_the_full_budget_judges_on_ten_million_tasks() -> None:
    contests = depth_contests(depth_runs(Budget(), 0), Path(), Budget(), 0)
    judged = {row: contest.chunks.tasks for contest in contests for row in contest.rows}
    assert judged.keys() == {(method, depth) for method in METHODS for depth in DEPTHS}
    assert all(judged[name, depth] == 10**7 for name in ("response-only", "conjugate_gradient") for depth in DEPTHS)
    for contest in contests:
        drawn = [index for job in contest.jobs() for index in job.arguments[-1]]
        assert drawn == list(range(len(contest.chunks)))


def test_every_run_is_separate_and_on_the_same_tasks() -> None:
    runs = depth_runs(Budget(), 3)
    for kind, own in runs.items():
        assert [run.config.layers for run in own] == list(DEPTHS)
        assert {run.config.structure for run in own} == {kind}
        assert {(run.config.tasks, run.config.rotation_seed, run.config.n) for run in own} == {("nonisotropic", 3, 20)}


def test_one_model_for_each_number_of_features() -> None:
    sets = [real.load(name) for name in real.names()]
    runs = real_runs(sets, Budget(), 0)
    assert runs.keys() == {dataset.x.shape[1] for dataset in sets}
    for d, run in runs.items():
        assert (run.config.d, run.config.tasks) == (d, "standardised")
        smallest = min(len(dataset.y) for dataset in sets if dataset.x.shape[1] == d)
        assert run.config.n + run.config.queries <= smallest
        assert run.config.n == context_length([dataset for dataset in sets if dataset.x.shape[1] == d])


def test_measured_sets_are_judged_beside_least_squares(report: Report, folder: Path) -> None:
    longley = next(one for one in report.sets if one.name == "longley")
    assert (longley.rows, longley.d, longley.n, longley.contexts) == (16, 5, 12, 30)
    assert longley.methods.keys() == {"memformer", "ols", "ridge", "context mean", *OPTIMIZERS}
    assert longley.methods["ols"].log_mean < longley.methods["context mean"].log_mean - 2
    model, config = load_model(folder / "runs" / "measured-d5" / CHECKPOINT)
    again = judge_set(model, real.load("longley"), config.n, 30, longley.penalty, seed=0)
    assert again == longley.methods
    other = judge_set(model, real.load("longley"), config.n, 30, longley.penalty, seed=1)
    assert other != longley.methods


def test_the_penalty_is_chosen_on_random_tasks() -> None:
    penalty = best_penalty(4, 16, 2000, seed=0)
    assert 0.01 < penalty < 1
    assert penalty == best_penalty(4, 16, 2000, seed=0)


def _square(value: int, report: Any) -> tuple[int, int]:
    report(1, f"{value}")
    return value * value, torch.get_num_threads()


def _fail(report: Any) -> None:
    raise ValueError("no such luck")


@pytest.mark.parametrize("count", slow_but([2], [1, 2]))
def test_workers_give_results_in_order_and_forward_reports(count: int) -> None:
    seen: list[tuple[int, str]] = []
    threads = torch.get_num_threads()
    with Workers(count) as workers:
        results = workers.run([Job(_square, (value,)) for value in range(5)], lambda *report: seen.append(report))
        assert results == [(value * value, 1) for value in range(5)]
        assert sorted(seen) == [(1, f"{value}") for value in range(5)]
        with pytest.raises(ValueError, match="no such luck"):
            workers.run([Job(_fail)], lambda *_: None)
    assert torch.get_num_threads() == threads


def test_at_least_one_worker() -> None:
    with pytest.raises(ValueError, match="workers must be at least 1, got 0"):
        Workers(0)
