"""The README is the product's face: what it shows must run, and what it names must exist."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

import memformer_kernels
from benchmarks.record import read_report
from benchmarks.workloads import BATCHES
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


@pytest.mark.parametrize(("heading", "record"), [("### Speed", "cpu-w"), ("### Speed, token by token", "cpu-w-full")])
def test_speed_is_what_the_record_says(heading: str, record: str) -> None:
    report = read_report(ROOT / "benchmarks" / "results" / f"{record}.json")
    found = {
        (timing.provider, timing.workload.batch): timing.quantiles.median_ms
        for timing in report.timings
        if timing.quantiles is not None
    }
    table = _rows(f"{heading}\n")
    assert table.keys() == {provider for provider, _ in found}
    for provider, cells in table.items():
        for batch, cell in zip(BATCHES, cells, strict=False):
            expected = found.get((provider, batch))
            assert cell == ("" if expected is None else f"{expected:,.0f}" if expected >= 100 else f"{expected:.3g}")


def test_ratios_and_overheads_are_what_the_records_say() -> None:
    """Every figure of the sentences on speed is worked out from the records."""
    results = ROOT / "benchmarks" / "results"
    for record, batch in (("cpu-w", 100_000), ("cpu-w", 1_000_000), ("cpu-w-full", 100_000)):
        timings = [
            (timing.provider, timing.quantiles.median_ms)
            for timing in read_report(results / f"{record}.json").timings
            if timing.workload.batch == batch and timing.quantiles is not None
        ]
        ours = next(ms for provider, ms in timings if provider == "memformer_kernels (cpu)")
        peer = min(ms for provider, ms in timings if not provider.startswith("memformer_kernels"))
        assert f"{peer / ours:.1f} times" in README, (record, batch, peer / ours)
    for comparison in json.loads((results / "overhead-cpu.json").read_text())["comparisons"]:
        ratio = comparison["public"]["median_us"] / comparison["empty"]["median_us"]
        assert re.search(rf"^\| {re.escape(comparison['call'])} \|.*\| {ratio:.2f} \|$", README, re.MULTILINE)


def test_the_trainers_table_is_its_record() -> None:
    """Milliseconds of every contender, and how many times as quick as the best peer a model's step is."""
    record = json.loads((ROOT / "benchmarks" / "results" / "trainer-cpu.json").read_text())

    def figure(value: float) -> str:
        return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"

    for kind, tasks in (("fresh", "fresh tasks every step"), ("given", "given tasks")):
        best = min(contender["median_ms"] for contender in record[kind] if contender["peer"])
        for contender in record[kind]:
            name = contender["contender"] if contender["peer"] else f"**{contender['contender']}**"
            name += f", {contender['models']} models" if contender["models"] > 1 else ""
            ratio = best * contender["models"] / contender["median_ms"]
            assert f"| {name} | {tasks} | {figure(contender['median_ms'])} | {figure(ratio)} |" in README
