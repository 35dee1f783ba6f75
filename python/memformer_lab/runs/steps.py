"""Two ways of taking optimiser steps: autograd on any module, one by one; or many in one call of `train_steps`."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.distributed import ProcessGroup
from torch.nn import Parameter

from memformer_kernels import (
    SGD,
    Adam,
    DrawnTasks,
    FixedTasks,
    GaussianStatistics,
    GaussianTokens,
    TrainState,
    explain_training,
    train_steps,
)
from memformer_kernels.nn import Memformer
from memformer_lab.runs.config import Backend
from memformer_lab.tasks.families import FamilyTasks
from memformer_lab.tasks.standardised import StandardisedTasks

Sampler = GaussianStatistics | GaussianTokens | FixedTasks | DrawnTasks

GROUPS = ("model", "first", "second")
"""Kinds of tensors that a run carries: parameters, and the optimiser's first and second moments (SGD: first alone)."""

_ADAM, _SGD = {"first": "exp_avg", "second": "exp_avg_sq"}, {"first": "momentum_buffer"}

Tensors = Mapping[str, Mapping[str, Tensor]]
"""By group, then by parameter name."""


class TrainingDiverged(ArithmeticError):
    """A loss, a gradient or a parameter is not finite. The last checkpoint on the disk is from before.

    Attributes:
        losses: of the steps that were taken in the call that ended so.
    """

    def __init__(self, message: str, losses: Sequence[float] = ()) -> None:
        super().__init__(message)
        self.losses = tuple(losses)


class AutogradSteps:
    """One step after another by autograd and an optimiser of torch: any module, any loss.

    Args:
        model: what is trained, in place; parameters that require no gradient stay.
        loss: gives the loss of a step from its number, counted from 0.
        optimizer: settings with the schedule; `clip_gradients` clips.

    Attributes:
        step: steps taken.
        gradient_norm: of the last step, before clipping; NaN before the first.
    """

    def __init__(self, model: nn.Module, loss: Callable[[int], Tensor], optimizer: Adam | SGD) -> None:
        self.model = model
        self.step = 0
        self.gradient_norm = math.nan
        self._loss = loss
        self._settings = optimizer
        self._parameters = {name: value for name, value in model.named_parameters() if value.requires_grad}
        parameters = self._parameters.values()
        self._optimizer: torch.optim.Optimizer
        if isinstance(optimizer, SGD):
            self._optimizer, self._moments = torch.optim.SGD(parameters, momentum=optimizer.momentum, fused=True), _SGD
        else:
            first, second = optimizer.betas
            self._optimizer, self._moments = torch.optim.Adam(parameters, betas=(first, second), fused=True), _ADAM

    def take(self, steps: int) -> list[float]:
        """Take some steps and return their losses.

        Raises:
            TrainingDiverged: if a loss or a gradient is not finite; the parameters are those of before that step.
        """
        losses: list[float] = []
        for _ in range(steps):
            (rate,) = self._settings.rates(1)
            self._optimizer.param_groups[0]["lr"] = rate * self._settings.schedule.factor(self.step)
            self._optimizer.zero_grad()
            loss = self._loss(self.step)
            torch.autograd.backward(loss)
            norm = clip_gradients(self._parameters, self._settings.clip)
            value, self.gradient_norm = torch.stack([loss.detach().double(), norm]).tolist()
            if not math.isfinite(value) or not math.isfinite(self.gradient_norm):
                message = f"loss {value} and gradient norm {self.gradient_norm} at step {self.step + 1}"
                raise TrainingDiverged(message, losses)
            self._optimizer.step()
            losses.append(value)
            self.step += 1
        return losses

    def tensors(self) -> Tensors:
        """Copies of the parameters, and of the moments, of which there are none before the first step."""
        found: dict[str, dict[str, Tensor]] = {group: {} for group in GROUPS}
        found["model"] = {name: value.detach().clone() for name, value in self.model.named_parameters()}
        for name, value in self._parameters.items():
            state = self._optimizer.state.get(value, {})
            for group, key in self._moments.items():
                if (moment := state.get(key)) is not None:
                    found[group][name] = moment.clone()
        return found

    def restore(self, tensors: Tensors, step: int) -> None:
        """Go on from what `tensors` gave after so many steps.

        Raises:
            ValueError: for a moment of another shape than its parameter.
        """
        self.step = step
        self.model.load_state_dict(dict(tensors["model"]))
        state = {}
        for index, (name, parameter) in enumerate(self._parameters.items()):
            moments = {key: tensors[group].get(name) for group, key in self._moments.items()}
            for group, key in self._moments.items():
                if moments[key] is not None:
                    _check(group, name, moments[key], parameter)
            if None not in moments.values():
                count = torch.tensor(float(step), device="cpu", dtype=torch.float32)
                state[index] = {**({"step": count} if self._moments is _ADAM else {}), **moments}
        self._optimizer.load_state_dict({**self._optimizer.state_dict(), "state": state})


class FusedSteps:
    """Many whole steps in one call of `train_steps`, natively where built.

    Args:
        model: what is trained; `learned` puts what was learned into it.
        state: what `state_of` makes of it.
        optimizer: its settings.
        backend: as `train_steps` takes it.
        group: ranks that share every batch; each holds the same state. None: this process alone.
    """

    def __init__(
        self,
        model: Memformer,
        state: TrainState,
        optimizer: Adam | SGD,
        *,
        backend: Backend = "auto",
        group: ProcessGroup | None = None,
    ) -> None:
        self.state = state
        self._model = model
        self._optimizer = optimizer
        self._backend = backend
        self._group = group

    @property
    def step(self) -> int:
        """Steps taken."""
        return self.state.step

    def backend_on(self, sampler: Sampler) -> str:
        """The backend that will run on this sampler's tasks. Errors are those of `explain_training`."""
        return explain_training(self.state, sampler, optimizer=self._optimizer, backend=self._backend).backend

    def take_on(self, sampler: Sampler, steps: int) -> list[float]:
        """Take some steps on a sampler's tasks and return their losses.

        Raises:
            RankLost: if another rank died or does not answer.
            TrainingDiverged: if a loss, a gradient or a parameter is not finite; the model is that of before that step.
        """
        losses: list[float] = train_steps(
            self.state,
            sampler,
            steps,
            optimizer=self._optimizer,
            backend=self._backend,
            max_skipped=1,
            group=self._group,
        )[:, 0].tolist()
        if skipped := int(self.state.skipped):
            done = len(losses) - skipped
            message = f"loss {losses[done]} or its gradient at step {self.step - skipped + 1}"
            raise TrainingDiverged(message, losses[:done])
        return losses

    def learned(self) -> Memformer:
        """The model, with what was learned so far in its parameters."""
        self.state.into(0, self._model)
        return self._model

    def tensors(self) -> Tensors:
        """Copies of the parameters and moments, as the model holds them."""
        return {
            group: {name: value[: self._held(name, value)].clone() for name, value in held.items()}
            for group, held in self._groups()
        }

    def restore(self, tensors: Tensors, step: int) -> None:
        """Go on from what `tensors` gave after so many steps.

        Raises:
            ValueError: for tensors of other names, shapes or dtypes.
        """
        for group, held in self._groups():
            for name, value in held.items():
                _check(group, name, tensors[group].get(name), value[: self._held(name, value)])
                value[:] = tensors[group][name]
        self.state.step = step

    def _held(self, name: str, value: Tensor) -> int:
        """How many layers of a parameter the model holds: the first alone where layers share it."""
        return 1 if self._model.tied and name in ("q", "p") else len(value)

    def _groups(self) -> Iterator[tuple[str, dict[str, Tensor]]]:
        """Parameters and moments of the one model, as views."""
        state = self.state
        groups = ({name: x[0] for name, x in held.items()} for held in (state.parameters, state.first, state.second))
        return zip(GROUPS, groups, strict=True)


def drawn_sampler(tasks: StandardisedTasks | FamilyTasks, batch: int, *, queries: int, resample: int) -> DrawnTasks:
    """The sampler of tasks that no kernel draws.

    Args:
        tasks: what is drawn.
        batch: tasks a step.
        queries: queries a task.
        resample: steps that a batch is kept for.
    """

    def draw(count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        made = tasks.tokens(count, generator, queries)
        return made.z, made.target

    return DrawnTasks(draw, tasks.d, tasks.n, batch, queries, resample)


def state_of(model: Memformer, seed: int) -> TrainState | None:
    """The model as `train_steps` takes it, or None where it has gates, which no native library trains.

    Args:
        model: any Memformer; what it holds fixed stays as it is.
        seed: of the tasks.
    """
    own, read = dict(model.named_parameters()), model.stack_arguments()
    plain = own.keys() == {name for name, value in read.items() if value is not None}
    return TrainState.of([model], seeds=seed) if plain and model.gate is None else None


def clip_gradients(parameters: dict[str, Parameter], clip: float | None) -> Tensor:
    """Scale gradients down to norm `clip`: every (d, d) matrix of q and p by its own norm, others as a whole tensor.

    Rare tasks with a nearly singular context give gradients that are orders of magnitude above the rest. Clipping by
    matrix keeps such a task from also deciding how far the other layers move.

    Args:
        parameters: by name; those without a gradient are passed over.
        clip: the largest norm, None for no clipping.

    Returns:
        () float64, the norm of all gradients together before clipping.
    """
    squares = []
    for name, parameter in parameters.items():
        if parameter.grad is None:
            continue
        axes = (-2, -1) if name in ("q", "p") else tuple(range(parameter.ndim))
        norms = torch.linalg.vector_norm(parameter.grad, dim=axes, keepdim=True, dtype=torch.float64)
        squares.append(norms.square().sum())
        if clip is not None:
            parameter.grad.mul_((clip / norms).clamp_(max=1.0).to(parameter.grad))
    return torch.stack(squares).sum().sqrt()


def _check(group: str, name: str, came: Tensor | None, held: Tensor) -> None:
    if came is None or came.shape != held.shape or came.dtype != held.dtype:
        kind = "the value" if group == "model" else "a moment"
        shape = None if came is None else tuple(came.shape)
        raise ValueError(f"{kind} of {name} is {shape}, expected {tuple(held.shape)} in {held.dtype}")
