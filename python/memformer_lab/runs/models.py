"""Models of a configuration: built, restored from a checkpoint, and read as first-order methods."""

from __future__ import annotations

import os

import torch

from memformer_kernels.nn import Memformer
from memformer_lab.runs import checkpoint as checkpoints
from memformer_lab.runs.checkpoint import Checkpoint
from memformer_lab.runs.config import TrainingConfig
from memformer_lab.tasks.gaussian import GaussianTasks
from memformer_lab.tasks.seeds import seed_for


def build_model(config: TrainingConfig, device: torch.device | str = "cpu") -> Memformer:
    """A fresh model with the configuration's random initial parameters; the global random state stays as it was.

    Raises:
        ValueError: if the model's arguments do not fit together.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed_for("initialisation", config.seed))
        model = Memformer(
            config.d,
            config.layers,
            heads=config.heads,
            rule=config.rule,
            granularity=config.granularity,
            structure=config.structure,
            tokens=config.n + config.queries,
            device="cpu",
            dtype=torch.float32,
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

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is not a checkpoint, or its parameters are not those of its configuration.
    """
    checkpoint = checkpoints.load(path)
    try:
        return model_of(checkpoint, device), checkpoint.config
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def reads_statistics_alone(model: Memformer) -> bool:
    """Whether a prediction depends on the context through H and b alone and is linear in the query.

    So it is with response-only and block structure, unless gamma or beta differ from token to token.
    """
    arguments = model.stack_arguments()
    weights = (arguments["gamma"], arguments["beta"])
    return model.structure != "dense" and all(weight is None or weight.shape[-2] == 1 for weight in weights)


def trains_on_statistics(model: Memformer, config: TrainingConfig) -> bool:
    """Whether training draws sufficient statistics with the query integrated out, instead of every token."""
    sampler = config.sampler()
    return isinstance(sampler, GaussianTasks) and sampler.n >= sampler.d and reads_statistics_alone(model)
