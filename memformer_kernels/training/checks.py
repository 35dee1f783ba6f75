"""Checks of numbers that more than one file of this package makes."""

import math

from memformer_kernels.problem import check_size, reject, reject_kind


def check_number(name: str, value: object, least: float, below: float = math.inf, *, open_end: bool = False) -> float:
    """A finite number from `least` (or above it, with `open_end`) up to but not including `below`."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        reject_kind(name, value, "a number")
    if not least <= value < below or (open_end and value == least):
        bound = "" if below == math.inf else f" and below {below:g}"
        reject(name, value, f"a finite number {'above' if open_end else 'of at least'} {least:g}{bound}")
    return float(value)


def check_count(name: str, value: object, most: int, least: int = 1) -> int:
    """An int from `least` to `most`."""
    count = check_size(name, value, least)
    if count > most:
        reject(name, value, f"an int of at most {most}")
    return count
