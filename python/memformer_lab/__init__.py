"""What a researcher runs: tasks, classical optimisers, training, evaluation, measured data, experiments, estimators.

Rooms, each of which imports from those above it alone:

    tasks        random regression tasks, measured data, tables of one's own
    solvers      classical optimisers, Memformers as methods, errors and estimates, scikit-learn estimators
    runs         training in memory and on the disk, states of `train_steps` in files, worker processes
    reports      results, verdicts, pictures, tables, pages, the terminal
    profiling    what a call costs
    spectrum     what a trained network learned: its residual polynomial, as a figure and as a function of NumPy
    experiments  the literature's claims, and the main job
    cli          the commands

Everything uses the public names of `memformer_kernels` alone.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from memformer_lab.runs.config import TrainingConfig
    from memformer_lab.runs.models import evaluate, load_model
    from memformer_lab.runs.state_file import load_state, save_state
    from memformer_lab.runs.steps import TrainingDiverged
    from memformer_lab.runs.training import continue_training, train
    from memformer_lab.solvers.classifier import MemformerClassifier
    from memformer_lab.solvers.estimates import Estimate
    from memformer_lab.solvers.regressor import MemformerRegressor
    from memformer_lab.tasks.gaussian import GaussianTasks
    from memformer_lab.tasks.standardised import StandardisedTasks

__all__ = [
    "Estimate",
    "GaussianTasks",
    "MemformerClassifier",
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
    "Estimate": "solvers.estimates",
    "GaussianTasks": "tasks.gaussian",
    "MemformerClassifier": "solvers.classifier",
    "MemformerRegressor": "solvers.regressor",
    "StandardisedTasks": "tasks.standardised",
    "TrainingConfig": "runs.config",
    "TrainingDiverged": "runs.steps",
    "continue_training": "runs.training",
    "evaluate": "runs.models",
    "load_model": "runs.models",
    "load_state": "runs.state_file",
    "save_state": "runs.state_file",
    "train": "runs.training",
}


def __getattr__(name: str) -> Any:
    # Imported at use: the command must be able to say what Ctrl-C does before anything takes seconds to import.
    if name in _PLACES:
        return getattr(import_module(f"{__name__}.{_PLACES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
