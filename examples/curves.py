"""What the examples share: a figure of loss curves, and the place of the docs' figures."""

import io
from collections.abc import Mapping, Sequence
from pathlib import Path

DOCS = Path(__file__).resolve().parents[1] / "docs"


def draw(
    path: Path, curves: Mapping[str, tuple[Sequence[int], Sequence[float]]], title: str, loss: str, log: bool = False
) -> None:
    """Writes a small PNG of one loss curve a model, whole or not at all. Needs matplotlib."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 3.6), dpi=100, layout="constrained")
    axes = figure.subplots()
    for name, (steps, losses) in curves.items():
        axes.plot(steps, losses, label=name)
    axes.set(title=title, xlabel="step", ylabel=loss, yscale="log" if log else "linear")
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
    drawn = io.BytesIO()
    figure.savefig(drawn, format="png", metadata={"Software": None})
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.part")
    temporary.write_bytes(drawn.getvalue())
    temporary.replace(path)
