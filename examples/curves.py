"""What the examples share: a figure of loss curves, and where figures go."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from memformer_lab.runs.files import write_atomically

RESULTS = Path("results")
"""Where figures go unless told otherwise, below the current folder."""


def draw(
    path: Path, curves: Mapping[str, tuple[Sequence[int], Sequence[float]]], title: str, loss: str, log: bool = False
) -> None:
    """Writes a small PNG of one loss curve a model, whole or not at all. Needs matplotlib."""
    from matplotlib.figure import Figure

    from memformer_lab.reports.pictures import encode

    figure = Figure(figsize=(6, 3.6), dpi=100, layout="constrained")
    axes = figure.subplots()
    for name, (steps, losses) in curves.items():
        axes.plot(steps, losses, label=name)
    axes.set(title=title, xlabel="step", ylabel=loss, yscale="log" if log else "linear")
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
    write_atomically(path, encode(figure))
