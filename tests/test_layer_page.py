"""docs/layer.md: its code runs as pasted, and what it names exists."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

import memformer_kernels
from benchmarks.measure import attention
from benchmarks.measure.attention import AttentionCase
from benchmarks.reports.attention import read
from benchmarks.reports.tables import attention_cell
from memformer_kernels import nn

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "layer.md").read_text(encoding="utf-8")
MEASURED = PAGE.split("## What was measured")[1].split("\n## ")[0]
RECORD = read(ROOT / "benchmarks" / "results" / "attention-cpu.json")
EXAMPLES = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)


@pytest.mark.parametrize("example", EXAMPLES, ids=range(len(EXAMPLES)))
def test_examples_run_as_pasted(example: str) -> None:
    done = subprocess.run([sys.executable, "-c", example], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "torch.Size" in done.stdout


def test_what_is_named_exists() -> None:
    assert len(EXAMPLES) == 2
    for name in re.findall(r"`nn\.(\w+)`", PAGE):
        assert hasattr(nn, name), name
    for name in ("linear_attention", "register_update"):
        assert f"`{name}`" in PAGE
        assert hasattr(memformer_kernels, name)
    assert set(re.findall(r'^\| `"(\w+)"` \|', PAGE, re.MULTILINE)) == set(nn.MEMORIES)
    for picture in re.findall(r"!\[[^]]*\]\(([^)]+)\)", PAGE):
        assert (ROOT / "docs" / picture).is_file(), picture
    for module in re.findall(r"python -m (examples\.\w+)", PAGE):
        assert (ROOT / Path(*module.split("."))).with_suffix(".py").is_file()


def test_coefficients_are_as_many_as_the_table_says() -> None:
    formulas = {"none": lambda n, d: 0, "cgd": lambda n, d: (2 * n - 1) * d}
    formulas |= {"lfom": lambda n, d: n * (n + 1) * d // 2, "lfom_residual": lambda n, d: n * (n - 1) * d // 2}
    said = dict(re.findall(r'^\| `"(\w+)"` \| .* \| (.*?) \| [\w ]+ \|$', PAGE, re.MULTILINE))
    assert said == {"none": "0", "cgd": "(2 L - 1) D", "lfom": "L (L + 1) D / 2", "lfom_residual": "L (L - 1) D / 2"}
    for memory, formula in formulas.items():
        made = nn.RegisterMemory(64, 4, memory=memory)
        assert sum(p.numel() for p in made.parameters()) == formula(4, 64)
    assert f"Memory adds\n{formulas['lfom'](4, 64)} numbers" in PAGE


def _cells(line: str) -> list[str]:
    return [cell.replace("*", "").strip() for cell in line.strip("|").split("|")]


def test_attention_tables_are_the_record() -> None:
    lengths = sorted({timing.case.tokens for timing in RECORD.attention})
    for width in attention.WIDTHS:
        lines = [line for line in MEASURED.split(f"Heads of {width}:")[1].strip().split("\n\n")[0].splitlines()]
        assert _cells(lines[0])[1:] == [f"N = {n:,}" for n in lengths]
        shown = {cells[0]: cells[1:] for cells in map(_cells, lines[2:])}
        timings = [timing for timing in RECORD.attention if timing.case.width == width]
        names = {(t.provider, t.case.causal): f"{t.provider}, {'causal' if t.case.causal else 'full'}" for t in timings}
        assert shown.keys() == set(names.values())
        for (provider, causal), name in names.items():
            found = {t.case.tokens: t for t in timings if (t.provider, t.case.causal) == (provider, causal)}
            assert shown[name] == [attention_cell(found.get(n)) for n in lengths], name


def test_the_update_table_is_the_record() -> None:
    lines = [line for line in MEASURED.splitlines() if re.match(r"\| (forward|backward) ", line)]
    shown = {tuple(cells[:3]): cells[3:] for cells in map(_cells, lines)}
    expected: dict[tuple[str, ...], list[str]] = {}
    for timing in sorted(RECORD.updates, key=lambda timing: timing.case.registers):
        key = (timing.name, timing.case.granularity, str(timing.case.threads))
        expected.setdefault(key, []).append(f"{timing.ms:.3g} ms, {timing.of_copy:.2f}")
    assert shown == expected


def test_what_is_said_of_the_tables_is_so() -> None:
    took: dict[AttentionCase, dict[str, float]] = {}
    for timing in RECORD.attention:
        took.setdefault(timing.case, {})[timing.provider] = timing.ms
    for causal in (False, True):
        ratios = [
            by_name["memformer_kernels"] / by_name["the same, torch.compile"]
            for case, by_name in took.items()
            if case.causal == causal
        ]
        assert f"{min(ratios):.2f} to {max(ratios):.2f} times as long" in MEASURED
    least = {
        threads: min(timing.of_copy for timing in RECORD.updates if timing.case.threads == threads)
        for threads in (1, RECORD.machine.threads)
    }
    said = re.sub(r"\s+", " ", MEASURED)
    assert f"at least {min(least.values()):.2f} of" in said
    assert f"on both threads the least is {least[RECORD.machine.threads]:.2f}" in said
    assert f"{RECORD.machine.copy_gb_s:.0f} GB/s" in MEASURED
    assert RECORD.missing == []
