"""One experiment's outcome on the disk: results, setting and verdict as one JSON file, read back for resuming."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from memformer_lab.reports.protocol import Experiment, Setting
from memformer_lab.reports.results import Results
from memformer_lab.reports.verdicts import Verdict
from memformer_lab.runs.files import write_atomically

FORMAT = "memformer_lab.experiment"
VERSION = 2


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
        """Computed from the results, whenever asked."""
        return self.experiment.verdict(self.results, self.setting.scale)


def write(folder: Path, outcome: Outcome) -> None:
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


def read(folder: Path, experiment: Experiment, setting: Setting) -> Outcome | None:
    """The outcome of an earlier run with the same setting, or None where there is no such whole file."""
    try:
        plain: dict[str, Any] = json.loads((folder / f"{experiment.name}.json").read_text())
        same = (FORMAT, VERSION, experiment.name, setting.scale, setting.seed)
        if tuple(plain[key] for key in ("format", "version", "name", "scale", "seed")) != same:
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
