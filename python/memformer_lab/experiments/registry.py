"""All experiments, in the order of the report."""

from __future__ import annotations

from memformer_lab.experiments import (
    e01_cgd,
    e02_lfom,
    e03_gdpp,
    e04_small_batches,
    e05_heads,
    e06_experts,
    e07_momentum,
    e08_memory,
    e09_depth,
    e10_scaling,
    e11_condition,
    e12_learnability,
    e13_one_layer,
    e14_second_order,
    e15_families,
    e16_real,
    e17_attention,
    e18_published_parameters,
)
from memformer_lab.reports.protocol import Experiment

EXPERIMENTS: tuple[Experiment, ...] = (
    e01_cgd.EXPERIMENT,
    e02_lfom.EXPERIMENT,
    e03_gdpp.EXPERIMENT,
    e04_small_batches.EXPERIMENT,
    e05_heads.EXPERIMENT,
    e06_experts.EXPERIMENT,
    e07_momentum.EXPERIMENT,
    e08_memory.EXPERIMENT,
    e09_depth.EXPERIMENT,
    e10_scaling.EXPERIMENT,
    e11_condition.EXPERIMENT,
    e12_learnability.EXPERIMENT,
    e13_one_layer.EXPERIMENT,
    e14_second_order.EXPERIMENT,
    e15_families.EXPERIMENT,
    e16_real.EXPERIMENT,
    e17_attention.EXPERIMENT,
    e18_published_parameters.EXPERIMENT,
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
