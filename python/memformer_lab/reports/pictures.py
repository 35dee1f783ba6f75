"""A matplotlib figure as the bytes of a file, in the format that the file's name says."""

from __future__ import annotations

import io
import warnings
from pathlib import Path

import matplotlib

matplotlib.use("Agg")

from matplotlib.figure import Figure

FORMATS = ("png", "svg", "pdf")


def format_of(path: Path) -> str:
    """The format of a figure's file by its suffix; without one, as devices and pipes are named, it is png.

    Raises:
        ValueError: for another suffix.
    """
    suffix = path.suffix.lower().removeprefix(".")
    if suffix and suffix not in FORMATS:
        raise ValueError(f"figure: expected a name that ends in .{', .'.join(FORMATS)}, got {str(path)!r}")
    return suffix or "png"


def encode(figure: Figure, form: str = "png", of: str | None = None) -> bytes:
    """The figure in one of `FORMATS`; a PNG does not say which matplotlib has drawn it.

    Args:
        figure: what is drawn.
        form: the format.
        of: what a PNG says, as its "Description", that it is a picture of.
    """
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        # A name in letters that the font lacks is drawn in boxes, which the figure shows by itself.
        warnings.filterwarnings("ignore", message="Glyph ", category=UserWarning)
        metadata = {"Software": None} | ({} if of is None else {"Description": of}) if form == "png" else None
        figure.savefig(buffer, format=form, metadata=metadata)
    return buffer.getvalue()
