"""What an experiment is, the settings all of them share, and its outcome on the disk, read back for resuming."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args

from memformer_lab.reports.results import Results, versions
from memformer_lab.reports.verdicts import Check, Verdict, decide
from memformer_lab.runs.files import write_atomically

Scale = Literal["tiny", "quick", "full"]
"""tiny: to see that everything runs. quick: seconds an experiment, too short for best figures. full: the real thing."""

T = TypeVar("T")

FORMAT = "memformer_lab.experiment"
VERSION = 3

_SEEDS = {"tiny": 2, "quick": 5, "full": 5}


@dataclass(frozen=True)
class Setting:
    """How much a run does, and its seed.

    Attributes:
        scale: how much.
        seed: of everything random; seeds of trained models follow from it.

    Raises:
        ValueError: for an unknown scale or a negative seed.
    """

    scale: Scale
    seed: int = 0

    def __post_init__(self) -> None:
        if self.scale not in get_args(Scale):
            raise ValueError(f"scale must be one of {', '.join(get_args(Scale))}, got {self.scale!r}")
        if self.seed < 0:
            raise ValueError(f"seed must be at least 0, got {self.seed}")

    @property
    def seeds(self) -> tuple[int, ...]:
        """Seeds of separately trained models."""
        count = _SEEDS[self.scale]
        return tuple(range(self.seed * count, (self.seed + 1) * count))

    def pick(self, *, tiny: T, quick: T, full: T) -> T:
        """The value that belongs to the scale."""
        return {"tiny": tiny, "quick": quick, "full": full}[self.scale]


@dataclass(frozen=True)
class Published:
    """A published figure: what it is, and its numbers where they are known."""

    what: str
    values: tuple[float, ...] = ()


@dataclass(frozen=True)
class Experiment:
    """One experiment.

    Attributes:
        number: place in the report.
        name: what the command line calls it.
        title: heading.
        claim: what was claimed.
        source: where.
        protocol: how it is tested here, with what departs from the publication.
        run: setting -> results.
        judge: results -> checks; reads nothing but the results.
        find: results -> the main figures in a sentence; reads nothing but the results.
        asks: what a referee would still ask, as the rest of that sentence.
        minutes: of processor time that it takes at full scale, in whole numbers.
        published: published figures.
    """

    number: int
    name: str
    title: str
    claim: str
    source: str
    protocol: str
    run: Callable[[Setting], Results]
    judge: Callable[[Results], Sequence[Check]]
    find: Callable[[Results], str]
    asks: str
    minutes: int
    published: tuple[Published, ...] = ()

    def verdict(self, results: Results, scale: Scale) -> Verdict:
        """The verdict; scales below full are too short for a label."""
        return decide(self.judge(results), conclusive=scale == "full")


@dataclass(frozen=True)
class Outcome:
    """An experiment that was run.

    Attributes:
        experiment: which.
        setting: how.
        results: what it found.
        seconds: wall time it took.
        cpu_seconds: processor time it took.
        machine: processor and number of its cores that it could use.
        versions: of the packages it ran on.
    """

    experiment: Experiment
    setting: Setting
    results: Results
    seconds: float
    cpu_seconds: float
    machine: str
    versions: dict[str, str]

    @property
    def verdict(self) -> Verdict:
        """Computed from the results."""
        return self.experiment.verdict(self.results, self.setting.scale)


def write_outcome(folder: Path, outcome: Outcome) -> None:
    """Write "<name>.json", whole or not at all.

    Raises:
        OSError: if it cannot be written.
    """
    experiment = outcome.experiment
    plain = {
        "format": FORMAT,
        "version": VERSION,
        "name": experiment.name,
        "title": experiment.title,
        "claim": experiment.claim,
        "source": experiment.source,
        "published": [asdict(one) for one in experiment.published],
        "scale": outcome.setting.scale,
        "seed": outcome.setting.seed,
        "seconds": round(outcome.seconds, 2),
        "cpu_seconds": round(outcome.cpu_seconds, 2),
        "machine": outcome.machine,
        "versions": outcome.versions,
        "verdict": asdict(outcome.verdict),
        "results": outcome.results.to_plain(),
    }
    write_atomically(folder / f"{experiment.name}.json", (json.dumps(plain, indent=1) + "\n").encode())


def read_outcome(folder: Path, experiment: Experiment, setting: Setting, *, any_code: bool = False) -> Outcome | None:
    """The outcome of an earlier run of the same code with the same setting, or None where there is no such whole file.

    Args:
        folder: where its file is.
        experiment: which.
        setting: scale and seed.
        any_code: take a file of other code too; the same code has equal `results.versions`, with a digest of sources.
    """
    try:
        plain: dict[str, Any] = json.loads((folder / f"{experiment.name}.json").read_text())
        same = (FORMAT, VERSION, experiment.name, setting.scale, setting.seed)
        if tuple(plain[key] for key in ("format", "version", "name", "scale", "seed")) != same:
            return None
        if not any_code and plain["versions"] != versions():
            return None
        results = Results.from_plain(plain["results"])
        seconds, cpu_seconds = (float(plain[name]) for name in ("seconds", "cpu_seconds"))
        outcome = Outcome(
            experiment, setting, results, seconds, cpu_seconds, str(plain["machine"]), dict(plain["versions"])
        )
        # Also checks that the results are those that today's rules read.
        _ = outcome.verdict
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return outcome
