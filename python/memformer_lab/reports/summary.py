"""A page in Markdown on a folder of results: the command, the machine, what was claimed, what was found."""

from __future__ import annotations

from collections.abc import Sequence

from memformer_lab.reports.record import Outcome


def summarise(outcomes: Sequence[Outcome]) -> str:
    """The whole page; every figure in it is read from the outcomes."""
    rows = "\n".join(map(_row, outcomes))
    notes = "\n".join(_note(one) for one in outcomes if one.verdict.failed or one.verdict.remarks)
    return (
        f"# Experiments\n\nWritten by the command, like every figure below:\n\n    {_command(outcomes)}\n\n"
        f"{_circumstances(outcomes)} Each experiment has its numbers in `<name>.json` and its figures in "
        "`<name>-<panel>.png`; `report.html` shows all of it with protocols, rules and tables. A verdict is computed "
        "from the numbers by the rules that the report lists: *not reproduced* if an essential rule fails, *with a "
        "caveat* if another one fails. Errors are natural logarithms of mean squared errors on fresh tasks, means over "
        f"{len(outcomes[0].setting.seeds)} seeds, unless said otherwise.\n\n"
        "| experiment | claim | verdict | rules that hold | found |\n|---|---|---|---|---|\n"
        f"{rows}\n\n## What qualifies the verdicts\n\n{notes}\n"
    )


def _row(outcome: Outcome) -> str:
    experiment, checks = outcome.experiment, outcome.verdict.checks
    cells = (
        f"[{experiment.number}. {experiment.title}]({experiment.name}.json)",
        f"{experiment.claim} ({experiment.source})",
        outcome.verdict.label,
        f"{sum(check.passed for check in checks)} of {len(checks)}",
        experiment.find(outcome.results),
    )
    return f"| {' | '.join(cell.replace('|', '/') for cell in cells)} |"


def _note(outcome: Outcome) -> str:
    failed, remarks = outcome.verdict.failed, outcome.verdict.remarks
    parts = [*([f"does not hold: {'; '.join(failed)}"] if failed else []), *remarks]
    return f"- **{outcome.experiment.title}**: {'; '.join(parts)}."


def _command(outcomes: Sequence[Outcome]) -> str:
    settings = sorted({(one.setting.scale, one.setting.seed) for one in outcomes})
    return "\n    ".join(f"memformer-lab reproduce --{scale} --seed {seed}" for scale, seed in settings)


def _circumstances(outcomes: Sequence[Outcome]) -> str:
    machines = "; ".join(sorted({one.machine for one in outcomes}))
    versions = ", ".join(sorted({f"{name} {value}" for one in outcomes for name, value in one.versions.items()}))
    minutes = sum(one.cpu_seconds for one in outcomes) / 60
    return f"It took {minutes:.0f} minutes of processor time on {machines}, with {versions}."
