"""Numbers to try the virtual GPU's arithmetic on, and what rounds them exactly."""

from fractions import Fraction
from typing import Any

import numpy as np
import torch

EVEN, ZERO, DOWN, UP, AWAY = range(5)
ALL_HALVES = np.arange(65536, dtype=np.uint16)
BFLOAT16_ONE = 0x3F80
FORMATS = {"float16": (5, 10, 0), "bfloat16": (8, 7, 0), "tf32": (8, 10, 13)}
"""Bits of the exponent, of the fraction, and zeros behind."""


def floats(seed: int, count: int, dtype: Any = np.float32) -> Any:
    """Numbers of every size, subnormal ones among them, with the ends of the range and small integers."""
    draw = np.random.default_rng(seed)
    unsigned = np.uint32 if dtype is np.float32 else np.uint64
    bits = draw.integers(0, 2 ** (8 * dtype().nbytes), count, dtype=unsigned)
    values = bits.view(dtype)
    near = (draw.standard_normal(count) * 2.0 ** draw.integers(-4, 4, count)).astype(dtype)
    finite = np.finfo(dtype)
    special = np.array([0.0, -0.0, 1, -1, 2, 3, finite.max, -finite.max, finite.tiny, finite.smallest_subnormal], dtype)
    mixed = np.where(draw.random(count) < 0.5, near, np.where(np.isfinite(values), values, near))
    return np.where(draw.random(count) < 0.1, draw.choice(special, count), mixed).astype(dtype)


def directed(exact: Fraction, mode: int, dtype: Any) -> Any:
    """A fraction rounded toward zero, down or up to a numpy type."""
    most = np.finfo(dtype).max
    if abs(exact) > Fraction(float(most)):
        below, above = (most, dtype(np.inf)) if exact > 0 else (dtype(-np.inf), -most)
    else:
        below = dtype(float(exact))
        if Fraction(float(below)) > exact:
            below = np.nextafter(below, dtype(-np.inf))
        above = below if Fraction(float(below)) == exact else np.nextafter(below, dtype(np.inf))
    return {DOWN: below, UP: above, ZERO: below if exact > 0 else above}[mode]


def tables(exponent_bits: int, fraction_bits: int) -> Any:
    """Every finite number of a format from +0 up, as doubles: the place in it is the number's magnitude in bits."""
    bits = np.arange(((1 << exponent_bits) - 1) << fraction_bits)
    exponent, fraction = bits >> fraction_bits, bits & ((1 << fraction_bits) - 1)
    leading = (exponent > 0).astype(float)
    scale = np.maximum(exponent, 1) - (1 << (exponent_bits - 1)) + 1
    return np.ldexp(leading + fraction / (1 << fraction_bits), scale)


def halves(kind: str) -> Any:
    """All halves of a kind as float32."""
    return torch.from_numpy(ALL_HALVES.view(np.int16).copy()).view(getattr(torch, kind)).float().numpy()
