"""What a training run is: the model, its tasks and the optimiser's settings, checked before any work."""

from __future__ import annotations

import dataclasses
import math
import numbers
import operator
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

from memformer_kernels import Adam, Schedule
from memformer_lab.tasks.gaussian import GaussianTasks
from memformer_lab.tasks.standardised import StandardisedTasks

TaskPreset = Literal["nonisotropic", "isotropic", "standardised"]
ScheduleKind = Literal["constant", "step", "cosine"]
Backend = Literal["torch", "auto", "cpu"]

MOST = 2**63 - 1
"""The largest size or number of steps, which is what torch counts with."""


@dataclass(frozen=True)
class TrainingConfig:
    """One training run. The defaults train a 4-layer response-only LFOM Memformer on the non-isotropic tasks.

    Attributes:
        d: number of features.
        n: number of labelled examples in a context.
        layers: number of layers, which are steps of the learned optimiser.
        heads: number of attention heads.
        rule: memory rule, a name that `memformer_kernels.nn.Memformer` takes.
        granularity: of gamma and beta: "scalar", "feature", "token", "full"; None is the rule's own.
        structure: "response-only", "block" (features change too) or "dense".
        tasks: "nonisotropic" (d = 5, w* ~ N(0, Sigma^-1)), "isotropic", or "standardised" for measured data.
        rotation_seed: of the one rotation that the non-isotropic tasks share.
        queries: random queries a task, where queries are drawn and not integrated out.
        batch: tasks a step.
        steps: optimiser steps.
        resample: steps a batch of tasks is kept for.
        learning_rate: Adam's, at the schedule's peak.
        betas: Adam's decay rates of the first and second moment.
        clip: largest gradient norm of a (d, d) matrix of q and p, and of gamma, beta and gate as a whole; None: any.
        schedule: "constant"; "step": times `decay` every `decay_every` steps; "cosine": falls to 0 at the last step.
        warmup: steps in which the learning rate rises linearly to its peak, before any schedule.
        decay: factor of the step schedule.
        decay_every: steps between two such factors.
        seed: of the initial parameters and of the tasks.
        log_every: steps between two lines of metrics.
        backend: "torch" trains any run, by autograd and torch's Adam on tasks of a torch generator; the others are
            those of `memformer_kernels.train_steps`, whose tasks are a function of seed and step and whose own backend
            "torch" is their reference.

    Raises:
        TypeError: for a value of the wrong kind.
        ValueError: for a value out of range, naming it and what is expected.
    """

    d: int = 5
    n: int = 20
    layers: int = 4
    heads: int = 1
    rule: str = "lfom"
    granularity: str | None = None
    structure: str = "response-only"
    tasks: TaskPreset = "nonisotropic"
    rotation_seed: int = 0
    queries: int = 1
    batch: int = 256
    steps: int = 2000
    resample: int = 1
    learning_rate: float = 0.1
    betas: tuple[float, float] = (0.9, 0.999)
    clip: float | None = 1.0
    schedule: ScheduleKind = "cosine"
    warmup: int = 0
    decay: float = 0.5
    decay_every: int = 1000
    seed: int = 0
    log_every: int = 50
    backend: Backend = "torch"

    def __post_init__(self) -> None:
        for name in ("d", "n", "layers", "heads", "queries", "batch", "steps", "resample", "decay_every", "log_every"):
            self._settle(name, _integer(name, getattr(self, name), 1))
        for name in ("rotation_seed", "warmup", "seed"):
            self._settle(name, _integer(name, getattr(self, name), 0))
        for name in ("rule", "structure", "tasks", "schedule", "backend"):
            if not isinstance(getattr(self, name), str):
                raise TypeError(f"{name} must be a string, got {getattr(self, name)!r}")
        if self.granularity is not None and not isinstance(self.granularity, str):
            raise TypeError(f"granularity must be a string or None, got {self.granularity!r}")
        _check_choice("tasks", self.tasks, get_args(TaskPreset))
        _check_choice("schedule", self.schedule, get_args(ScheduleKind))
        _check_choice("backend", self.backend, get_args(Backend))
        self._settle("learning_rate", _number("learning_rate", self.learning_rate, 0.0, math.inf))
        self._settle("decay", _number("decay", self.decay, 0.0, 1.0, closed_high=True))
        if self.clip is not None:
            self._settle("clip", _number("clip", self.clip, 0.0, math.inf))
        if not isinstance(self.betas, tuple) or len(self.betas) != 2:
            raise TypeError(f"betas must be a pair of numbers, got {self.betas!r}")
        self._settle("betas", tuple(_number("betas", beta, 0.0, 1.0, closed_low=True) for beta in self.betas))
        if self.tasks == "nonisotropic" and self.d != 5:
            raise ValueError(f"d must be 5 with tasks 'nonisotropic', got {self.d}")
        if self.tasks == "standardised" and self.n < 2:
            raise ValueError(f"n must be at least 2 with tasks 'standardised', got {self.n}")

    def _settle(self, name: str, value: object) -> None:
        """Keep a number of any kind as Python's own, which JSON and torch take."""
        object.__setattr__(self, name, value)

    def sampler(self) -> GaussianTasks | StandardisedTasks:
        """The distribution of tasks that the run draws from."""
        if self.tasks == "nonisotropic":
            return GaussianTasks.nonisotropic(self.n, rotation_seed=self.rotation_seed)
        if self.tasks == "isotropic":
            return GaussianTasks.isotropic(self.d, self.n)
        return StandardisedTasks(self.d, self.n)

    def optimizer(self) -> Adam:
        """Adam with the run's clipping and schedule."""
        schedule = Schedule(
            self.schedule, warmup=self.warmup, decay=self.decay, decay_every=self.decay_every, steps=self.steps
        )
        return Adam(self.learning_rate, betas=self.betas, clip=self.clip, schedule=schedule)

    def learning_rate_at(self, step: int) -> float:
        """The learning rate of the update number `step`, counted from 0."""
        return self.learning_rate * self.optimizer().schedule.factor(step)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values, which `from_dict` reads back."""
        return {**dataclasses.asdict(self), "betas": list(self.betas)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> TrainingConfig:
        """The inverse of `to_dict`.

        Raises:
            ValueError: for a missing or unknown key, or a value out of range.
            TypeError: for a value of the wrong kind.
        """
        names = {field.name for field in dataclasses.fields(cls)}
        if values.keys() != names:
            missing, unknown = sorted(names - values.keys()), sorted(values.keys() - names)
            raise ValueError(f"a configuration has other keys: missing {missing}, unknown {unknown}")
        betas = values["betas"]
        return cls(**{**values, "betas": tuple(betas) if isinstance(betas, list) else betas})


def _integer(name: str, value: Any, low: int) -> int:
    if isinstance(value, bool) or not hasattr(value, "__index__"):
        raise TypeError(f"{name} must be an integer, got {value!r}")
    found = operator.index(value)
    if not low <= found <= MOST:
        raise ValueError(f"{name} must be at least {low}{f' and at most {MOST}' if found > MOST else ''}, got {found}")
    return found


def _number(
    name: str, value: Any, low: float, high: float, *, closed_low: bool = False, closed_high: bool = False
) -> float:
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise TypeError(f"{name} must be a number, got {value!r}")
    try:
        found = float(value)
    except OverflowError:
        found = math.nan  # within no bounds
    above = found >= low if closed_low else found > low
    below = found <= high if closed_high else found < high
    if not (above and below):
        interval = f"{'[' if closed_low else '('}{low:g}, {high:g}{']' if closed_high else ')'}"
        raise ValueError(f"{name} must be a finite number in {interval}, got {value}")
    return found


def _check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(choices)}; got {value!r}")
