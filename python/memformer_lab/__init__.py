"""What a researcher runs: tasks, classical optimisers, training, evaluation, measured data, experiments, a regressor.

Read in this order: `tasks` and `optimizers` (what a Memformer is trained on and compared with), `config`, `trainer`,
`step_trainer` and `training` (a run, in memory and on the disk), `state_file` (states of `train_steps` in files),
`estimates` and `evaluation` (how good it is), `real` (measured data), `showcase` (the main job), `experiments` (the
literature's claims), `regressor` (a scikit-learn estimator), `profiling` (what a call costs) and `cli` (the commands).
Everything uses the public names of `memformer_kernels` alone.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from memformer_lab.config import TrainingConfig
    from memformer_lab.estimates import Estimate
    from memformer_lab.evaluation import evaluate
    from memformer_lab.models import load_model
    from memformer_lab.regressor import MemformerRegressor
    from memformer_lab.state_file import load_state, save_state
    from memformer_lab.tasks import GaussianTasks, StandardisedTasks
    from memformer_lab.trainer import TrainingDiverged
    from memformer_lab.training import continue_training, train

__all__ = [
    "Estimate",
    "GaussianTasks",
    "MemformerRegressor",
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

_PLACES = {
    "Estimate": "estimates",
    "GaussianTasks": "tasks",
    "MemformerRegressor": "regressor",
    "StandardisedTasks": "tasks",
    "TrainingConfig": "config",
    "TrainingDiverged": "trainer",
    "continue_training": "training",
    "evaluate": "evaluation",
    "load_model": "models",
    "load_state": "state_file",
    "save_state": "state_file",
    "train": "training",
}


def __getattr__(name: str) -> Any:
    # Imported at use: the command must be able to say what Ctrl-C does before anything takes seconds to import.
    if name in _PLACES:
        return getattr(import_module(f"{__name__}.{_PLACES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
