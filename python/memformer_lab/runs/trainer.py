"""A training run in memory: whatever takes its steps, one way to go on, to save its state and to resume."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.distributed import ProcessGroup

from memformer_kernels.nn import Memformer
from memformer_lab.runs.checkpoint import Checkpoint
from memformer_lab.runs.config import TrainingConfig
from memformer_lab.runs.models import build_model, model_of
from memformer_lab.runs.steps import AutogradSteps, FusedSteps, Sampler, TrainingDiverged, drawn_sampler, state_of
from memformer_lab.solvers.first_order import drawer, draws_statistics
from memformer_lab.tasks.gaussian import GaussianTasks, TaskBatch, step_sampler
from memformer_lab.tasks.seeds import generator_for, seed_for

Record = dict[str, float]


class Trainer:
    """A run in memory, advanced one step or many at a time.

    The loss is the mean over a batch of the squared error of one random query, in expectation over the query where the
    model reads sufficient statistics alone. With backend "torch" steps are taken by autograd on tasks that a generator
    draws on the model's device, else by `train_steps` on tasks that are a function of seed and step.

    Args:
        config: the run.
        device: where to train.
        group: ranks that share every batch; each holds the same state. None: this process alone.

    Attributes:
        config: the run.
        loss_sum: sum of the losses since the last line of metrics.

    Raises:
        ValueError: if the model's arguments do not fit together, or the backend is not available or does not train such
            a run.
    """

    def __init__(
        self, config: TrainingConfig, device: torch.device | str = "cpu", group: ProcessGroup | None = None
    ) -> None:
        self.config = config
        self.loss_sum = 0.0
        self._device = torch.device(device).type
        self._steps: _DrawnSteps | _SampledSteps
        if config.backend == "torch":
            if group is not None:
                raise ValueError("backend must be 'auto' or 'cpu' with several processes, got 'torch'")
            self._steps = _DrawnSteps(config, device)
        else:
            self._steps = _SampledSteps(config, device, group)

    @classmethod
    def resume(
        cls, checkpoint: Checkpoint, device: torch.device | str = "cpu", group: ProcessGroup | None = None
    ) -> Trainer:
        """A run that continues exactly as the one that the checkpoint was taken from.

        Raises:
            ValueError: if the checkpoint's parts do not fit its configuration, or it was taken on another kind of
                device, which draws other tasks and rounds differently.
        """
        kind = torch.device(device).type
        if checkpoint.device != kind:
            raise ValueError(f"the checkpoint's run draws its tasks on {checkpoint.device!r}, expected device {kind!r}")
        model_of(checkpoint)
        trainer = cls(checkpoint.config, device, group)
        tensors = {"model": checkpoint.model, "first": checkpoint.first, "second": checkpoint.second}
        trainer._steps.restore(tensors, checkpoint.step)
        trainer._steps.restore_generator(checkpoint.generator)
        trainer.loss_sum = checkpoint.loss_sum
        return trainer

    @property
    def step(self) -> int:
        """Optimiser steps done."""
        return self._steps.step

    @property
    def model(self) -> Memformer:
        """The model as it is now."""
        return self._steps.learned()

    def snapshot(self) -> Checkpoint:
        """The state after the steps done.

        Raises:
            TrainingDiverged: if a parameter or a moment is not finite.
        """
        tensors = self._steps.tensors()
        for what, group in (("parameter", "model"), ("first moment of", "first"), ("second moment of", "second")):
            for name, value in tensors[group].items():
                if not value.isfinite().all():
                    raise TrainingDiverged(f"{what} {name} is not finite after step {self.step}")
        generator = self._steps.generator_state()
        return Checkpoint(self.config, self.step, self.loss_sum, self._device, generator, **tensors)

    def advance(self, steps: int = 1) -> Record:
        """Take some steps, at least one.

        Returns:
            The loss of the last of them, its learning rate, and by autograd the gradient's norm before clipping.

        Raises:
            RankLost: if another rank died or does not answer.
            TrainingDiverged: if a loss, a gradient or a parameter is not finite; the model is that of before that step.
        """
        losses = self._steps.take(steps)
        # One after the other, so that the sum does not depend on where a run was interrupted.
        for loss in losses:
            self.loss_sum += loss
        rate = self.config.learning_rate_at(self.step - 1)
        return {"loss": losses[-1], **self._steps.details(), "learning_rate": rate}


def fault(config: TrainingConfig) -> str | None:
    """Why autograd trains such a run step by step, or None where `train_steps` does."""
    if config.rule == "gated_heads":
        return "rule 'gated_heads' trains gates, which no native library does"
    return None


class _DrawnSteps(AutogradSteps):
    """Steps by autograd on batches that a generator of torch draws, each kept for `resample` steps."""

    def __init__(self, config: TrainingConfig, device: torch.device | str) -> None:
        model = build_model(config, device)
        super().__init__(model, self._loss_at, config.settings())
        self._memformer = model
        self._draw = drawer([model], config.sampler(), config.queries)
        self._batch_size, self._resample = config.batch, config.resample
        self._generator = generator_for("training", config.seed, device=device)
        self._drawn_from = self._generator.get_state()
        self._batch: TaskBatch | None = None

    def learned(self) -> Memformer:
        return self._memformer

    def details(self) -> Record:
        return {"gradient_norm": self.gradient_norm}

    def generator_state(self) -> Tensor:
        """In the midst of a batch's steps the state it was drawn from, so that it can be drawn again."""
        return self._drawn_from if self.step % self._resample else self._generator.get_state()

    def restore_generator(self, state: Tensor | None) -> None:
        if state is None:
            raise ValueError("the checkpoint has no state of a generator, expected that of a run with backend 'torch'")
        try:
            self._generator.set_state(state)
        except (RuntimeError, TypeError) as error:
            kind = self._generator.device.type
            raise ValueError(f"the generator's state is not one of device {kind!r}: {error}") from error

    def _loss_at(self, step: int) -> Tensor:
        if self._batch is None or step % self._resample == 0:
            self._drawn_from = self._generator.get_state()
            self._batch = self._draw(self._batch_size, self._generator)
        batch = self._batch
        return batch.query_scale * self._memformer.loss(batch.z, batch.target, context=batch.context)


class _SampledSteps(FusedSteps):
    """Steps by `train_steps` on the run's tasks."""

    def __init__(self, config: TrainingConfig, device: torch.device | str, group: ProcessGroup | None) -> None:
        if (reason := fault(config)) is not None:
            raise ValueError(f"backend must be 'torch', got {config.backend!r}: {reason}")
        model, tasks = build_model(config, device), config.sampler()
        state = state_of(model, seed_for("training", config.seed) >> 1)
        assert state is not None
        super().__init__(model, state, config.settings(), backend=config.backend, group=group)
        options = {"queries": config.queries, "resample": config.resample}
        self._sampler: Sampler
        if isinstance(tasks, GaussianTasks):
            statistics = draws_statistics(model, tasks)
            self._sampler = step_sampler(tasks, config.batch, statistics=statistics, **options)
        else:
            self._sampler = drawn_sampler(tasks, config.batch, **options)
        try:
            self.backend_on(self._sampler)
        except RuntimeError as error:
            raise ValueError(str(error)) from error

    def take(self, steps: int) -> list[float]:
        return self.take_on(self._sampler, steps)

    def details(self) -> Record:
        return {}

    def generator_state(self) -> None:
        return None

    def restore_generator(self, state: Tensor | None) -> None:
        """There is none: tasks are a function of seed and step."""
