"""The notebooks run, and show what is kept in them; `python -m tests.notebooks` writes it again."""

import re
from pathlib import Path

import pytest

from tests.notebooks import NOTEBOOKS, Output, code, execute, read


def _text(outputs: list[Output]) -> str:
    return "".join(line for output in outputs for line in output.get("text", []))


def _words_and_numbers(text: str) -> tuple[list[str], list[float]]:
    number = r"-?\d+(?:\.\d+)?"
    return re.sub(number, "#", text).split(), [float(found) for found in re.findall(number, text)]


def test_there_are_two() -> None:
    assert [path.stem for path in NOTEBOOKS] == ["fused_layer", "train_and_compare"]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_cells_show_what_is_kept_with_them(path: Path) -> None:
    """Numbers to 0.1 and a twentieth: another order of sums is another training run."""
    notebook = read(path)
    for cell, outputs in zip(code(notebook), execute(notebook), strict=True):
        words, numbers = _words_and_numbers(_text(outputs))
        kept_words, kept_numbers = _words_and_numbers(_text(cell["outputs"]))
        assert words == kept_words
        assert numbers == pytest.approx(kept_numbers, rel=0.05, abs=0.1)
        assert [output["output_type"] for output in outputs] == [output["output_type"] for output in cell["outputs"]]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_is_one_of_format_4(path: Path) -> None:
    notebook = read(path)
    assert (notebook["nbformat"], notebook["nbformat_minor"]) == (4, 5)
    assert len({cell["id"] for cell in notebook["cells"]}) == len(notebook["cells"])
    for cell in notebook["cells"]:
        assert {"cell_type", "id", "metadata", "source"} <= cell.keys()
        assert (cell["cell_type"] == "code") == ("outputs" in cell)
    counts = [cell["execution_count"] for cell in code(notebook)]
    assert counts == list(range(1, len(counts) + 1))


def test_the_memformer_is_ahead_of_cgd_as_the_notebook_says() -> None:
    (shown,) = (text for cell in code(read(NOTEBOOKS[1])) if "CGD" in (text := _text(cell["outputs"])))
    learned, exact = (list(map(float, line.split()[1:])) for line in shown.splitlines()[1:])
    assert all(ours < theirs for ours, theirs in zip(learned, exact, strict=True))
