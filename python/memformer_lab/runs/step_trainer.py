"""A run through `memformer_kernels.train_steps`: many whole optimiser steps in one call, natively where built."""

from __future__ import annotations

import torch
from torch.distributed import ProcessGroup

from memformer_kernels import Adam, Schedule, TrainState, explain_training, train_steps
from memformer_kernels.nn import Memformer
from memformer_lab.runs.checkpoint import Checkpoint
from memformer_lab.runs.config import TrainingConfig
from memformer_lab.runs.models import build_model, model_of, trains_on_statistics
from memformer_lab.runs.trainer import Record, TrainingDiverged
from memformer_lab.tasks.gaussian import GaussianTasks
from memformer_lab.tasks.samplers import step_sampler
from memformer_lab.tasks.seeds import seed_for


class StepTrainer:
    """A run in memory, advanced many steps at a time. The loss is that of `trainer.Trainer`; its tasks are others.

    Attributes:
        config: the run.
        state: the model being trained, with its moments and counters.
        loss_sum: sum of the losses since the last line of metrics.
        group: ranks that share every batch; each holds the same state. None: this process alone.

    Raises:
        ValueError: if the model's arguments do not fit together, `train_steps` does not train such a run, or the
            backend is not available.
    """

    def __init__(
        self, config: TrainingConfig, device: torch.device | str = "cpu", group: ProcessGroup | None = None
    ) -> None:
        if (reason := fault(config)) is not None:
            raise ValueError(f"backend must be 'torch', got {config.backend!r}: {reason}")
        self.config = config
        self.loss_sum = 0.0
        self.group = group
        model = build_model(config, device)
        self.state = TrainState.of(
            [dict(model.stack_arguments())],
            seeds=seed_for("training", config.seed) >> 1,
            trainable=[{"gamma": past_registers(model)}] if config.rule == "lfom_residual" else None,
        )
        tasks = config.sampler()
        assert isinstance(tasks, GaussianTasks)
        self._sampler = step_sampler(
            tasks,
            config.batch,
            statistics=trains_on_statistics(model, config),
            queries=config.queries,
            resample=config.resample,
        )
        schedule = Schedule(
            config.schedule,
            warmup=config.warmup,
            decay=config.decay,
            decay_every=config.decay_every,
            steps=config.steps,
        )
        self._optimizer = Adam(config.learning_rate, betas=config.betas, clip=config.clip, schedule=schedule)
        try:
            explain_training(self.state, self._sampler, optimizer=self._optimizer, backend=config.backend)
        except RuntimeError as error:
            raise ValueError(str(error)) from error

    @classmethod
    def resume(
        cls, checkpoint: Checkpoint, device: torch.device | str = "cpu", group: ProcessGroup | None = None
    ) -> StepTrainer:
        """A run that continues exactly as the one that the checkpoint was taken from.

        Raises:
            ValueError: if the checkpoint's parts do not fit its configuration, or it was taken on another kind of
                device, which rounds differently.
        """
        kind = torch.device(device).type
        if checkpoint.device != kind:
            raise ValueError(f"the checkpoint is of a run on {checkpoint.device!r}, expected device {kind!r}")
        model_of(checkpoint)
        trainer = cls(checkpoint.config, device, group)
        state = trainer.state
        for name_of, values in (
            ("parameters", checkpoint.model),
            ("first", checkpoint.first),
            ("second", checkpoint.second),
        ):
            held = getattr(state, name_of)
            for name, value in held.items():
                came = values.get(name)
                if came is None or came.shape != value.shape[1:] or came.dtype != value.dtype:
                    what = None if came is None else tuple(came.shape)
                    raise ValueError(f"{name_of} of {name} are {what}, expected {tuple(value.shape[1:])}")
                value[0] = came
        state.step = checkpoint.step
        trainer.loss_sum = checkpoint.loss_sum
        return trainer

    @property
    def step(self) -> int:
        """Optimiser steps done."""
        return self.state.step

    @property
    def model(self) -> Memformer:
        """The model as it is now."""
        return model_of(self.snapshot(), self.state.device)

    def snapshot(self) -> Checkpoint:
        """The state after the steps done, which is always finite."""
        groups = (self.state.parameters, self.state.first, self.state.second)
        model, first, second = ({name: value[0].clone() for name, value in group.items()} for group in groups)
        return Checkpoint(
            config=self.config,
            step=self.step,
            loss_sum=self.loss_sum,
            device=self.state.device.type,
            generator=None,
            model=model,
            first=first,
            second=second,
        )

    def advance_to(self, step: int) -> Record:
        """Take steps up to this one; returns the loss and the learning rate of the last of them.

        Raises:
            RankLost: if another rank died or does not answer.
            TrainingDiverged: if a loss, a gradient or a parameter is not finite; the model is that of before that step.
        """
        losses = train_steps(
            self.state,
            self._sampler,
            step - self.step,
            optimizer=self._optimizer,
            backend=self.config.backend,
            max_skipped=1,
            group=self.group,
        )[:, 0].tolist()
        if skipped := int(self.state.skipped):
            done = self.step - skipped
            raise TrainingDiverged(f"loss {losses[-skipped]} or its gradient at step {done + 1}")
        # One after the other, so that the sum does not depend on where a run was interrupted.
        for loss in losses:
            self.loss_sum += loss
        return {"loss": losses[-1], "learning_rate": self.config.learning_rate_at(step - 1)}


def fault(config: TrainingConfig) -> str | None:
    """Why `train_steps` does not train such a run, or None."""
    if config.tasks == "standardised":
        return "tasks 'standardised' are no Gaussian tasks with one covariance"
    if config.rule == "gated_heads":
        return "rule 'gated_heads' trains gates"
    return None


def past_registers(model: Memformer) -> torch.Tensor:
    """The entries of gamma that the residual rule trains: all but the ones on its diagonal."""
    return ~torch.eye(model.layers, dtype=torch.bool, device="cpu")[:, :, None, None, None]
