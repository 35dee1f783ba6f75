"""docs/lab.md: its figures are those of the records of the main job and of the experiments."""

import hashlib
import json
import math
from collections import Counter
from dataclasses import asdict
from typing import Any

from PIL import Image

from memformer_lab.cli import app
from memformer_lab.experiments.contests import METHODS, Budget, depth_runs, real_runs
from memformer_lab.experiments.runner import EXPERIMENTS, find
from memformer_lab.reports.pages import markdown_page
from memformer_lab.reports.protocol import Setting, read_outcome
from memformer_lab.runs.config import TrainingConfig
from memformer_lab.tasks import real
from tests.pages import ROOT, examples, one_line, rows, run, section, text_of

PAGE = "docs/lab.md"
LEARN, CLAIMS = "## What they learn", "## What was claimed, and what holds"
SEEDS = 5
KINDS = ("A free", "A scalar")


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
    order = ("reproduced", "reproduced in part", "not reproduced", "not concluded")
    return ", ".join(f"{labels[name]} {name}" for name in order if labels[name])


def number(record: dict[str, Any], start: str) -> float:
    """A record's number by the beginning of its name."""
    (found,) = (value for name, value in record["results"]["numbers"].items() if name.startswith(start))
    return float(found)


def memory_of_gdpp(kind: str) -> str:
    """What memory takes off ln of an error at depth 4 with Bm free, at the best coefficients, with its interval."""
    outcome = read_outcome(ROOT / "docs" / "experiments", find("gdpp"), Setting("full"), any_code=True)
    assert outcome
    panel = outcome.results[f"non-isotropic-log_{kind}"]
    found = panel["GD++, best coefficients"].difference(panel["LFOM with GD++, best coefficients"], 4.0)
    return "{:.2f} [{:.2f}, {:.2f}]".format(*found)


def test_what_was_learnt_is_what_the_experiments_found() -> None:
    records = experiments()
    best = "best constants for each number of steps"
    shown = {
        "gradient descent": ("momentum", "momentum", "gradient descent, each task's asymptotically optimal parameters"),
        "momentum": ("momentum", "momentum", f"momentum, {best}"),
        "Nesterov": ("momentum", "momentum", f"Nesterov, {best}"),
        "exact conjugate gradient": ("lfom", "non-isotropic", "CGD"),
        "Nesterov, each task's constants": (
            "momentum",
            "momentum",
            "Nesterov, each task's asymptotically optimal parameters",
        ),
        "LFOM": ("lfom", "non-isotropic", "LFOM"),
        "exact conjugate gradient, isotropic tasks": ("lfom", "isotropic", "CGD"),
        "LFOM, isotropic tasks": ("lfom", "isotropic", "LFOM"),
        "exact conjugate gradient, median": ("gdpp", "non-isotropic-log_median", "CGD"),
        "GD++ without memory, median": ("gdpp", "non-isotropic-log_median", "GD++, trained with free scales"),
        "LFOM with GD++, median": ("gdpp", "non-isotropic-log_median", "LFOM with GD++"),
    }
    table = rows(section(PAGE, LEARN))
    assert table.keys() == shown.keys()
    for row, (name, panel, label) in shown.items():
        found = means(records[name], panel, label)
        assert table[row] == [f"{found[depth]:.2f}" for depth in (1.0, 2.0, 3.0, 4.0)], row
    said = one_line(section(PAGE, LEARN))
    assert f"over {SEEDS} seeds" in said
    assert "the last three rows of the median" in said
    assert all(
        len(curve(records[shown[row][0]], *shown[row][1:])[1]) == SEEDS for row in shown if row.startswith("LFOM")
    )


def test_the_main_job_reaches_its_bar() -> None:
    """The bar for a well-trained model, judged by the whole bootstrap interval; all sets beside OLS and ridge."""
    record = json.loads((ROOT / "docs" / "showcase.json").read_text())
    found = {method["name"]: method["depths"] for method in record["methods"]}
    assert found["response-only"][3]["high"] <= -2.75
    assert len(record["sets"]) == 8
    assert {"diabetes", "linnerud"} <= {one["name"] for one in record["sets"]}
    assert all({"ols", "ridge"} <= one["methods"].keys() for one in record["sets"])


def test_the_picture_and_the_record_of_the_main_job_are_of_one_run() -> None:
    record = (ROOT / "docs" / "showcase.json").read_bytes()
    with Image.open(ROOT / "docs" / "showcase.png") as picture:
        assert picture.info["Description"] == f"SHA-256 {hashlib.sha256(record).hexdigest()}"


def test_the_record_is_of_the_main_job_as_it_is() -> None:
    """Each run with the configuration that it has today, each method judged on as many tasks,
    and the same sets."""
    record, budget = json.loads((ROOT / "docs" / "showcase.json").read_text()), Budget()
    runs = [run for row in depth_runs(budget, record["seed"]).values() for run in row]
    runs += real_runs([real.load(name) for name in budget.sets], budget, record["seed"]).values()
    held = {run["name"]: TrainingConfig.from_dict(run["config"]) for run in record["runs"]}
    now = {run.name: run.config for run in runs}
    assert held.keys() == now.keys()
    assert held == now
    judged = {(method["name"], depth["tasks"]) for method in record["methods"] for depth in method["depths"]}
    tasks = {"conjugate_gradient": budget.tasks, "response-only": budget.tasks, "block": budget.block_tasks}
    assert judged == {(name, tasks.get(name, budget.classical_tasks)) for name in METHODS}
    assert [(one["name"], one["contexts"]) for one in record["sets"]] == [(x, budget.contexts) for x in budget.sets]


def test_all_experiments_are_committed_at_full_scale() -> None:
    """Of more than one revision: each record says which sources found it, and `verdicts` are those of today."""
    records = experiments()
    assert records.keys() == {one.name for one in EXPERIMENTS}
    assert {record["scale"] for record in records.values()} == {"full"}
    assert len({record["seed"] for record in records.values()}) == 1
    assert all(len(record["versions"]["sources"]) == 12 for record in records.values())
    assert f"by {len({record['versions']['sources'] for record in records.values()})} revisions" in text_of(PAGE)
    page = text_of("docs/experiments/README.md")
    for name, record in records.items():
        assert f"]({name}.json)" in page
        assert record["verdict"]["label"] in page
    assert sum(path.stat().st_size for path in (ROOT / "docs" / "experiments").iterdir()) < 6e6
    assert "(docs/experiments/README.md)" in text_of("README.md")


def test_verdicts_and_the_page_of_the_record_are_those_of_the_rules_of_today() -> None:
    """Rules and sentences may change after a run: then `reproduce --judge` writes labels and page again."""
    setting = Setting("full", next(iter(experiments().values()))["seed"])
    folder = ROOT / "docs" / "experiments"
    outcomes = [one for each in EXPERIMENTS if (one := read_outcome(folder, each, setting, any_code=True))]
    assert [one.experiment for one in outcomes] == [*EXPERIMENTS]
    held = {name: record["verdict"] for name, record in experiments().items()}
    assert held == {one.experiment.name: json.loads(json.dumps(asdict(one.verdict))) for one in outcomes}
    assert text_of("docs/experiments/README.md") == markdown_page(outcomes)


def test_a_median_of_nothing_is_of_errors_that_overflow() -> None:
    """The run took them for -inf, which its page says; a mean of a finite error would be another fault."""
    records = experiments()
    for name, record in records.items():
        for panel in record["results"]["panels"]:
            for one in panel["series"]:
                lost = [x for x, *column in zip(one["x"], *one["values"], strict=True) if "-inf" in column]
                assert not lost or (name, panel["name"]) == ("shift", "medians"), (name, panel["name"], one["label"])
                for x in lost:
                    assert means(record, "shift", one["label"])[x] == math.inf
    assert "a median of -inf is of errors most of which overflow" in one_line(find("shift").protocol)


def test_the_claims_sentences_are_what_the_experiments_found() -> None:
    records = experiments()
    said = one_line(section(PAGE, CLAIMS))
    assert verdicts(records) in said
    minutes = sum(record["cpu_seconds"] for record in records.values()) / 60
    assert f"{minutes:.0f} minutes of processor time" in said

    best = means(records["lfom"], "non-isotropic", "CGD, preconditioned by the network's A")[4.0]
    assert f"a trained network reach {best:.2f} in four steps" in said
    shift = {
        who: means(records["shift"], "shift", label)
        for who, label in (
            ("one", "LFOM, one covariance"),
            ("each", "LFOM with Bm free, a rotation a prompt"),
            ("cgd", "CGD, 4 steps"),
        )
    }
    same, other, every = 0.0, 4.0, 5.0
    assert f"go from {shift['one'][same]:.2f} to {shift['one'][other]:.1f}, relative to the variance" in said
    assert f"conjugate gradients have {shift['cgd'][other]:.2f}. With Bm free" in said
    typical = [
        means(records["shift"], "medians", label)[every]
        for label in ("LFOM with Bm free, a rotation a prompt", "CGD, 4 steps")
    ]
    assert "ln of the median is {:.2f} against {:.2f}".format(*typical) in said
    assert f"ln of the mean over the sample is {shift['each'][every]:.1f} against {shift['cgd'][every]:.2f}." in said
    isotropic = [means(records["gdpp"], "isotropic-log_median", label)[4.0] for label in ("LFOM with GD++", "CGD")]
    assert "better there too (ln of the median {:.2f} against {:.2f})".format(*isotropic) in said

    free, scalar = (number(records["memory"], f"what memory takes off ln of the optimum, {kind}") for kind in KINDS)
    assert f"four layers: {abs(free):.2f} with A free and {abs(scalar):.2f} with A scalar" in said
    assert f"it takes {memory_of_gdpp('median')} off ln of the median" in said
    assert f"and {memory_of_gdpp('trimmed')} off ln of the mean without the largest 0.1%" in said
    heads, brief = (
        means(records["heads"], "log_trimmed", label) for label in ("2 layers, more heads", "after brief training")
    )
    assert f"One head reaches {heads[1.0]:.2f} in two layers with Bm free, five heads {heads[5.0]:.2f}" in said
    assert f"trained briefly they reach {brief[1.0]:.2f} and {brief[5.0]:.2f}" in said
    prompts, least = (means(records["prompt-lengths"], "share", label) for label in ("LFOM, 8 layers", "least squares"))
    assert abs(prompts[2.0] - least[2.0]) < 0.05
    assert f"and {prompts[5.0] - least[5.0]:.2f} above it after five, where least squares is exact" in said
    assert f"after twenty they are {prompts[20.0] - least[20.0]:.2f} above it" in said
    assert means(records["classification"], "excess", "LFOM, 1 layer")[640.0] < math.log(1.05)
    codes = [
        10 * means(records["sparse"], "layers", label)[16.0] / math.log(10)
        for label in ("LISTA-CP, learned weights", "ALISTA, analytic weights", "ISTA", "FISTA")
    ]
    assert (
        "leave {:.1f} dB of sparse codes, with analytic weights {:.1f}, ISTA {:.1f} and FISTA {:.1f}".format(*codes)
        in said
    )
    blocks = [
        means(records["feed-forward"], panel, before)[3.0] - means(records["feed-forward"], panel, with_block)[3.0]
        for panel, before, with_block in (
            ("response-only-log_median", "Bm = 0", "Bm = 0 + feed-forward"),
            ("block-log_median", "GD++, best coefficients", "GD++ + feed-forward"),
        )
    ]
    assert "block takes {:.2f} off ln of the median of three layers with Bm = 0 and {:.2f} with".format(*blocks) in said
    ours, clipped = (
        means(records["depth"], "depth", label)
        for label in ("gradient descent start, no clipping", "random start, clipped to 0.01")
    )
    left = means(records["depth"], "excess", "gradient descent start, no clipping")[32.0]
    stable = means(records["depth"], "stable", "random start, no clipping")[32.0]
    assert (
        f"to {ours[32.0]:.2f}, {left:.2f} above the optimum on those tasks; of random starts {1 - stable:.0%}" in said
    )
    assert f"they reach {clipped[32.0]:.2f} there, and {clipped[8.0]:.2f} at 8 layers" in said
    assert f"where ours reaches {ours[8.0]:.2f}" in said


def test_examples_run_as_pasted_and_classify() -> None:
    """Far more often right than one time in three."""
    explained, *classified = (run(code) for code in examples(PAGE))
    assert "zeros: " in explained
    trained, shipped = (float(printed.split(": ")[1]) for printed in classified)
    assert trained > 0.6
    assert shipped > 0.9


def test_the_commands_are_those_of_the_lab() -> None:
    named = {name.strip("`") for row in rows(text_of(PAGE)) for name in row.split(", ") if "`" in row or "lab " in row}
    known = {command.name or command.callback.__name__ for command in app.registered_commands if command.callback}
    assert {name.removeprefix("memformer-lab ").split()[0] for name in named} == known
