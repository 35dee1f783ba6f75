"""Records: results written as JSON, a row a line, and read back."""

import json
from collections.abc import Callable, Sequence
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, TypeVar

from benchmarks.measure.results import Machine, Quantiles, Report, Timing
from benchmarks.measure.workloads import Workload
from memformer_lab.runs.files import write_atomically

Read = TypeVar("Read")

FORMAT = 2
"""Of files of reports."""


def write_json(path: Path, *parts: Any) -> None:
    """Write dictionaries and dataclasses as one JSON object, so that the file is either the old one or the whole new
    one. Of a dataclass its fields are written, and the properties that its RECORDED names.

    Raises:
        ValueError: a figure that is not finite.
    """
    value = {key: item for part in parts for key, item in _plain(part).items()}
    write_atomically(path, (_laid_out(value, "") + "\n").encode())


def read_json(path: Path, form: int, kind: str, build: Callable[[dict[str, Any]], Read]) -> Read:
    """What `build` makes of a record.

    Raises:
        OSError: no file.
        ValueError: a file that is not `kind`, or one of another format.
    """
    try:
        content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        if content["format"] != form:
            raise ValueError(f"format is {content['format']!r}, expected {form}")
        return build(content)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path} is not {kind}: {error}") from error


def write_reports(path: Path, reports: Sequence[Report]) -> None:
    """Write one run or several in one file, a line a timing, figures to six digits.

    Raises:
        ValueError: a figure that is not finite.
    """
    found = []
    for report in reports:
        rows: dict[Workload, list[dict[str, Any]]] = {}
        for timing in report.timings:
            rows.setdefault(timing.workload, []).append(_row(timing))
        timed = [{"workload": workload, "timings": timings} for workload, timings in rows.items()]
        head = {"began": report.began, "seconds": report.seconds, "machine": report.machine}
        found.append({**head, "workloads": timed})
    write_json(path, {"format": FORMAT, "reports": found})


def read_reports(path: Path) -> tuple[Report, ...]:
    """The reports written by `write_reports`.

    Raises:
        OSError: no file.
        ValueError: another file, or one of another format.
    """

    def build(content: dict[str, Any]) -> tuple[Report, ...]:
        return tuple(map(_report, content["reports"]))

    return read_json(path, FORMAT, "a file of benchmark reports", build)


def read_report(path: Path) -> Report:
    """The one report of a file.

    Raises:
        OSError: no file.
        ValueError: another file, one of another format, or of several reports.
    """
    reports = read_reports(path)
    if len(reports) != 1:
        raise ValueError(f"{path} has {len(reports)} reports, expected one")
    return reports[0]


def _row(timing: Timing) -> dict[str, Any]:
    """What a timing says, without its workload and what it has by default."""
    row = {
        field.name: getattr(timing, field.name)
        for field in fields(timing)
        if field.name != "workload" and getattr(timing, field.name) != field.default
    }
    if timing.quantiles is not None:
        row["quantiles"] = {name: _rounded(value) for name, value in vars(timing.quantiles).items()}
    return {name: _rounded(value) for name, value in row.items()}


def _rounded(value: Any) -> Any:
    return float(f"{value:.6g}") if isinstance(value, float) else value


def _report(content: dict[str, Any]) -> Report:
    timings = []
    for one in content["workloads"]:
        workload = Workload(**one["workload"])
        for row in one["timings"]:
            quantiles = Quantiles(**row.pop("quantiles")) if "quantiles" in row else None
            timings.append(Timing(workload=workload, quantiles=quantiles, **row))
    return Report(content["began"], content["seconds"], Machine(**content["machine"]), tuple(timings))


def _plain(value: Any) -> Any:
    """A value of dictionaries, lists and numbers alone."""
    if is_dataclass(value) and not isinstance(value, type):
        recorded = {name: getattr(value, name) for name in getattr(value, "RECORDED", ())}
        value = {**{field.name: getattr(value, field.name) for field in fields(value)}, **recorded}
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value


def _laid_out(value: Any, indent: str) -> str:
    """JSON of which a list's dictionaries have a line each, and what holds such lists a line a key."""
    if not (_has_rows(value) or (indent == "" and isinstance(value, dict))):
        return json.dumps(value, allow_nan=False)
    inner = indent + " "
    if isinstance(value, list):
        items, brackets = [_laid_out(item, inner) for item in value], "[]"
    else:
        items = [f"{json.dumps(key)}: {_laid_out(item, inner)}" for key, item in value.items()]
        brackets = "{}"
    return brackets[0] + "\n" + ",\n".join(inner + item for item in items) + "\n" + indent + brackets[1]


def _has_rows(value: Any) -> bool:
    if isinstance(value, list):
        return any(isinstance(item, dict) or _has_rows(item) for item in value)
    return isinstance(value, dict) and any(map(_has_rows, value.values()))
