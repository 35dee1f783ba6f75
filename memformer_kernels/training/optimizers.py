"""The optimisers of a training run: SGD, Adam and AdamW as `torch.optim` defines them, clipping, and schedules.

A learning rate is one number, or one for each model of an ensemble. Arithmetic is in the parameters' dtype, with the
learning rate and Adam's bias corrections in float64 until they multiply a tensor.
"""

import math
from collections.abc import Sequence
from dataclasses import InitVar, dataclass, field
from numbers import Real
from typing import Literal, get_args

from torch import Tensor

from memformer_kernels.calls.checks import check_choice, check_flag, reject, reject_kind
from memformer_kernels.training.checks import check_number, keep_number, keep_size

ScheduleKind = Literal["constant", "step", "cosine"]
Clip = Literal["matrix", "model"]

SCHEDULES: tuple[ScheduleKind, ...] = get_args(ScheduleKind)
CLIPS: tuple[Clip, ...] = get_args(Clip)


@dataclass(frozen=True)
class Schedule:
    """The factor of the learning rate at every step, counted from 0.

    Attributes:
        kind: "constant"; "step": times `decay` every `decay_every` steps; "cosine": falls to 0 at step `steps`.
        warmup: steps in which the factor rises linearly to 1, before the rest of the schedule.
        decay: the step schedule's factor.
        decay_every: steps between two of them.
        steps: of the cosine schedule: the run's number of steps.

    Raises:
        ValueError, TypeError: an attribute out of range, or of another kind.
    """

    kind: ScheduleKind = "constant"
    warmup: int = 0
    decay: float = 0.5
    decay_every: int = 1000
    steps: int | None = None

    def __post_init__(self) -> None:
        check_choice("kind", self.kind, SCHEDULES)
        keep_size(self, "warmup", least=0)
        keep_number(self, "decay", 0.0)
        keep_size(self, "decay_every")
        if self.steps is not None:
            keep_size(self, "steps")
        elif self.kind == "cosine":
            reject("steps", self.steps, 'the number of steps of the run, since kind is "cosine"')

    def factor(self, step: int) -> float:
        """The factor of update number `step`."""
        if step < self.warmup:
            return (step + 1) / (self.warmup + 1)
        if self.kind == "step":
            return float(self.decay ** ((step - self.warmup) // self.decay_every))
        if self.kind == "cosine" and self.steps is not None:
            fraction = (step - self.warmup) / max(1, self.steps - self.warmup)
            return 0.5 * (1 + math.cos(math.pi * min(fraction, 1.0)))
        return 1.0


_DEFAULT_RATE = 1e-3


@dataclass(frozen=True)
class Optimizer:
    """What all optimisers share.

    Attributes:
        learning_rate: at the schedule's peak, or one for each model; 1e-3 unless given.
        lr: another name for learning_rate, when one is made.
        weight_decay: as in `torch.optim`.
        clip: largest gradient norm, or None for any.
        clip_by: what a norm is taken of: "matrix", every (d, d) matrix of q and p, and gamma, beta and gate each as a
            whole; or "model", all parameters of a model together.
        schedule: of the learning rate.

    Raises:
        ValueError, TypeError: an attribute out of range, or of another kind.
    """

    # Never None once made: it stands for "not given", which no number could, so that giving `lr` as well is an error.
    learning_rate: float | Sequence[float] = None  # type: ignore[assignment]
    lr: InitVar[float | Sequence[float] | None] = field(default=None, kw_only=True)
    weight_decay: float = field(default=0.0, kw_only=True)
    clip: float | None = field(default=None, kw_only=True)
    clip_by: Clip = field(default="matrix", kw_only=True)
    schedule: Schedule = field(default_factory=lambda: Schedule(), kw_only=True)

    def __post_init__(self, lr: float | Sequence[float] | None) -> None:
        if lr is not None and self.learning_rate is not None:
            reject("lr", lr, "either learning_rate or lr, two names of one thing")
        if self.learning_rate is None:
            object.__setattr__(self, "learning_rate", _DEFAULT_RATE if lr is None else lr)
        rates = self.learning_rate
        if isinstance(rates, str | Tensor) or not isinstance(rates, Real | Sequence):
            reject_kind("learning_rate", rates, "a number, or a sequence of one number a model")
        if isinstance(rates, Sequence):
            object.__setattr__(self, "learning_rate", tuple(check_number("learning_rate", rate, 0.0) for rate in rates))
        else:
            keep_number(self, "learning_rate", 0.0)
        keep_number(self, "weight_decay", 0.0)
        if self.clip is not None:
            keep_number(self, "clip", 0.0, open_end=True)
        check_choice("clip_by", self.clip_by, CLIPS)
        if not isinstance(self.schedule, Schedule):
            reject_kind("schedule", self.schedule, "a Schedule")

    def rates(self, models: int) -> list[float]:
        """The learning rate of each model."""
        if not isinstance(self.learning_rate, Sequence):
            return [self.learning_rate] * models
        if len(self.learning_rate) != models:
            reject("learning_rate", self.learning_rate, f"a number, or {models} of them, one for each model")
        return list(self.learning_rate)


@dataclass(frozen=True)
class SGD(Optimizer):
    """Stochastic gradient descent, `torch.optim.SGD`.

    Attributes:
        learning_rate, lr, weight_decay, clip, clip_by, schedule: see `Optimizer`.
        momentum: decay of the momentum buffer, in [0, 1).
        nesterov: step along the gradient after the momentum.
    """

    momentum: float = field(default=0.0, kw_only=True)
    nesterov: bool = field(default=False, kw_only=True)

    def __post_init__(self, lr: float | Sequence[float] | None) -> None:
        super().__post_init__(lr)
        keep_number(self, "momentum", 0.0, 1.0)
        if check_flag("nesterov", self.nesterov) and self.momentum == 0.0:
            reject("nesterov", self.nesterov, "False, since momentum is 0")


@dataclass(frozen=True)
class Adam(Optimizer):
    """Adam, `torch.optim.Adam`: weight decay is added to the gradient.

    Attributes:
        learning_rate, lr, weight_decay, clip, clip_by, schedule: see `Optimizer`.
        betas: decay rates of the first and second moment, in [0, 1): any pair.
        eps: added to the root of the second.
    """

    betas: Sequence[float] = field(default=(0.9, 0.999), kw_only=True)
    eps: float = field(default=1e-8, kw_only=True)

    def __post_init__(self, lr: float | Sequence[float] | None) -> None:
        super().__post_init__(lr)
        if isinstance(self.betas, str) or not isinstance(self.betas, Sequence) or len(self.betas) != 2:
            reject_kind("betas", self.betas, "a pair of numbers")
        object.__setattr__(self, "betas", tuple(check_number("betas", beta, 0.0, 1.0) for beta in self.betas))
        keep_number(self, "eps", 0.0)


@dataclass(frozen=True)
class AdamW(Adam):
    """AdamW, `torch.optim.AdamW`: weight decay shrinks the parameters directly (Loshchilov & Hutter, arXiv 1711.05101).

    Attributes are those of `Adam`, but weight_decay is 0.01 unless given.
    """

    weight_decay: float = field(default=0.01, kw_only=True)
