"""The README is the product's face: what it shows must run, and what it names must exist."""

import json
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

import memformer_kernels
from benchmarks import readme
from memformer_kernels.nn import RULES

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
EXAMPLES = re.findall(r"```python\n(.*?)```", README, re.DOTALL)


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda example: example.split("\n")[1][:40])
def test_examples_run_as_pasted(example: str) -> None:
    done = subprocess.run([sys.executable, "-c", example], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()


def test_the_first_example_learns() -> None:
    done = subprocess.run([sys.executable, "-c", EXAMPLES[0]], capture_output=True, text=True, check=True)
    # A model that learnt nothing has the response's variance, d = 5.
    assert float(done.stdout.split()[-1]) < 0.5


def test_commands_exist() -> None:
    makefile = (ROOT / "Makefile").read_text()
    for target in set(re.findall(r"\bmake ([a-z-]+)`", README)) | {"run", "test"}:
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target


def test_rules_and_functions_are_those_of_the_package() -> None:
    assert set(re.findall(r"^\| `([a-z_]+)` \|", README, re.MULTILINE)) >= set(RULES)
    for name in set(re.findall(r"`([a-z_]+)\(", README)):
        assert hasattr(memformer_kernels, name), name


def test_every_environment_variable_the_code_reads_is_in_the_table() -> None:
    table = set(re.findall(r"^\| `([A-Z_]+)` \|", README, re.MULTILINE))
    folders = ("memformer_kernels/**", "python/**", "benchmarks/**", "native_build")
    sources = [source for folder in folders for source in ROOT.glob(f"{folder}/*.py")]
    read = set()
    for source in sources:
        read |= set(
            re.findall(
                r"""(?:environ(?:\.get)?|getenv|wanted|unless_skipped)[\[(]\s*["']([A-Z_]+)["']""", source.read_text()
            )
        )
    assert read <= table


def _rows(heading: str) -> dict[str, list[str]]:
    """The table below a heading: first cell -> the other cells, without markup."""
    section = README.split(heading, 1)[1].split("\n#", 1)[0]
    rows = [line.strip("|").split("|") for line in section.splitlines() if line.startswith("|")]
    return {row[0].strip(" *`"): [cell.strip(" *`") for cell in row[1:]] for row in rows[2:]}


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
    table = _rows("### What they learn")
    assert table.keys() == names.keys()
    for row, method in names.items():
        assert table[row][:4] == [f"{depth['log_mean']:.2f}" for depth in found[method]]
        assert table[row][4] == f"{found[method][0]['tasks']:,}"
    # The bar for a well-trained model, judged by the whole bootstrap interval.
    assert found["response-only"][3]["high"] <= -2.75


def test_the_figures_of_speed_are_what_the_records_say() -> None:
    assert set(re.findall(r"<!-- record: ([a-z-]+) -->", README)) == set(readme.PARTS)
    assert readme.generate(README) == README, "run `python -m benchmarks readme`"


CLAIMS = "### What was claimed, and what holds"


def _experiments() -> dict[str, dict[str, Any]]:
    records = [json.loads(path.read_text()) for path in (ROOT / "docs" / "experiments").glob("*.json")]
    return {record["name"]: record for record in records}


def _means(record: dict[str, Any], panel: str, label: str) -> dict[float, float]:
    """The mean over seeds at every place of a curve."""
    curves = next(one["series"] for one in record["results"]["panels"] if one["name"] == panel)
    curve = next(one for one in curves if one["label"] == label)
    columns = zip(*([float(value) for value in row] for row in curve["values"]), strict=True)
    return {x: sum(column) / len(column) for x, column in zip(curve["x"], columns, strict=True)}


def test_all_experiments_are_committed_at_full_scale() -> None:
    records = _experiments()
    assert len(records) == 18
    assert {record["scale"] for record in records.values()} == {"full"}
    page = (ROOT / "docs" / "experiments" / "README.md").read_text()
    for name, record in records.items():
        assert f"]({name}.json)" in page
        assert record["verdict"]["label"] in page
    assert sum(path.stat().st_size for path in (ROOT / "docs" / "experiments").iterdir()) < 6e6
    assert "docs/experiments/README.md" in README


def test_the_claims_table_is_what_the_experiments_found() -> None:
    records = _experiments()
    rows = {
        "LFOM": ("lfom", "non-isotropic", "LFOM"),
        "exact CGD": ("lfom", "non-isotropic", "CGD"),
        "LFOM, isotropic tasks": ("lfom", "isotropic", "LFOM"),
        "exact CGD, isotropic tasks": ("lfom", "isotropic", "CGD"),
        "LFOM, Bm free": ("gdpp", "non-isotropic-log_mean", "LFOM with GD++"),
        "GD++, no memory, trained as LFOM is": ("gdpp", "non-isotropic-log_mean", "GD++, trained as LFOM is"),
        "GD++, no memory, its own best clipping": ("gdpp", "non-isotropic-log_mean", "GD++, its own best clipping"),
    }
    table = _rows(CLAIMS)
    assert table.keys() == rows.keys()
    for row, (name, panel, label) in rows.items():
        found = _means(records[name], panel, label)
        assert table[row] == [f"{found[depth]:.2f}" for depth in (1.0, 2.0, 3.0, 4.0)], row


def test_the_claims_sentences_are_what_the_experiments_found() -> None:
    records = _experiments()
    section = " ".join(README.split(CLAIMS, 1)[1].split("\n#", 1)[0].split())
    labels = Counter(record["verdict"]["label"] for record in records.values())
    for label in ("reproduced", "reproduced with a caveat", "not reproduced"):
        assert f"{labels[label]} {label}" in section
    minutes = sum(record["cpu_seconds"] for record in records.values()) / 60
    assert f"{minutes:.0f} minutes of processor time" in section

    control, gains = "none, wide: one weight a layer and feature", records["memory"]["results"]["numbers"]
    for case in ("A free and Bm = 0", "A scalar and Bm = 0", "A and Bm free"):
        over_none, over_control = (gains[f"gain of lfom over '{other}', {case}"] for other in ("none", control))
        assert f"{case}: {over_none:.2f} over no memory, {abs(over_control):.2f} over" in section
        assert over_control > -0.005
    medians = _means(records["gdpp"], "non-isotropic-log_median", "GD++, trained as LFOM is")
    assert f"its median is {medians[4.0]:.2f}" in section
    depth = {
        way: _means(records["depth"], "depth", way)
        for way in ("gradient descent start, no clipping", "random start, clipped to 0.01")
    }
    assert "{:.2f} against {:.2f}".format(*(curve[32.0] for curve in depth.values())) in section
    heads = _means(records["heads"], "mean", "2 layers, more heads")
    brief = _means(records["heads"], "brief", "2 layers, more heads")
    assert f"({heads[5.0]:.2f} against {heads[1.0]:.2f})" in section
    assert f"({brief[5.0]:.2f} against {brief[1.0]:.2f})" in section
