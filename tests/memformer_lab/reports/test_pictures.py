"""Figures as the bytes of a file."""

from pathlib import Path

import pytest
from matplotlib.figure import Figure

from memformer_lab.reports.pictures import FORMATS, encode

ROOT = Path(__file__).parents[3]
STARTS = {"png": b"\x89PNG", "svg": b"<?xml", "pdf": b"%PDF"}


@pytest.mark.parametrize("form", FORMATS)
def test_every_format(form: str, recwarn: pytest.WarningsRecorder) -> None:
    assert encode(Figure(), form).startswith(STARTS[form])
    assert not recwarn.list


@pytest.mark.parametrize("form", FORMATS)
def test_letters_that_the_font_lacks_are_drawn_quietly(form: str, recwarn: pytest.WarningsRecorder) -> None:
    figure = Figure()
    figure.suptitle("目标")
    assert encode(figure, form).startswith(STARTS[form])
    assert not recwarn.list


def test_a_png_does_not_say_what_has_drawn_it() -> None:
    assert b"atplotlib" not in encode(Figure())


def test_pictures_are_made_in_one_place() -> None:
    """Those of the docs are of one kind, whichever package draws them."""
    folders = ("python/memformer_lab", "benchmarks", "examples")
    files = [path for folder in folders for path in (ROOT / folder).rglob("*.py")]
    assert [path.name for path in files if "savefig(" in path.read_text(encoding="utf-8")] == ["pictures.py"]
    assert [path.name for path in files if "os.replace(" in path.read_text(encoding="utf-8")] == ["files.py"]
