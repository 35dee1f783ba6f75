"""The README is the product's face: what it shows must run, and what it names must exist."""

import re

import pytest

import memformer_kernels
from benchmarks import readme
from memformer_kernels.nn import RULES
from tests.pages import ROOT, examples, one_line, rows, run, section, text_of
from tests.test_lab_page import experiments, means, memory_of_gdpp, number, verdicts

README = text_of("README.md")
EXAMPLES = examples("README.md")
SHIFTED = {"LFOM": "LFOM, one covariance", "CGD": "CGD, 4 steps"}


@pytest.mark.parametrize("example", EXAMPLES[1:], ids=range(1, len(EXAMPLES)))
def test_examples_run_as_pasted(example: str) -> None:
    printed = run(example)
    assert printed.strip()
    assert "nan" not in printed


def test_the_first_example_learns() -> None:
    # A model that learnt nothing has the response's variance, d = 5.
    assert float(run(EXAMPLES[0]).split()[-1]) < 0.5


def test_it_stays_one_page() -> None:
    assert len(README.splitlines()) <= 150


def test_rules_and_functions_are_those_of_the_package() -> None:
    assert set(re.findall(r"^\| `([a-z_]+)` \|", README, re.MULTILINE)) >= set(RULES)
    named = re.findall(r"`([a-z_]+)\(", README)
    for name in named:
        assert hasattr(memformer_kernels, name), name
    functions = {"context_gram", "lfom_solve", "linear_attention", "register_update", "explain", "build_info"}
    functions |= {name for name in memformer_kernels.__all__ if name.startswith("memformer_")} | {"train_steps"}
    assert set(named) >= functions


def test_a_function_is_defined_in_the_file_that_it_links_to() -> None:
    linked = re.findall(r"^\| \[`([a-z_]+)\(.*?\)`\]\((memformer_kernels/\w+\.py)\)", README, re.MULTILINE)
    assert len(linked) > 5
    for name, path in linked:
        assert f"\ndef {name}(" in text_of(path), name


def test_what_is_said_of_hardware_is_what_the_records_say() -> None:
    """A GPU is claimed as soon as a record is of one, and not before."""
    ran = rows(text_of("benchmarks/results/README.md"))
    without = [part for part, cells in ran.items() if cells[0] == "no GPU yet"]
    assert without == ["backend cuda: every kernel", "backend triton: every kernel", "backend torch on a GPU"]
    table = rows(README.split("\n## ")[0])
    assert table["CUDA kernels, Triton kernels, torch backend on a GPU"][0].startswith("no GPU yet;")
    assert table["CPU kernels for NEON"][0].startswith(ran["backend cpu, NEON"][0])
    (hardware,) = {cells[0] for part, cells in ran.items() if part.startswith(("backend cpu (", "backends cpu and"))}
    assert table["native CPU kernels, torch backend, lab"][0].startswith(f"yes: {hardware} (")
    for page in ("docs/performance.md", "docs/training.md", "docs/install.md"):
        assert re.search(
            r"(?:not run on hardware|Nothing here has run on a GPU|has run on hardware yet)", one_line(text_of(page))
        )
    assert {record["machine"] for record in experiments().values()} == {hardware}
    machines = {path.name for path in (ROOT / "benchmarks" / "results").glob("*.json")}
    assert machines == {name for cells in ran.values() for name in re.findall(r"[\w-]+\.json", " ".join(cells))}


def test_the_figures_of_speed_are_what_the_records_say() -> None:
    shown = [name for page in readme.PAGES for name in re.findall(r"<!-- record: ([a-z-]+) -->", text_of(page))]
    assert sorted(shown) == sorted(readme.PARTS)
    assert readme.stale(ROOT) == {}, "run `python -m benchmarks readme`"


def test_the_table_of_speed_is_that_of_the_pages_with_all_peers() -> None:
    times = {tuple(row[:2]): row[-1] for row in (line.strip("| ").split(" | ") for line in README.splitlines())}
    told = one_line(text_of("docs/performance.md"))
    w, full = "loss and gradients (W)", "gamma for each token and feature (W_full)"
    assert f"The native kernels are {times[w, '100,000']} times as fast as the fastest peer at B = 100,000" in told
    assert f"and {times[w, '1,000,000']} times at B = 1,000,000" in told
    assert f"Here the native kernels are {times[full, '100,000']} times as fast" in told
    assert {key[0].removeprefix("where we lose: "): value for key, value in times.items() if "lose" in key[0]} == {
        name: cells[-1] for name, cells in rows(section("docs/performance.md", "## The automatic choice")).items()
    }


def test_the_bullets_of_the_literature_are_what_the_experiments_found() -> None:
    found, said = experiments(), one_line(section("README.md", "## What holds of the literature"))
    assert verdicts(found) in said
    assert said.count(" - ") == 3

    def last(name: str, panel: str, label: str) -> str:
        return f"{means(found[name], panel, label)[4.0]:.2f}"

    learnt, plain = ([last("lfom", kind, who) for who in ("LFOM", "CGD")] for kind in ("non-isotropic", "isotropic"))
    assert "(ln of the error {} against {})".format(*learnt) in said
    assert "worse where there is none ({} against {})".format(*plain) in said
    assert float(learnt[0]) < float(learnt[1])
    assert float(plain[0]) > float(plain[1])

    shift = {who: means(found["shift"], "shift", label)[4.0] for who, label in SHIFTED.items()}
    assert f"ln of the relative error is {shift['LFOM']:.1f}, conjugate gradients have {shift['CGD']:.2f}" in said
    assert shift["LFOM"] > shift["CGD"]

    fixed = abs(number(found["memory"], "what memory takes off ln of the optimum, A free"))
    assert f"Memory takes {fixed:.2f} off ln of the best error while features stay" in said
    assert f"and {memory_of_gdpp('median')} off ln of the median with Bm free" in said
