"""All experiments, in the order of the report."""

from __future__ import annotations

from memformer_lab.experiments import (
    e01_cgd,
    e02_lfom,
    e03_gdpp,
    e13_one_layer,
)
from memformer_lab.experiments.protocol import Experiment

EXPERIMENTS: tuple[Experiment, ...] = (
    e01_cgd.EXPERIMENT,
    e02_lfom.EXPERIMENT,
    e03_gdpp.EXPERIMENT,
    e13_one_layer.EXPERIMENT,
)


def find(name: str) -> Experiment:
    """The experiment of a name or number.

    Raises:
        ValueError: if there is none.
    """
    for experiment in EXPERIMENTS:
        if name in (experiment.name, str(experiment.number)):
            return experiment
    known = ", ".join(f"{one.number} {one.name}" for one in EXPERIMENTS)
    raise ValueError(f"no experiment is called {name!r}; there are {known}")
