"""What a run leaves behind: frozen results, written as JSON and read back."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from benchmarks.measure.workloads import Workload
from memformer_lab.files import write_atomically

FORMAT = 1


@dataclass(frozen=True)
class Machine:
    """Where a run took place. Rates are measured in the run itself.

    copy_gb_s      GB/s of a large tensor copy, read and write both counted
    read_gb_s      GB/s of reading a large tensor; None in records made before it was measured
    fma_gflop_s    GFLOP/s of a large float32 matrix product, a multiply-add being two operations
    revision       git revision of the tree, with "+" behind it if files differ from it; "unknown" outside git
    """

    device: str
    processor: str
    threads: int
    copy_gb_s: float
    fma_gflop_s: float
    python: str
    torch: str
    package: str
    revision: str
    read_gb_s: float | None = None
    gpu: str | None = None
    driver: str | None = None
    cuda: str | None = None


@dataclass(frozen=True)
class Quantiles:
    """Milliseconds of one pass over the whole batch, and over how many runs."""

    median_ms: float
    q10_ms: float
    q90_ms: float
    runs: int

    @property
    def spread(self) -> float:
        """Half the distance from q10 to q90, relative to the median."""
        return (self.q90_ms - self.q10_ms) / (2 * self.median_ms)


@dataclass(frozen=True)
class Timing:
    """One provider on one workload.

    status            timed: passed the gate and was timed; rejected: wrong result; failed: raised; unsupported;
                      skipped: too slow to run at this size
    reason            why it was not timed, empty otherwise
    loss_error, gradient_error  relative errors against float64; the gradient's is its worst parameter's
    first_call_s      seconds of the first call, compilation included
    peak_bytes        memory one pass takes beyond its inputs, where the platform tells
    solver            solves the tasks instead of running the network: shown beside the peers, and not one of them
    """

    provider: str
    peer: bool
    workload: Workload
    status: Literal["timed", "rejected", "failed", "unsupported", "skipped"]
    reason: str = ""
    quantiles: Quantiles | None = None
    loss_error: float | None = None
    gradient_error: float | None = None
    first_call_s: float | None = None
    peak_bytes: int | None = None
    solver: bool = False


@dataclass(frozen=True)
class Report:
    """One run of the benchmarks: when it began (ISO 8601, UTC), how many seconds it took, where, and what came out."""

    began: str
    seconds: float
    machine: Machine
    timings: tuple[Timing, ...]

    def best_peer_ms(self, workload: Workload) -> float | None:
        """Median of the fastest peer on this workload, None if no peer was timed."""
        medians = [
            timing.quantiles.median_ms
            for timing in self.timings
            if timing.workload == workload and timing.peer and not timing.solver and timing.quantiles is not None
        ]
        return min(medians, default=None)


def write_json(path: Path, value: dict[str, Any]) -> None:
    """Write JSON so that the file is either the old one or the whole new one."""
    write_atomically(path, (json.dumps(value, indent=1, allow_nan=False) + "\n").encode())


def write_report(path: Path, report: Report) -> None:
    """Write a report atomically. Figures must be finite (ValueError otherwise)."""
    write_json(path, {"format": FORMAT, **asdict(report)})


def write_reports(path: Path, reports: Sequence[Report]) -> None:
    """Write several runs in one small file, a line a timing, atomically. Each is of one workload.

    Raises:
        ValueError: a report of several workloads, or a figure that is not finite.
    """
    blocks = []
    for report in reports:
        (workload,) = {timing.workload for timing in report.timings}
        head = {"began": report.began, "seconds": report.seconds, "machine": asdict(report.machine)}
        timings = ",\n  ".join(_line(_told(timing)) for timing in report.timings)
        lines = [f"{_line(key)}: {_line(value)}" for key, value in {**head, "workload": asdict(workload)}.items()]
        lines.append(f'"timings": [\n  {timings}\n ]')
        blocks.append("{" + ",\n ".join(lines) + "}")
    joined = ",\n".join(blocks)
    write_atomically(path, f'{{"format": {FORMAT}, "reports": [\n{joined}\n]}}\n'.encode())


def read_reports(path: Path) -> tuple[Report, ...]:
    """The reports written by `write_reports`.

    Raises:
        ValueError: not such a file, or one of another format.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if content["format"] != FORMAT:
            raise ValueError(f"format is {content['format']!r}, expected {FORMAT}")
        return tuple(
            Report(
                began=one["began"],
                seconds=one["seconds"],
                machine=Machine(**one["machine"]),
                timings=tuple(_timing({**timing, "workload": dict(one["workload"])}) for timing in one["timings"]),
            )
            for one in content["reports"]
        )
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path} is not a file of benchmark reports: {error}") from error


def _line(value: Any) -> str:
    return json.dumps(value, allow_nan=False)


def _told(timing: Timing) -> dict[str, Any]:
    """What a timing says beside its workload, figures to six digits."""
    content = {
        key: value for key, value in asdict(timing).items() if not (value is None or value is False or value == "")
    }
    del content["workload"]
    rounded: dict[str, Any] = {key: float(f"{x:.6g}") for key, x in content.items() if isinstance(x, float)}
    if timing.quantiles is not None:
        rounded["quantiles"] = {
            key: x if isinstance(x, int) else float(f"{x:.6g}") for key, x in content["quantiles"].items()
        }
    return {"peer": timing.peer, **content, **rounded}


def read_report(path: Path) -> Report:
    """The report written by `write_report`.

    Raises:
        ValueError: not such a file, or one of another format.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        found = content.pop("format", None)
        if found != FORMAT:
            raise ValueError(f"format is {found!r}, expected {FORMAT}")
        return Report(
            began=content["began"],
            seconds=content["seconds"],
            machine=Machine(**content["machine"]),
            timings=tuple(map(_timing, content["timings"])),
        )
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path} is not a benchmark report: {error}") from error


def _timing(content: dict[str, Any]) -> Timing:
    quantiles = content.pop("quantiles", None)
    return Timing(
        workload=Workload(**content.pop("workload")),
        quantiles=None if quantiles is None else Quantiles(**quantiles),
        **content,
    )
