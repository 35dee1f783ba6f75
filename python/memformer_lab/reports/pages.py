"""Pages on a folder of results: one HTML file that needs no network, with every figure in it, and one in Markdown."""

from __future__ import annotations

import base64
import math
from collections.abc import Mapping, Sequence
from html import escape

from memformer_lab.reports.curves import LEVEL, Series
from memformer_lab.reports.protocol import Outcome
from memformer_lab.reports.results import Panel
from memformer_lab.reports.verdicts import RULES, Label, Verdict

Figures = Mapping[str, bytes]
"""PNG pictures by the name of their panel or matrix."""

_CLASS: dict[Label, str] = {
    "reproduced": "yes",
    "reproduced in part": "partly",
    "not reproduced": "no",
    "not concluded": "open",
    "inconclusive at this scale": "open",
}

_SAID = {True: "holds", False: "falls", None: "open"}
_MARK = {True: ("passed", "✓"), False: ("failed", "✗"), None: ("undecided", "?")}

_STYLE = """
:root { color-scheme: light dark; --text: #1c1c1c; --page: #fff; --faint: #666; --line: #ddd; --bad: #b3261e; }
@media (prefers-color-scheme: dark) {
  :root { --text: #e6e6e6; --page: #17181a; --faint: #a0a0a0; --line: #3a3c40; --bad: #ff8a80; }
  a { color: #8ab4f8; }
}
body { font: 16px/1.5 system-ui, sans-serif; color: var(--text); background: var(--page); max-width: 62rem;
  margin: 2rem auto; padding: 0 1rem; overflow-wrap: break-word; }
h1 { font-size: 1.7rem; } h2 { font-size: 1.3rem; margin-top: 3rem; border-top: 1px solid var(--line);
  padding-top: 1rem; } h3 { font-size: 1rem; margin: 1.5rem 0 .3rem; }
table { border-collapse: collapse; font-size: .82rem; margin: .5rem 0 1rem; } .wide { overflow-x: auto; }
th, td { padding: .2rem .6rem; text-align: right; border-bottom: 1px solid var(--line); white-space: nowrap; }
th:first-child, td:first-child { text-align: left; } .wide td:first-child { white-space: normal; min-width: 8rem; }
tr.reference td, tr.end td { color: var(--faint); font-style: italic; } tr.end td:first-child { padding-left: 1.4rem; }
table.summary { font-size: .92rem; } .summary td:first-child { white-space: normal; }
img { display: block; max-width: 100%; height: auto; background: #fff; border-radius: .3rem; margin: 1rem 0 .3rem; }
.badge { border-radius: .7rem; padding: .1rem .7rem; font-size: .85rem; color: #fff; white-space: nowrap; }
.yes { background: #1b7f5c; } .partly { background: #a56300; } .no { background: #b3261e; }
.open { background: #5f6368; }
.small { color: var(--faint); font-size: .85rem; } dt { font-weight: 600; } dd { margin: 0 0 .5rem 0; }
li.failed { color: var(--bad); } ul.checks { list-style: none; padding-left: 0; font-size: .9rem; }
@media (max-width: 40rem) {
  body { margin-top: 1rem; } .summary .extra { display: none; } th, td { padding: .2rem .35rem; }
}
"""


def html_page(outcomes: Sequence[tuple[Outcome, Figures]]) -> str:
    """Claims, protocols, rules, verdicts, pictures and tables of all outcomes."""
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
    machines = sorted({outcome.machine for outcome, _ in outcomes})
    return (
        "<p>Claims about Transformers that run optimisers in context, each tested by a stated protocol. A verdict is "
        f"computed from the run's numbers by the rules listed with it. {RULES} Baselines read the whole context and "
        "have their best parameters unless a table says otherwise; errors are on fresh tasks unless a table says "
        "<em>training</em>. Unless said otherwise a number is the natural logarithm of a mean squared query error, as "
        f"mean ± standard deviation over seeds; its {LEVEL:.0%} interval shows when the pointer rests on it. Below a "
        "row of trained models stands its excess over the optimum, or what longer training gains; where neither does, "
        "nothing here says that training came to its end.</p>"
        f'<p class="small">Scale: {escape(", ".join(scales))}. Made with {escape(", ".join(sorted(versions)))}, on '
        f"{escape('; '.join(machines))}.</p>"
    )


def _summary(outcomes: Sequence[tuple[Outcome, Figures]]) -> str:
    rows = []
    for outcome, _ in outcomes:
        experiment = outcome.experiment
        rows.append(
            f'<tr><td><a href="#{escape(experiment.name)}">{experiment.number}. {escape(experiment.title)}</a></td>'
            f'<td>{_badge(outcome)}</td><td class="extra">{outcome.verdict.held}</td>'
            f'<td class="extra">{outcome.cpu_seconds:.0f} s</td></tr>'
        )
    more = "".join(f'<th class="extra">{name}</th>' for name in ("deciding rules that hold", "CPU time"))
    heads = f"<th>experiment</th><th>verdict</th>{more}"
    return f'<table class="summary"><tr>{heads}</tr>{"".join(rows)}</table>'


def _badge(outcome: Outcome) -> str:
    label = outcome.verdict.label
    return f'<span class="badge {_CLASS[label]}">{label}</span>'


def _section(outcome: Outcome, figures: Figures) -> str:
    experiment, results, verdict = outcome.experiment, outcome.results, outcome.verdict
    checks = "".join(
        f'<li class="{_MARK[check.passed][0]}">{_MARK[check.passed][1]} {escape(check.text)}'
        f" <em>({escape(check.part) if check.essential else 'decides nothing'})</em></li>"
        for check in verdict.checks
    )
    parts = [
        f'<h2 id="{escape(experiment.name)}">{experiment.number}. {escape(experiment.title)} {_badge(outcome)}</h2>',
        f"<p><strong>{escape(experiment.find(results).rstrip('.'))}.</strong></p>",
        *([_parts(verdict)] if len(verdict.parts) > 1 else []),
        f"<dl><dt>Claim</dt><dd>{escape(experiment.claim)} <span "
        f"class='small'>({escape(experiment.source)})</span></dd>",
        *(
            f"<dt>Published</dt><dd>{escape(one.what)}{': ' if one.values else ''}"
            f"{', '.join(f'{value:g}' for value in one.values)}</dd>"
            for one in experiment.published
        ),
        f"<dt>Protocol</dt><dd>{escape(experiment.protocol)}</dd></dl>",
        f"<p>A referee would still ask: {escape(experiment.asks)}.</p>",
        f'<ul class="checks">{checks}</ul>',
    ]
    parts += [f"<p>{escape(note)}</p>" for note in results.notes]
    for panel in results.panels:
        # A picture has its title in it.
        shown = _image(figures[panel.name], panel.title) if panel.name in figures else f"<h3>{escape(panel.title)}</h3>"
        parts.append(shown + _table(panel))
    for matrix in results.matrices:
        parts.append(_image(figures[matrix.name], matrix.title))
    if results.numbers:
        rows = "".join(
            f"<tr><td>{escape(name)}</td><td>{value:.4g}</td></tr>" for name, value in results.numbers.items()
        )
        parts.append(f"<details><summary>Further numbers</summary><table>{rows}</table></details>")
    setting = outcome.setting
    parts.append(
        f'<p class="small">memformer-lab reproduce {escape(experiment.name)} --{setting.scale} --seed {setting.seed}, '
        f"{outcome.seconds:.0f} s, of which {outcome.cpu_seconds:.0f} s of processor time.</p>"
    )
    return "\n".join(parts)


def _parts(verdict: Verdict) -> str:
    """What became of each part of the claim."""
    items = "".join(
        f'<li class="{_MARK[holds][0]}">{_MARK[holds][1]} {escape(part)}</li>' for part, holds in verdict.parts.items()
    )
    return f'<ul class="checks">{items}</ul>'


def _image(picture: bytes, title: str) -> str:
    return f'<img alt="{escape(title)}" src="data:image/png;base64,{base64.b64encode(picture).decode()}"/>'


def _table(panel: Panel) -> str:
    places = panel.places
    heads = [panel.categories[int(x)] if panel.categories else f"{x:g}" for x in places]
    head = "".join(f"<th>{escape(name)}</th>" for name in (panel.x_label, *heads))
    rows = []
    for series in panel.series:
        cells = "".join(f"<td{_hint(panel, series, x)}>{_cell(panel, series, x)}</td>" for x in places)
        label = escape(series.label)
        rows.append(f'<tr class="{"reference" if series.reference else "ours"}"><td>{label}</td>{cells}</tr>')
        rows += _ends(panel, series)
    return f'<div class="wide"><table><tr>{head}</tr>{"".join(rows)}</table></div>'


def _ends(panel: Panel, series: Series) -> list[str]:
    """Rows below a trained one: its excess over the optimum where that is known, else what longer training gains."""
    if panel.log_y and series.longer:
        # Differences of what is no logarithm say little.
        cells = "".join(f"<td>{_longer(series, x) if x in series.x else ''}</td>" for x in panel.places)
        return [f'<tr class="end"><td>first seed after longer training</td>{cells}</tr>']
    rows = []
    for name, left in (("excess over the optimum", series.excess), ("gained by longer training", series.gain)):
        found = {x: value for x in series.x if (value := left(x)) is not None}
        cells = "".join(f"<td>{_left(series, x, found[x]) if x in found else ''}</td>" for x in panel.places)
        rows += [f'<tr class="end"><td>{name}</td>{cells}</tr>'] if found else []
    return rows


def _longer(series: Series, x: float) -> str:
    place = series.x.index(x)
    return ", ".join(f"{row[place]:.3g}" for row in series.longer)


def _left(series: Series, x: float, value: float) -> str:
    text = f"{value:.3f}" if math.isfinite(value) else "diverged"
    return (text if series.converged(x) else f"{text}, not converged").replace("-", "\N{MINUS SIGN}")


def _hint(panel: Panel, series: Series, x: float) -> str:
    """A tooltip with the interval of the mean."""
    if x not in series.x or not math.isfinite(series.mean(x)):
        return ""
    low, high = series.interval(x)
    return (
        f' title="{LEVEL:.0%} interval: {low:.{panel.digits + 1}g} to {high:.{panel.digits + 1}g}"'
        if low < high
        else ""
    )


def _cell(panel: Panel, series: Series, x: float) -> str:
    if x not in series.x:
        return ""
    kind = "g" if panel.log_y else "f"
    mean, spread = series.mean(x), series.spread(x)
    if not math.isfinite(mean):
        return "diverged" if mean > 0 or math.isnan(mean) else "-inf"
    text = f"{mean:.{panel.digits}{kind}}"
    text += f" ± {spread:.{panel.digits}{kind}}" if len(series.values) > 1 else ""
    return text.replace("-", "\N{MINUS SIGN}")


def markdown_page(outcomes: Sequence[Outcome]) -> str:
    """The command, the machine, what was claimed and what was found; every figure is read from the outcomes."""
    rows = "\n".join(map(_markdown_row, outcomes))
    notes = "\n".join(filter(None, map(_note, outcomes)))
    return (
        f"# Experiments\n\nWritten by the command, like every figure below:\n\n    {_command(outcomes)}\n\n"
        f"{_circumstances(outcomes)} Each experiment has its numbers in `<name>.json`. Its figures, "
        "`<name>-<panel>.png`, and `report.html`, which shows all of it with protocols, rules and tables, are drawn "
        "from these files by the command with `--out` and this folder, which runs nothing again. A verdict is "
        f"computed from the numbers by the rules that the report lists. {RULES} Errors are natural logarithms of mean "
        f"squared errors on fresh tasks, means over {len(outcomes[0].setting.seeds)} seeds, unless said otherwise.\n\n"
        "| experiment | claim | verdict | found | a referee would still ask |\n|---|---|---|---|---|\n"
        f"{rows}\n\n## Rules that do not hold or are open\n\n{notes}\n"
    )


def _markdown_row(outcome: Outcome) -> str:
    experiment, parts = outcome.experiment, outcome.verdict.parts
    each = "; ".join(f"{part}: {_SAID[holds]}" for part, holds in parts.items())
    cells = (
        f"[{experiment.number}. {experiment.title}]({experiment.name}.json)",
        f"{experiment.claim} ({experiment.source})",
        f"{outcome.verdict.label} ({each})" if len(parts) > 1 else outcome.verdict.label,
        experiment.find(outcome.results),
        experiment.asks,
    )
    return f"| {' | '.join(cell.replace('|', '/') for cell in cells)} |"


def _note(outcome: Outcome) -> str:
    """The rules that do not hold or are open, those that decide first; empty where there are none."""
    parts = [
        f"{what}{'' if essential else ', deciding nothing'}: {'; '.join(texts)}"
        for essential in (True, False)
        for what, passed in (("does not hold", False), ("open", None))
        if (texts := outcome.verdict.rules(passed, essential=essential))
    ]
    return f"- **{outcome.experiment.title}**: {'; '.join(parts)}." if parts else ""


def _command(outcomes: Sequence[Outcome]) -> str:
    settings = sorted({(one.setting.scale, one.setting.seed) for one in outcomes})
    return "\n    ".join(f"memformer-lab reproduce --{scale} --seed {seed}" for scale, seed in settings)


def _circumstances(outcomes: Sequence[Outcome]) -> str:
    machines = "; ".join(sorted({one.machine for one in outcomes}))
    versions = ", ".join(sorted({f"{name} {value}" for one in outcomes for name, value in one.versions.items()}))
    minutes = sum(one.cpu_seconds for one in outcomes) / 60
    return f"It took {minutes:.0f} minutes of processor time on {machines}, with {versions}."
