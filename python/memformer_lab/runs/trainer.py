"""One optimiser step after another: Adam on fresh tasks with clipped gradients, in memory."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import Parameter

from memformer_lab.runs.checkpoint import Checkpoint
from memformer_lab.runs.config import TrainingConfig
from memformer_lab.runs.models import build_model, model_of, trains_on_statistics
from memformer_lab.tasks.gaussian import GaussianTasks, TaskBatch
from memformer_lab.tasks.seeds import generator_for

Record = dict[str, float]


class TrainingDiverged(ArithmeticError):
    """A loss, a gradient or a parameter is not finite. The last checkpoint on the disk is from before."""


class Trainer:
    """A run in memory, advanced step by step.

    The loss is the mean over a batch of the squared error of one random query, in expectation over the query where the
    model reads sufficient statistics alone. Tasks are drawn on the model's device.

    Attributes:
        config: the run.
        model: the model being trained.
        step: optimiser steps done.
        loss_sum: sum of the losses since the last line of metrics.

    Raises:
        ValueError: if the model's arguments do not fit together.
    """

    def __init__(self, config: TrainingConfig, device: torch.device | str = "cpu") -> None:
        self.config = config
        self.model = build_model(config, device)
        self.step = 0
        self.loss_sum = 0.0
        self._optimizer = torch.optim.Adam(
            self.model.parameters(), lr=config.learning_rate, betas=config.betas, fused=True
        )
        self._generator = generator_for("training", config.seed, device=device)
        self._sampler = config.sampler()
        self._on_statistics = trains_on_statistics(self.model, config)
        self._batch: TaskBatch | None = None
        self._drawn_from = self._generator.get_state()

    @classmethod
    def resume(cls, checkpoint: Checkpoint, device: torch.device | str = "cpu") -> Trainer:
        """A run that continues exactly as the one that the checkpoint was taken from.

        Raises:
            ValueError: if the checkpoint's parts do not fit its configuration, or it was taken on another kind of
                device, whose generator draws other tasks.
        """
        kind = torch.device(device).type
        if checkpoint.device != kind:
            raise ValueError(f"the checkpoint draws its tasks on {checkpoint.device!r}, expected device {kind!r}")
        trainer = cls(checkpoint.config, device)
        trainer.model.load_state_dict(model_of(checkpoint).state_dict())
        trainer.step = checkpoint.step
        trainer.loss_sum = checkpoint.loss_sum
        trainer._restore_moments(checkpoint)
        if checkpoint.generator is None:
            raise ValueError("the checkpoint has no state of a generator, expected that of a run with backend 'torch'")
        try:
            trainer._generator.set_state(checkpoint.generator)
        except (RuntimeError, TypeError) as error:
            raise ValueError(f"the generator's state is not one of device {kind!r}: {error}") from error
        if checkpoint.step % checkpoint.config.resample:
            trainer._draw()
        return trainer

    def snapshot(self) -> Checkpoint:
        """The state after the steps done.

        Raises:
            TrainingDiverged: if a parameter or a moment is not finite.
        """
        named = dict(self.model.named_parameters())
        states = {name: self._optimizer.state.get(value, {}) for name, value in named.items()}
        model = {name: value.detach().clone() for name, value in named.items()}
        first = {name: state["exp_avg"].clone() for name, state in states.items() if state}
        second = {name: state["exp_avg_sq"].clone() for name, state in states.items() if state}
        for what, group in (("parameter", model), ("first moment of", first), ("second moment of", second)):
            for name, value in group.items():
                if not value.isfinite().all():
                    raise TrainingDiverged(f"{what} {name} is not finite after step {self.step}")
        return Checkpoint(
            config=self.config,
            step=self.step,
            loss_sum=self.loss_sum,
            device=self._generator.device.type,
            # In the midst of a batch's steps the state it was drawn from, so that it can be drawn again.
            generator=self._drawn_from if self.step % self.config.resample else self._generator.get_state(),
            model=model,
            first=first,
            second=second,
        )

    def advance(self) -> Record:
        """Take one step; returns its loss, the gradient's norm before clipping, and the learning rate.

        Raises:
            TrainingDiverged: if the loss or a gradient is not finite; the parameters are those of before the step.
        """
        if self._batch is None or self.step % self.config.resample == 0:
            self._draw()
        assert self._batch is not None
        batch, learning_rate = self._batch, self.config.learning_rate_at(self.step)
        for group in self._optimizer.param_groups:
            group["lr"] = learning_rate
        self._optimizer.zero_grad()
        loss = batch.query_scale * self.model.loss(batch.z, batch.target, context=batch.context)
        torch.autograd.backward(loss)
        norm = clip_gradients(dict(self.model.named_parameters()), self.config.clip)
        loss_value, norm_value = torch.stack([loss.detach(), norm]).tolist()
        if not math.isfinite(loss_value) or not math.isfinite(norm_value):
            raise TrainingDiverged(f"loss {loss_value} and gradient norm {norm_value} at step {self.step + 1}")
        self._optimizer.step()
        self.loss_sum += loss_value
        self.step += 1
        return {"loss": loss_value, "gradient_norm": norm_value, "learning_rate": learning_rate}

    def advance_to(self, step: int) -> Record:
        """Take steps up to this one, at least one; returns and raises what `advance` does, for the last of them."""
        record = self.advance()
        while self.step < step:
            record = self.advance()
        return record

    def _draw(self) -> None:
        config = self.config
        self._drawn_from = self._generator.get_state()
        if self._on_statistics and isinstance(self._sampler, GaussianTasks):
            self._batch = self._sampler.compressed(config.batch, self._generator)
        else:
            self._batch = self._sampler.tokens(config.batch, self._generator, config.queries)

    def _restore_moments(self, checkpoint: Checkpoint) -> None:
        state = {}
        for index, (name, parameter) in enumerate(self.model.named_parameters()):
            moments = checkpoint.first.get(name), checkpoint.second.get(name)
            for moment in moments:
                if moment is not None and moment.shape != parameter.shape:
                    raise ValueError(f"a moment of {name} is {tuple(moment.shape)}, expected {tuple(parameter.shape)}")
            if moments[0] is not None and moments[1] is not None:
                step = torch.tensor(float(checkpoint.step), device="cpu", dtype=torch.float32)
                state[index] = {"step": step, "exp_avg": moments[0], "exp_avg_sq": moments[1]}
        self._optimizer.load_state_dict({**self._optimizer.state_dict(), "state": state})


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
