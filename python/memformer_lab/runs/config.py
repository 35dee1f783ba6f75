"""What a training run is: the model, its tasks and the optimiser's settings, checked before any work."""

from __future__ import annotations

import dataclasses
import math
import numbers
import operator
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

from memformer_kernels import SGD, Adam, Schedule
from memformer_lab.runs.variants import Preconditioner
from memformer_lab.tasks.families import FAMILIES, FamilyTasks
from memformer_lab.tasks.gaussian import GaussianTasks
from memformer_lab.tasks.standardised import StandardisedTasks

PRESETS = ("nonisotropic", "isotropic", "gaussian", "standardised", *(name for name in FAMILIES if name != "linear"))
"""Distributions of tasks by name: Gaussian ones, those for measured data, and the families of `tasks.families`."""

Prior = Literal["isotropic", "inverse"]
OptimizerKind = Literal["adam", "sgd"]
ScheduleKind = Literal["constant", "step", "cosine"]
Backend = Literal["torch", "auto", "cpu"]

_RATES = {"response-only": 0.1, "block": 0.03, "dense": 0.01}
GAUSSIAN = ("nonisotropic", "isotropic", "gaussian")
"""Presets with one covariance."""

_LATER = {"preconditioner", "tied", "scales", "prior", "noise", "optimizer", "momentum"}

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
        preconditioner: "free"; "scalar": every A_l is a multiple of the identity.
        tied: whether all layers share their matrices.
        granularity: of gamma and beta: "scalar", "feature", "token", "full"; None is the rule's own.
        structure: "response-only", "block" (features change too) or "dense".
        tasks: one of `PRESETS`. "nonisotropic": d = 5, w* ~ N(0, Sigma^-1); "gaussian": as `scales` and `prior` say;
            "standardised" for measured data.
        scales: of tasks "gaussian": d standard deviations along the axes of the rotation; empty for d ones.
        prior: of tasks "gaussian": w* ~ N(0, I), "isotropic", or N(0, Sigma^-1), "inverse".
        noise: standard deviation of the examples' responses; Gaussian tasks have it.
        rotation_seed: of the one rotation that tasks "nonisotropic" and "gaussian" share.
        queries: random queries a task, where queries are drawn and not integrated out.
        batch: tasks a step.
        steps: optimiser steps.
        resample: steps a batch of tasks is kept for.
        optimizer: "adam" or "sgd".
        learning_rate: at the schedule's peak. None becomes 0.1 for response-only structure, 0.03 for block and 0.01 for
            dense, whose layers multiply what one large step does to them.
        betas: Adam's decay rates of the first and second moment.
        momentum: of SGD.
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
    preconditioner: Preconditioner = "free"
    tied: bool = False
    tasks: str = "nonisotropic"
    scales: tuple[float, ...] = ()
    prior: Prior = "isotropic"
    noise: float = 0.0
    rotation_seed: int = 0
    queries: int = 1
    batch: int = 256
    steps: int = 2000
    resample: int = 1
    optimizer: OptimizerKind = "adam"
    learning_rate: float | None = None
    betas: tuple[float, float] = (0.9, 0.999)
    momentum: float = 0.0
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
        for name in ("rule", "structure", "tasks", "schedule", "backend", "preconditioner", "prior", "optimizer"):
            if not isinstance(getattr(self, name), str):
                raise TypeError(f"{name} must be a string, got {getattr(self, name)!r}")
        if self.granularity is not None and not isinstance(self.granularity, str):
            raise TypeError(f"granularity must be a string or None, got {self.granularity!r}")
        if not isinstance(self.tied, bool):
            raise TypeError(f"tied must be True or False, got {self.tied!r}")
        _check_choice("tasks", self.tasks, PRESETS)
        _check_choice("preconditioner", self.preconditioner, get_args(Preconditioner))
        _check_choice("prior", self.prior, get_args(Prior))
        _check_choice("optimizer", self.optimizer, get_args(OptimizerKind))
        _check_choice("schedule", self.schedule, get_args(ScheduleKind))
        _check_choice("backend", self.backend, get_args(Backend))
        if self.learning_rate is None:
            self._settle("learning_rate", _RATES.get(self.structure, 0.01))
        self._settle("learning_rate", _number("learning_rate", self.learning_rate, 0.0, math.inf))
        self._settle("decay", _number("decay", self.decay, 0.0, 1.0, closed_high=True))
        if self.clip is not None:
            self._settle("clip", _number("clip", self.clip, 0.0, math.inf))
        if not isinstance(self.betas, tuple) or len(self.betas) != 2:
            raise TypeError(f"betas must be a pair of numbers, got {self.betas!r}")
        self._settle("betas", tuple(_number("betas", beta, 0.0, 1.0, closed_low=True) for beta in self.betas))
        self._settle("momentum", _number("momentum", self.momentum, 0.0, 1.0, closed_low=True))
        self._settle("noise", _number("noise", self.noise, 0.0, math.inf, closed_low=True))
        if not isinstance(self.scales, tuple):
            raise TypeError(f"scales must be a tuple of numbers, got {self.scales!r}")
        self._settle("scales", tuple(_number("scales", scale, 0.0, math.inf) for scale in self.scales))
        self._check_tasks()
        if self.momentum and self.optimizer != "sgd":
            raise ValueError(f"momentum must be 0 with optimizer {self.optimizer!r}, got {self.momentum}")

    def _check_tasks(self) -> None:
        if self.tasks == "nonisotropic" and self.d != 5:
            raise ValueError(f"d must be 5 with tasks 'nonisotropic', got {self.d}")
        if self.tasks == "standardised" and self.n < 2:
            raise ValueError(f"n must be at least 2 with tasks 'standardised', got {self.n}")
        if self.scales and (self.tasks != "gaussian" or len(self.scales) != self.d):
            raise ValueError(f"scales must be d={self.d} numbers with tasks 'gaussian', or empty; got {self.scales}")
        if self.prior != "isotropic" and self.tasks != "gaussian":
            raise ValueError(f"prior must be 'isotropic' with tasks {self.tasks!r}, got {self.prior!r}")
        if self.noise and self.tasks not in GAUSSIAN:
            raise ValueError(f"noise must be 0 with tasks {self.tasks!r}, got {self.noise}")

    def _settle(self, name: str, value: object) -> None:
        """Keep a number of any kind as Python's own, which JSON and torch take."""
        object.__setattr__(self, name, value)

    def sampler(self) -> GaussianTasks | StandardisedTasks | FamilyTasks:
        """The distribution of tasks that the run draws from."""
        if self.tasks == "standardised":
            return StandardisedTasks(self.d, self.n)
        if self.tasks not in GAUSSIAN:
            return FamilyTasks(self.tasks, self.d, self.n)
        if self.tasks == "nonisotropic":
            tasks = GaussianTasks.nonisotropic(self.n, rotation_seed=self.rotation_seed)
        elif self.tasks == "isotropic":
            tasks = GaussianTasks.isotropic(self.d, self.n)
        else:
            scales = self.scales or (1.0,) * self.d
            tasks = GaussianTasks(self.d, self.n, scales, self.rotation_seed, self.prior)
        return dataclasses.replace(tasks, noise=self.noise)

    def settings(self) -> Adam | SGD:
        """The optimiser with the run's clipping and schedule."""
        assert self.learning_rate is not None
        schedule = Schedule(
            self.schedule, warmup=self.warmup, decay=self.decay, decay_every=self.decay_every, steps=self.steps
        )
        if self.optimizer == "sgd":
            return SGD(self.learning_rate, momentum=self.momentum, clip=self.clip, schedule=schedule)
        return Adam(self.learning_rate, betas=self.betas, clip=self.clip, schedule=schedule)

    def learning_rate_at(self, step: int) -> float:
        """The learning rate of the update number `step`, counted from 0."""
        settings = self.settings()
        (rate,) = settings.rates(1)
        return rate * settings.schedule.factor(step)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values, which `from_dict` reads back."""
        return {**dataclasses.asdict(self), "betas": list(self.betas), "scales": list(self.scales)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> TrainingConfig:
        """The inverse of `to_dict`. What came after the format's first files may be missing, and has its default then.

        Raises:
            ValueError: for another missing or unknown key, or a value out of range.
            TypeError: for a value of the wrong kind.
        """
        names = {field.name for field in dataclasses.fields(cls)}
        missing, unknown = sorted(names - values.keys() - _LATER), sorted(values.keys() - names)
        if missing or unknown:
            raise ValueError(f"a configuration has other keys: missing {missing}, unknown {unknown}")
        given: dict[str, Any] = {name: tuple(v) if isinstance(v, list) else v for name, v in values.items()}
        return cls(**given)


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
