"""Measured regression data shipped inside scikit-learn and statsmodels, as in-context tasks. No network is used."""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from types import ModuleType

import numpy as np
import torch
from torch import Generator, Tensor

from memformer_lab.tasks.standardised import standardise

# Response and features of the statsmodels sets. Left out: star98's products of its own features, and longley's YEAR,
# copper's TIME, which count rows instead of measuring anything.
_STATSMODELS: dict[str, tuple[str, tuple[str, ...]]] = {
    "stackloss": ("STACKLOSS", ("AIRFLOW", "WATERTEMP", "ACIDCONC")),
    "ccard": ("AVGEXP", ("AGE", "INCOME", "INCOMESQ", "OWNRENT")),
    "statecrime": ("murder", ("urban", "poverty", "hs_grad", "single")),
    "copper": ("WORLDCONSUMPTION", ("COPPERPRICE", "INCOMEINDEX", "ALUMPRICE", "INVENTORYINDEX")),
    "longley": ("TOTEMP", ("GNPDEFL", "GNP", "UNEMP", "ARMED", "POP")),
    "star98": (
        "SHARE_ABOVE",
        (
            "LOWINC",
            "PERASIAN",
            "PERBLACK",
            "PERHISP",
            "PERMINTE",
            "AVYRSEXP",
            "AVSALK",
            "PERSPENK",
            "PTRATIO",
            "PCTAF",
            "PCTCHRT",
            "PCTYRRND",
        ),
    ),
}


@dataclass(frozen=True)
class RegressionSet:
    """Measured rows of a regression problem, in the units they ship in.

    Attributes:
        name: the name `load` takes.
        x: (rows, d) features, float64.
        y: (rows,) response, float64.
        feature_names: d names, in the order of x's columns.
        response_name: name of y.
        source: package and loader the rows come from.
    """

    name: str
    x: Tensor
    y: Tensor
    feature_names: tuple[str, ...]
    response_name: str
    source: str


@dataclass(frozen=True)
class RealBatch:
    """In-context tasks made of measured rows, in scaled units; a `TaskBatch` without true weights, which are unknown.

    Attributes:
        z: (tasks, n + queries, d+1) tokens as rows: context rows first, then query rows with response 0.
        target: (tasks, queries) measured responses of the query rows.
        context: number of labelled examples n.
    """

    z: Tensor
    target: Tensor
    context: int


def names() -> tuple[str, ...]:
    """The names that `load` takes."""
    return ("diabetes", "linnerud", *_STATSMODELS)


def load(name: str) -> RegressionSet:
    """Load one set by name.

    diabetes: progression after a year from ten measurements of 442 patients. linnerud: waist of 20 men from three
    exercises. stackloss: 21 days of a plant. ccard: credit card expenses of 72 people. statecrime: murder rate of the
    US states and DC. copper: world consumption in 25 years. longley: US employment in 16 years, close to collinear.
    star98: the share of pupils above the national median in 303 Californian districts.

    Raises:
        ValueError: for a name that `names` does not list.
        ImportError: if scikit-learn or statsmodels is missing.
    """
    if name not in names():
        raise ValueError(f"name must be one of {', '.join(names())}, got {name!r}")
    if name in _STATSMODELS:
        return _load_statsmodels(name)
    datasets = _import("sklearn.datasets")
    if name == "diabetes":
        bunch = datasets.load_diabetes(scaled=False)
        y, response = bunch.target, "progression"
    else:
        bunch = datasets.load_linnerud()
        response = "Waist"
        y = bunch.target[:, list(bunch.target_names).index(response)]
    features = tuple(str(feature) for feature in bunch.feature_names)
    return RegressionSet(name, _tensor(bunch.data), _tensor(y), features, response, f"sklearn.datasets.load_{name}")


def contexts(
    dataset: RegressionSet,
    n: int,
    tasks: int,
    generator: Generator,
    queries: int = 1,
    *,
    dtype: torch.dtype = torch.float32,
) -> RealBatch:
    """Draw tasks: n context rows and `queries` held-out rows each, all different, in units of the context alone.

    Features and response are centred and scaled one by one by the context's mean and standard deviation (`standardise`,
    in float64) and not decorrelated, so correlations stay as measured. Errors are in standard deviations of the
    context's response. Memory is tasks * rows numbers for a moment.

    Args:
        dataset: the measured set.
        n: labelled rows in a context, at least 2.
        tasks: how many are drawn.
        generator: what draws the rows; tasks are on its device.
        queries: held-out rows a task, at least 1.
        dtype: of the tasks, float32 or float64.

    Raises:
        ValueError: if n < 2, queries < 1, tasks < 0 or n + queries exceeds the rows of the set.
        TypeError: for a dtype other than float32 and float64.
    """
    rows = len(dataset.y)
    if n < 2:
        raise ValueError(f"n must be at least 2, one row has no spread to scale by, got {n}")
    if queries < 1:
        raise ValueError(f"queries must be at least 1, got {queries}")
    if tasks < 0:
        raise ValueError(f"tasks must be at least 0, got {tasks}")
    if n + queries > rows:
        raise ValueError(f"n + queries must be at most the {rows} rows of {dataset.name}, got {n} + {queries}")
    if dtype not in (torch.float32, torch.float64):
        raise TypeError(f"dtype must be torch.float32 or torch.float64, got {dtype}")
    device = generator.device
    order = torch.rand(tasks, rows, generator=generator, dtype=torch.float64, device=device).argsort(dim=1)
    drawn = order[:, : n + queries]
    scaled = standardise(dataset.x.to(device)[drawn], dataset.y.to(device)[drawn], n)
    return RealBatch(z=scaled.z.to(dtype), target=scaled.target.to(dtype), context=n)


def _load_statsmodels(name: str) -> RegressionSet:
    response, features = _STATSMODELS[name]
    table = _import(f"statsmodels.datasets.{name}").load_pandas().data
    # star98 counts pupils above and below the national median; their share is what a linear model can predict.
    y = table["NABOVE"] / (table["NABOVE"] + table["NBELOW"]) if name == "star98" else table[response]
    source = f"statsmodels.datasets.{name}"
    return RegressionSet(name, _tensor(table[list(features)]), _tensor(y), features, response, source)


def _import(module: str) -> ModuleType:
    # Imported at use: statsmodels and scikit-learn take seconds to import and only these sets need them.
    try:
        return importlib.import_module(module)
    except ImportError as error:
        package = {"sklearn": "scikit-learn"}.get(module.split(".")[0], module.split(".")[0])
        raise ImportError(f"{package} is needed to load this set: pip install 'memformer_kernels[lab]'") from error


def _tensor(values: object) -> Tensor:
    return torch.from_numpy(np.array(values, dtype=np.float64))
