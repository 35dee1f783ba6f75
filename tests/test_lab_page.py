"""docs/lab.md: its figures are those of the records of the main job and of the experiments."""

import hashlib
import json
from collections import Counter
from dataclasses import replace
from typing import Any

from PIL import Image

from memformer_lab.cli import app
from memformer_lab.experiments.contests import METHODS, Budget, depth_runs, real_runs
from memformer_lab.runs.config import TrainingConfig
from memformer_lab.tasks import real
from tests.pages import ROOT, examples, one_line, rows, run, section, text_of

PAGE = "docs/lab.md"
LEARN, CLAIMS = "## What they learn", "## What was claimed, and what holds"


def experiments() -> dict[str, dict[str, Any]]:
    """The committed records of experiments by name."""
    found = [json.loads(path.read_text()) for path in (ROOT / "docs" / "experiments").glob("*.json")]
    return {record["name"]: record for record in found}


def curve(record: dict[str, Any], panel: str, label: str) -> tuple[list[float], list[list[float]]]:
    """A curve's places and its values there, a row a seed."""
    curves = next(one["series"] for one in record["results"]["panels"] if one["name"] == panel)
    found = next(one for one in curves if one["label"] == label)
    return found["x"], [[float(value) for value in row] for row in found["values"]]


def means(record: dict[str, Any], panel: str, label: str) -> dict[float, float]:
    """The mean over seeds at every place of a curve."""
    places, values = curve(record, panel, label)
    return {x: sum(column) / len(column) for x, *column in zip(places, *values, strict=True)}


def verdicts(records: dict[str, dict[str, Any]]) -> str:
    labels = Counter(record["verdict"]["label"] for record in records.values())
    return ", ".join(f"{labels[name]} {name}" for name in ("reproduced", "reproduced with a caveat", "not reproduced"))


def test_what_was_learnt_is_what_the_record_says() -> None:
    record = json.loads((ROOT / "docs" / "showcase.json").read_text())
    names = {
        "gradient descent": "gradient_descent",
        "momentum": "momentum",
        "Nesterov": "nesterov",
        "exact conjugate gradient": "conjugate_gradient",
        "LFOM": "response-only",
        "LFOM, Bm free": "block",
    }
    found = {method["name"]: method["depths"] for method in record["methods"]}
    table, said = rows(section(PAGE, LEARN)), one_line(section(PAGE, LEARN))
    assert table.keys() == names.keys()
    for row, method in names.items():
        assert table[row][:4] == [f"{depth['log_mean']:.2f}" for depth in found[method]]
        assert table[row][4] == f"{found[method][0]['tasks']:,}"
    # The bar for a well-trained model, judged by the whole bootstrap interval.
    plain, free = found["response-only"][3], found["block"][3]
    assert plain["high"] <= -2.75
    assert f"interval of the 4-layer LFOM is [{plain['low']:.2f}, {plain['high']:.2f}]" in said
    assert f"[{free['low']:.2f}, {free['high']:.2f}] and the median {free['log_median']:.2f}" in said
    assert len(record["sets"]) == 8
    assert {"diabetes", "linnerud"} <= {one["name"] for one in record["sets"]}
    assert all({"ols", "ridge"} <= one["methods"].keys() for one in record["sets"])


def test_the_picture_and_the_record_of_the_main_job_are_of_one_run() -> None:
    record = (ROOT / "docs" / "showcase.json").read_bytes()
    with Image.open(ROOT / "docs" / "showcase.png") as picture:
        assert picture.info["Description"] == f"SHA-256 {hashlib.sha256(record).hexdigest()}"


def test_the_record_is_of_the_main_job_as_it_is() -> None:
    """Each run with the configuration that it has today, whatever takes its steps, each method judged on as many tasks,
    and the same sets."""
    record, budget = json.loads((ROOT / "docs" / "showcase.json").read_text()), Budget()
    runs = [run for row in depth_runs(budget, record["seed"]).values() for run in row]
    runs += real_runs([real.load(name) for name in budget.sets], budget, record["seed"]).values()
    # A configuration has its defaults for what the record does not name.
    held = {
        run["name"]: TrainingConfig(**run["config"] | {"betas": tuple(run["config"]["betas"])})
        for run in record["runs"]
    }
    now = {run.name: run.config for run in runs}
    assert held.keys() == now.keys()
    assert {name: replace(config, backend=now[name].backend) for name, config in held.items()} == now
    judged = {(method["name"], depth["tasks"]) for method in record["methods"] for depth in method["depths"]}
    tasks = {"conjugate_gradient": budget.tasks, "response-only": budget.tasks, "block": budget.block_tasks}
    assert judged == {(name, tasks.get(name, budget.classical_tasks)) for name in METHODS}
    assert [(one["name"], one["contexts"]) for one in record["sets"]] == [(x, budget.contexts) for x in budget.sets]


def test_all_experiments_are_committed_at_full_scale() -> None:
    records = experiments()
    assert len(records) == 18
    assert {record["scale"] for record in records.values()} == {"full"}
    page = text_of("docs/experiments/README.md")
    for name, record in records.items():
        assert f"]({name}.json)" in page
        assert record["verdict"]["label"] in page
    assert sum(path.stat().st_size for path in (ROOT / "docs" / "experiments").iterdir()) < 6e6
    assert "(docs/experiments/README.md)" in text_of("README.md")


def test_the_claims_table_is_what_the_experiments_found() -> None:
    records = experiments()
    expected = {
        "LFOM": ("lfom", "non-isotropic", "LFOM"),
        "exact CGD": ("lfom", "non-isotropic", "CGD"),
        "LFOM, isotropic tasks": ("lfom", "isotropic", "LFOM"),
        "exact CGD, isotropic tasks": ("lfom", "isotropic", "CGD"),
        "LFOM, Bm free": ("gdpp", "non-isotropic-log_mean", "LFOM with GD++"),
    }
    table = rows(section(PAGE, CLAIMS))
    assert table.keys() == expected.keys()
    for row, (name, panel, label) in expected.items():
        found = means(records[name], panel, label)
        assert table[row] == [f"{found[depth]:.2f}" for depth in (1.0, 2.0, 3.0, 4.0)], row
        if label != "CGD":
            assert len(curve(records[name], panel, label)[1]) == 5, "each over five seeds"
    tasks = {name: records[name]["results"]["numbers"]["tasks judged on"] for name in ("lfom", "gdpp")}
    said = one_line(section(PAGE, CLAIMS))
    assert f"({tasks['lfom']:,.0f} of them in the first four rows, {tasks['gdpp']:,.0f} in the last)" in said


def test_the_claims_sentences_are_what_the_experiments_found() -> None:
    records = experiments()
    said = one_line(section(PAGE, CLAIMS))
    assert verdicts(records) in said
    minutes = sum(record["cpu_seconds"] for record in records.values()) / 60
    assert f"{minutes:.0f} minutes of processor time" in said

    control, gains = "none, wide: one weight a layer and feature", records["memory"]["results"]["numbers"]
    for case in ("A free and Bm = 0", "A scalar and Bm = 0"):
        over_none, over_control = (gains[f"gain of lfom over '{other}', {case}"] for other in ("none", control))
        assert f"{case}: {over_none:.2f} over no memory, {abs(over_control):.2f} over" in said
        assert over_control > -0.005
    depth = {
        way: means(records["depth"], "depth", way)
        for way in ("gradient descent start, no clipping", "random start, clipped to 0.01")
    }
    assert "{:.2f} against {:.2f}".format(*(found[32.0] for found in depth.values())) in said
    heads = means(records["heads"], "mean", "2 layers, more heads")
    brief = means(records["heads"], "brief", "2 layers, more heads")
    assert f"({heads[5.0]:.2f} against {heads[1.0]:.2f})" in said
    assert f"({brief[5.0]:.2f} against {brief[1.0]:.2f})" in said
    title = next(one["title"] for one in records["heads"]["results"]["panels"] if one["name"] == "brief")
    assert "after 600 steps" in title
    assert "after 600 steps they are" in said


def test_examples_classify() -> None:
    """Far more often right than one time in three."""
    trained, shipped = (float(run(code).split(": ")[1]) for code in examples(PAGE))
    assert trained > 0.6
    assert shipped > 0.9


def test_the_commands_are_those_of_the_lab() -> None:
    named = {name.strip("`") for row in rows(text_of(PAGE)) for name in row.split(", ") if "`" in row or "lab " in row}
    known = {command.name or command.callback.__name__ for command in app.registered_commands if command.callback}
    assert {name.removeprefix("memformer-lab ").split()[0] for name in named} == known
