"""Whole optimiser steps: sample tasks, loss, gradients, clipping, update; many steps and many models in one call.

Read in this order: `samplers`, `optimizers` and `state` (what is given), `steps` (the call), `philox` and `draws` (the
random stream), `definition` (a step in plain PyTorch, which defines it), `arguments`, `native` and `cuda` (the same in
the native libraries), `ranks` and `split_context` (many processes).
"""

from memformer_kernels.training.optimizers import SGD, Adam, AdamW, Schedule
from memformer_kernels.training.ranks import RankLost
from memformer_kernels.training.samplers import DrawnTasks, FixedTasks, GaussianStatistics, GaussianTokens
from memformer_kernels.training.split_context import predict_split_context
from memformer_kernels.training.state import TrainState
from memformer_kernels.training.steps import TrainingPlan, explain_training, train_steps

__all__ = [
    "SGD",
    "Adam",
    "AdamW",
    "DrawnTasks",
    "FixedTasks",
    "GaussianStatistics",
    "GaussianTokens",
    "RankLost",
    "Schedule",
    "TrainState",
    "TrainingPlan",
    "explain_training",
    "predict_split_context",
    "train_steps",
]
