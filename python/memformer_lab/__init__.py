"""What a researcher runs: tasks, classical optimisers, training, evaluation, measured data, and the main job.

Read in this order: `tasks` and `optimizers` (what a Memformer is trained on and compared with), `config`, `trainer`,
`step_trainer` and `training` (a run, in memory and on the disk), `state_file` (states of `train_steps` in files),
`estimates` and `evaluation` (how good it is), `real` (measured data), `showcase` (the main job) and `cli` (the
commands). Everything uses the public names of `memformer_kernels` alone.
"""

from memformer_lab.config import TrainingConfig
from memformer_lab.estimates import Estimate
from memformer_lab.evaluation import evaluate
from memformer_lab.models import load_model
from memformer_lab.state_file import load_state, save_state
from memformer_lab.tasks import GaussianTasks, StandardisedTasks
from memformer_lab.trainer import TrainingDiverged
from memformer_lab.training import continue_training, train

__all__ = [
    "Estimate",
    "GaussianTasks",
    "StandardisedTasks",
    "TrainingConfig",
    "TrainingDiverged",
    "continue_training",
    "evaluate",
    "load_model",
    "load_state",
    "save_state",
    "train",
]
