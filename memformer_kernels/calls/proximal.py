"""Checks of what the steps of a first-order method end in: a level of shrinkage, bounds, or a ball."""

import math
from collections.abc import Mapping

from torch import Tensor

from memformer_kernels.calls.checks import broadcasts, check_floating, check_like, reject, reject_kind


def check_proximal(level: object, lower: object, upper: object, radius: object, a: Tensor, h: Tensor) -> bool:
    """Whether steps end in a prox; raises for one that does not fit checked preconditioners a and matrices h."""
    layers, weights = a.shape[:2]
    given = {"level": level, "lower": lower, "upper": upper, "radius": radius}
    given = {name: value for name, value in given.items() if value is not None}
    for name, value in given.items():
        if isinstance(value, Tensor):
            full = (layers, 1 if name == "radius" else weights)
            if not broadcasts(check_floating(name, value).shape, full):
                reject(name, value, f"a number, or a shape broadcastable to {full}")
            check_like(name, value, h)
        else:
            _check_number(name, value)
    if isinstance(lower, int | float) and isinstance(upper, int | float) and lower > upper:
        reject("lower", lower, f"at most upper, which is {upper}")
    if "radius" in given and len(given) > 1:
        reject("radius", radius, f"None, since a ball goes with no other prox and {_others(given)} came too")
    return bool(given)


def _check_number(name: str, value: object) -> None:
    if not isinstance(value, int | float) or isinstance(value, bool):
        reject_kind(name, value, "a number, or a dense tensor of float32 or float64")
    if math.isnan(value):
        reject(name, value, "a number, and not NaN")
    if name in ("level", "radius") and value < 0:
        reject(name, value, "a number of at least 0")


def _others(given: Mapping[str, object]) -> str:
    return " and ".join(name for name in given if name != "radius")
