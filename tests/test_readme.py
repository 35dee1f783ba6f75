"""The README is the product's face: what it shows must run, and what it names must exist."""

import json
import re
import subprocess
import sys
from pathlib import Path

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
    folders = ("memformer_kernels/**", "python/**", "benchmarks", "native_build")
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
