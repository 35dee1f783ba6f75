"""Time and memory of attention over the length of the sequence, as one picture on logarithmic axes."""

from matplotlib.figure import Figure

from benchmarks.measure.attention import HEADS, WIDTHS
from benchmarks.reports.attention_record import Record
from memformer_lab.pictures import encode

_COLOURS = ("#1b7f4b", "#444444", "#b7791f", "#2b6cb0")


def draw(record: Record) -> bytes:
    """A PNG: milliseconds and megabytes of every provider, full and causal, for the first of the widths."""
    figure = Figure(figsize=(10, 6.6), dpi=110, layout="constrained")
    panels = figure.subplots(2, 2, sharex=True)
    names = list(dict.fromkeys(timing.provider for timing in record.attention))
    for column, causal in enumerate((False, True)):
        for name, colour in zip(names, _COLOURS, strict=False):
            case = [
                t
                for t in record.attention
                if t.provider == name and t.case.width == WIDTHS[0] and t.case.causal == causal
            ]
            lengths = [t.case.tokens for t in case]
            panels[0][column].plot(lengths, [t.ms for t in case], "o-", color=colour, markersize=4, label=name)
            # Less than one does not show beside what a process holds.
            held = [(t.case.tokens, t.peak_mb) for t in case if t.peak_mb and t.peak_mb >= 1]
            panels[1][column].plot([n for n, _ in held], [mb for _, mb in held], "o-", color=colour, markersize=4)
        panels[0][column].set(title="causal" if causal else "full", ylabel="ms")
        panels[1][column].set(xlabel="tokens", ylabel="MB at the peak")
    for panel in panels.flat:
        # A platform that tells no memory leaves its panels empty.
        if any(len(line.get_xdata()) for line in panel.lines):
            panel.set(xscale="log", yscale="log")
        panel.grid(alpha=0.3)
    panels[0][0].legend(frameon=False, fontsize=8)
    machine = record.machine
    figure.suptitle(
        f"Attention, forward + backward, {HEADS} heads of {WIDTHS[0]}, float32\n"
        f"{machine.gpu or machine.processor}, threads: {machine.threads}, torch {machine.torch}"
    )
    return encode(figure)
