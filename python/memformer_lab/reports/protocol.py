"""What an experiment is, and the settings all of them share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, TypeVar, get_args

from memformer_lab.reports.results import Results
from memformer_lab.reports.verdicts import Check, Verdict, decide

Scale = Literal["tiny", "quick", "full"]
"""tiny: to see that everything runs. quick: seconds an experiment, too short for best figures. full: the real thing."""

T = TypeVar("T")

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
    published: tuple[Published, ...] = ()

    def verdict(self, results: Results, scale: Scale) -> Verdict:
        """The verdict; a scale below full is a caveat of its own."""
        caveats = () if scale == "full" else (f"{scale} scale: models are trained briefly and judged on few tasks",)
        return decide(self.judge(results), caveats)
