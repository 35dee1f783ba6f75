"""What a panel's picture shows: every series in its own colour, every value, curves that coincide."""

import io
import math

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from PIL import Image

from memformer_lab.reports.curves import Series, series
from memformer_lab.reports.panels import COLORS, coinciding, color_of, draw_panel
from memformer_lab.reports.results import Panel

DEPTHS = (1, 2, 3, 4)


def _panel(*curves: Series, log_y: bool = False, categories: tuple[str, ...] = ()) -> Panel:
    return Panel("p", "title", "depth", "error", curves, log_y=log_y, categories=categories)


def _pixels(picture: bytes) -> set[tuple[int, ...]]:
    with Image.open(io.BytesIO(picture)) as image:
        return {tuple(pixel) for pixel in np.unique(np.asarray(image.convert("RGB")).reshape(-1, 3), axis=0).tolist()}


def _rgb(color: str) -> tuple[int, ...]:
    return tuple(round(255 * part) for part in to_rgb(color))


@pytest.fixture
def notes(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, float]]:
    """The numbers that stand at an edge, each with its height: 1 above, 0 below."""
    found: list[tuple[str, float]] = []
    annotate = Axes.annotate

    def kept(self: Axes, text: str, xy: tuple[float, float], **more: object) -> object:
        found.append((text, xy[1]))
        return annotate(self, text, xy, **more)

    monkeypatch.setattr(Axes, "annotate", kept)
    return found


@pytest.mark.parametrize("same", [False, True], ids=["apart", "upon each other"])
@pytest.mark.parametrize("categories", [(), ("a", "b", "c", "d")], ids=["curves", "categories"])
def test_every_series_is_there_in_its_own_colour(same: bool, categories: tuple[str, ...]) -> None:
    places = range(4) if categories else DEPTHS
    curves = [series(f"s{k}", places, [-x - (0 if same else k) for x in DEPTHS]) for k in range(len(COLORS))]
    panel = _panel(*curves, categories=categories)
    pixels = _pixels(draw_panel(panel))
    assert {_rgb(color_of(panel, index)) for index in range(len(curves))} <= pixels


def test_curves_that_coincide_are_found() -> None:
    one, twin, other = ([-x + shift for x in DEPTHS] for shift in (0.0, 0.01, 1.0))
    late = [-1.0, -2.0, -3.0, -9.0]  # upon the first at three of four places
    panel = _panel(*(series(str(k), DEPTHS, row) for k, row in enumerate((one, other, twin, late))))
    assert coinciding(panel) == [[0, 2, 3], [1]]


def test_what_is_far_off_stands_at_the_edge_with_its_number(notes: list[tuple[str, float]]) -> None:
    curves = series("a", DEPTHS, (1.0, 42.5, math.inf, math.nan)), series("b", DEPTHS, (0.0, -math.inf, 1e11, 2.0))
    draw_panel(_panel(*curves))
    assert notes == [("42.5", 1.0), ("diverged", 1.0), ("diverged", 1.0), ("-inf", 0.0), ("1e+11", 1.0)]


def test_no_value_is_left_out_of_a_logarithmic_picture(notes: list[tuple[str, float]]) -> None:
    draw_panel(_panel(series("a", DEPTHS, (1.0, 0.0, 1e30, math.inf)), log_y=True))
    assert notes == [("0", 0.0), ("diverged", 1.0)]
