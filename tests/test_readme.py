"""The README is the product's face: what it shows must run, and what it names must exist."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

import memformer_kernels
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
    sources = [*ROOT.glob("memformer_kernels/**/*.py"), *ROOT.glob("python/**/*.py"), *ROOT.glob("benchmarks/*.py")]
    read = set()
    for source in sources:
        read |= set(re.findall(r"""(?:environ(?:\.get)?|getenv)[\[(]\s*["']([A-Z_]+)["']""", source.read_text()))
    assert read <= table
