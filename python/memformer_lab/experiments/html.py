"""The report: one HTML file that needs no network, with every figure inside it."""

from __future__ import annotations

import base64
import math
from collections.abc import Mapping, Sequence
from html import escape

from memformer_lab.experiments.record import Outcome
from memformer_lab.experiments.results import LEVEL, Panel, Series
from memformer_lab.experiments.verdicts import Label

Figures = Mapping[str, bytes]
"""PNG pictures by the name of their panel or matrix."""

_CLASS: dict[Label, str] = {"reproduced": "yes", "reproduced with a caveat": "partly", "not reproduced": "no"}

_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; color: #1c1c1c; max-width: 62rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.7rem; } h2 { font-size: 1.3rem; margin-top: 3rem; border-top: 1px solid #ddd; padding-top: 1rem; }
h3 { font-size: 1rem; margin: 1.5rem 0 .3rem; }
table { border-collapse: collapse; font-size: .82rem; margin: .5rem 0 1rem; } .wide { overflow-x: auto; }
th, td { padding: .2rem .6rem; text-align: right; border-bottom: 1px solid #e5e5e5; white-space: nowrap; }
th:first-child, td:first-child { text-align: left; } tr.reference td { color: #777; font-style: italic; }
td.text { white-space: normal; text-align: left; }
img { max-width: 100%; height: auto; }
.badge { border-radius: .7rem; padding: .1rem .7rem; font-size: .85rem; color: #fff; white-space: nowrap; }
.yes { background: #1b7f5c; } .partly { background: #b06f00; } .no { background: #b3261e; }
.small { color: #666; font-size: .85rem; } dt { font-weight: 600; } dd { margin: 0 0 .5rem 0; }
li.failed { color: #b3261e; } ul.checks { list-style: none; padding-left: 0; font-size: .9rem; }
"""


def render(outcomes: Sequence[tuple[Outcome, Figures]]) -> str:
    """The whole page."""
    parts = [
        "<!DOCTYPE html>",
        '<html lang="en"><head><meta charset="utf-8"/>',
        '<meta name="viewport" content="width=device-width, initial-scale=1"/>',
        f"<title>Memformer experiments</title><style>{_STYLE}</style></head><body>",
        "<h1>Memformer experiments</h1>",
        _introduction(outcomes),
        _summary(outcomes),
        *(_section(outcome, figures) for outcome, figures in outcomes),
        "</body></html>",
    ]
    return "\n".join(parts) + "\n"


def _introduction(outcomes: Sequence[tuple[Outcome, Figures]]) -> str:
    versions = {f"{name} {version}" for outcome, _ in outcomes for name, version in outcome.versions.items()}
    scales = sorted({outcome.setting.scale for outcome, _ in outcomes})
    return (
        "<p>Claims about Transformers that run optimisers in context, each tested by a stated protocol. A verdict is "
        "computed from the run's numbers by the rules listed with it: <em>not reproduced</em> if an essential rule "
        "fails, <em>with a caveat</em> if another one fails or the run was short. Baselines read the whole context "
        "and have their best parameters unless a table says otherwise; errors are on fresh tasks unless a table says "
        "<em>training</em>. Unless said otherwise a number is the natural logarithm of a mean squared query error, as "
        "mean ± standard deviation over seeds; its bootstrap interval shows when the pointer rests on it.</p>"
        f'<p class="small">Scale: {escape(", ".join(scales))}. Made with {escape(", ".join(sorted(versions)))}.</p>'
    )


def _summary(outcomes: Sequence[tuple[Outcome, Figures]]) -> str:
    rows = "".join(
        f'<tr><td class="text"><a href="#{escape(outcome.experiment.name)}">{outcome.experiment.number}. '
        f"{escape(outcome.experiment.title)}</a></td><td>{_badge(outcome)}</td><td>{outcome.seconds:.0f} s</td></tr>"
        for outcome, _ in outcomes
    )
    return f"<table><tr><th>experiment</th><th>verdict</th><th>time</th></tr>{rows}</table>"


def _badge(outcome: Outcome) -> str:
    label = outcome.verdict.label
    return f'<span class="badge {_CLASS[label]}">{label}</span>'


def _section(outcome: Outcome, figures: Figures) -> str:
    experiment, results, verdict = outcome.experiment, outcome.results, outcome.verdict
    checks = "".join(
        f'<li class="{"passed" if check.passed else "failed"}">{"✓" if check.passed else "✗"} {escape(check.text)}'
        f"{'' if check.essential else ' <em>(secondary)</em>'}</li>"
        for check in verdict.checks
    )
    parts = [
        f'<h2 id="{escape(experiment.name)}">{experiment.number}. {escape(experiment.title)} {_badge(outcome)}</h2>',
        f"<dl><dt>Claim</dt><dd>{escape(experiment.claim)} <span "
        f"class='small'>({escape(experiment.source)})</span></dd>",
        *(
            f"<dt>Published</dt><dd>{escape(one.what)}{': ' if one.values else ''}"
            f"{', '.join(f'{value:g}' for value in one.values)}</dd>"
            for one in experiment.published
        ),
        f"<dt>Protocol</dt><dd>{escape(experiment.protocol)}</dd></dl>",
        f'<ul class="checks">{checks}</ul>',
    ]
    if verdict.caveats:
        parts.append("<p>Caveats:</p><ul>" + "".join(f"<li>{escape(one)}</li>" for one in verdict.caveats) + "</ul>")
    parts += [f"<p>{escape(note)}</p>" for note in results.notes]
    for panel in results.panels:
        parts.append(f"<h3>{escape(panel.title)}</h3>{_image(figures, panel.name, panel.title)}{_table(panel)}")
    for matrix in results.matrices:
        parts.append(f"<h3>{escape(matrix.title)}</h3>{_image(figures, matrix.name, matrix.title)}")
    if results.numbers:
        rows = "".join(
            f"<tr><td>{escape(name)}</td><td>{value:.4g}</td></tr>" for name, value in results.numbers.items()
        )
        parts.append(f"<details><summary>Further numbers</summary><table>{rows}</table></details>")
    setting = outcome.setting
    parts.append(
        f'<p class="small">memformer-lab reproduce {escape(experiment.name)} --{setting.scale} --seed {setting.seed}, '
        f"{outcome.seconds:.0f} s.</p>"
    )
    return "\n".join(parts)


def _image(figures: Figures, name: str, title: str) -> str:
    data = base64.b64encode(figures[name]).decode()
    return f'<p><img alt="{escape(title)}" src="data:image/png;base64,{data}"/></p>'


def _table(panel: Panel) -> str:
    places = sorted({x for series in panel.series for x in series.x})
    heads = [panel.categories[int(x)] if panel.categories else f"{x:g}" for x in places]
    head = "".join(f"<th>{escape(name)}</th>" for name in (panel.x_label, *heads))
    rows = []
    for series in panel.series:
        cells = "".join(f"<td{_hint(panel, series, x)}>{_cell(panel, series, x)}</td>" for x in places)
        label = escape(series.label)
        rows.append(f'<tr class="{"reference" if series.reference else "ours"}"><td>{label}</td>{cells}</tr>')
    return f'<div class="wide"><table><tr>{head}</tr>{"".join(rows)}</table></div>'


def _hint(panel: Panel, series: Series, x: float) -> str:
    """A tooltip with the bootstrap interval of the mean over seeds."""
    if x not in series.x or len(series.values) == 1 or not math.isfinite(series.mean(x)):
        return ""
    low, high = series.interval(x)
    return (
        f' title="{LEVEL:.0%} bootstrap interval over seeds: {low:.{panel.digits + 1}g} to {high:.{panel.digits + 1}g}"'
    )


def _cell(panel: Panel, series: Series, x: float) -> str:
    if x not in series.x:
        return ""
    kind = "g" if panel.log_y else "f"
    mean, spread = series.mean(x), series.spread(x)
    if not math.isfinite(mean):
        return "diverged" if mean > 0 or math.isnan(mean) else "-inf"
    text = f"{mean:.{panel.digits}{kind}}"
    return f"{text} ± {spread:.{panel.digits}{kind}}" if len(series.values) > 1 else text
