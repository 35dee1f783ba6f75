"""Rows of trained models: one a seed, and those that show whether training came to its end."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from memformer_lab.reports.protocol import Setting
from memformer_lab.runs.fitting import Recipe

Trained = Callable[[Recipe, int], Sequence[float]]
"""(recipe, seed) -> the values of models trained so, one a place."""

Rows = list[list[float]]


def rows_and_longer(setting: Setting, recipe: Recipe, trained: Trained) -> tuple[Rows, Rows]:
    """A row a seed by the recipe, and the first seed's rows by `Recipe.further`.

    Args:
        setting: gives the seeds.
        recipe: of the first kind of rows.
        trained: trains and judges.
    """
    first = setting.seeds[0]
    longer = [list(trained(further, first)) for further in recipe.further()]
    return [list(trained(recipe, seed)) for seed in setting.seeds], longer
