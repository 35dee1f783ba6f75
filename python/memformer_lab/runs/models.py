"""Models of a configuration: built, restored from a checkpoint, and judged."""

from __future__ import annotations

import os

import torch

from memformer_kernels.nn import Memformer
from memformer_lab.runs import checkpoint as checkpoints
from memformer_lab.runs.checkpoint import Checkpoint
from memformer_lab.runs.config import TrainingConfig
from memformer_lab.runs.variants import Variant
from memformer_lab.solvers.estimates import Estimate, estimate
from memformer_lab.solvers.judging import model_errors
from memformer_lab.tasks.seeds import seed_for


def build_model(config: TrainingConfig, device: torch.device | str = "cpu") -> Memformer:
    """A fresh model with the configuration's random initial parameters; the global random state stays as it was.

    Raises:
        ValueError: if the model's arguments do not fit together.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed_for("initialisation", config.seed))
        model = Variant(
            config.d,
            config.layers,
            preconditioner=config.preconditioner,
            tied=config.tied,
            heads=config.heads,
            rule=config.rule,
            granularity=config.granularity,
            structure=config.structure,
            tokens=config.n + config.queries,
        )
    return model.to(device)


def model_of(checkpoint: Checkpoint, device: torch.device | str = "cpu") -> Memformer:
    """The model with a checkpoint's parameters.

    Raises:
        ValueError: if the parameters are not those of the checkpoint's configuration.
    """
    model = build_model(checkpoint.config)
    expected = {name: (tuple(value.shape), value.dtype) for name, value in model.named_parameters()}
    found = {name: (tuple(value.shape), value.dtype) for name, value in checkpoint.model.items()}
    if found != expected:
        raise ValueError(f"the parameters are {found}, expected {expected}")
    model.load_state_dict(dict(checkpoint.model))
    return model.to(device)


def load_model(path: str | os.PathLike[str], device: torch.device | str = "cpu") -> tuple[Memformer, TrainingConfig]:
    """The model in a checkpoint file, and its configuration.

    Args:
        path: the file.
        device: where the model goes.

    Returns:
        The model and the configuration it was trained by.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is not a checkpoint, or its parameters are not those of its configuration.
    """
    checkpoint = checkpoints.load(path)
    try:
        return model_of(checkpoint, device), checkpoint.config
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def evaluate(
    model: Memformer, config: TrainingConfig, *, tasks: int, seed: int = 0, layers: bool = False
) -> list[Estimate]:
    """Log mean squared query error on `tasks` fresh tasks, with a bootstrap interval.

    Args:
        model: a model of `config`.
        config: names the tasks.
        tasks: number of tasks, at least 1.
        seed: of the tasks and of the bootstrap; never draws what training drew.
        layers: judge the prediction after each layer.

    Returns:
        One estimate, or one for each layer.

    Raises:
        ValueError: if tasks < 1.
    """
    return estimate(model_errors([model], config.sampler(), config.queries, layers=layers), tasks, seed)
