"""The automatic choice beside the best peer as one picture: a bar a workload, how many times as fast as that peer."""

from collections.abc import Sequence

from matplotlib.figure import Figure

from benchmarks.measure.dispatch import Choice
from benchmarks.reports.record import Machine
from benchmarks.reports.table import figure as digits
from memformer_lab.pictures import encode

_OURS, _LOSS = "#1b7f4b", "#b83232"


def draw(machine: Machine, found: Sequence[Choice]) -> bytes:
    """A PNG with a bar for each workload that a peer was timed on; 1 is as fast as the best peer."""
    shown = [(choice, choice.peer, choice.peer_ratio) for choice in found if choice.peer and choice.peer_ratio]
    figure = Figure(figsize=(11, 1.6 + 0.27 * len(shown)), dpi=100, layout="constrained")
    panel = figure.subplots()
    ratios = [ratio for _, _, ratio in shown]
    colors = [_OURS if ratio >= 1 else _LOSS for ratio in ratios]
    places = list(range(len(shown)))
    panel.barh(places, [ratio - 1 for ratio in ratios], left=1, color=colors, height=0.7)
    for place, (_, peer, ratio) in zip(places, shown, strict=True):
        panel.annotate(
            f"{digits(ratio)}  {peer}",
            (max(ratio, 1), place),
            (4, 0),
            textcoords="offset points",
            va="center",
            fontsize=8,
        )
    panel.axvline(1, color="#444444", linewidth=1)
    panel.set_yticks(places, [choice.workload.name for choice, _, _ in shown], fontsize=8)
    panel.invert_yaxis()
    panel.set(
        xscale="log",
        xlim=(min(0.5, 0.8 * min(ratios, default=1)), 6 * max(ratios, default=1)),
        xlabel="times as fast as the best peer, which is named (right of 1 is better)",
    )
    panel.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    panel.grid(alpha=0.3, axis="x")
    panel.margins(y=0.01)
    figure.suptitle(
        'backend="auto" beside the fastest peer, workload by workload\n'
        f"{machine.processor}, threads: {machine.threads}, torch {machine.torch}",
        fontsize=11,
    )
    return encode(figure)
