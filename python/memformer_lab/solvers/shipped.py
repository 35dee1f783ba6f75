"""The trained networks that come with the package, and what they make of a Gram matrix."""

from __future__ import annotations

import math
from functools import cache
from importlib.resources import as_file, files

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file

from memformer_kernels.nn import Memformer
from memformer_lab.solvers.first_order import implied_weights

LARGEST_D = 16
"""The most features that a shipped network reads."""

RATIOS = (4, 16, 64)
"""Rows a feature that networks were trained with."""

LAYERS = 4

FILE = "regressor.safetensors"

Array = NDArray[np.float64]


def key(d: int, ratio: int, name: str) -> str:
    """The name of a parameter in the file."""
    return f"d{d}.r{ratio}.{name}"


def blank(d: int) -> Memformer:
    """A network of the shipped kind; the global random state stays as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return Memformer(
            d, LAYERS, rule="lfom", granularity="feature", structure="block", device="cpu", dtype=torch.float32
        )


def nearest_ratio(d: int, rows: int) -> int:
    """The trained number of rows a feature that is nearest to rows / d in the logarithm."""
    return min(RATIOS, key=lambda ratio: abs(math.log(ratio * d / rows)))


@cache
def shipped_network(d: int, ratio: int) -> Memformer:
    """The network for d features and `ratio` rows a feature, in float64.

    Raises:
        ValueError: if there is none.
    """
    if not 1 <= d <= LARGEST_D or ratio not in RATIOS:
        raise ValueError(f"d must be from 1 to {LARGEST_D} and ratio one of {RATIOS}, got {d} and {ratio}")
    with as_file(files("memformer_lab") / "data" / FILE) as path:
        tensors = load_file(path)
    network = blank(d)
    network.load_state_dict({name: tensors[key(d, ratio, name)] for name in network.state_dict()})
    return network.double().requires_grad_(False)


def shipped_weights(h: Array, b: Array, rows: int) -> Array:
    """Weights (m, d) for a context in standard units: h (d, d) and, of m responses, b (m, d) over `rows` rows.

    d is at most `LARGEST_D`. Each response is a task of its own: what they share, the attention, is worked out again
    for each, by kernels that take tasks of one response.
    """
    responses, d = b.shape
    gram = np.zeros((responses, d + 1, d + 1))
    gram[:, :d, :d], gram[:, :d, d], gram[:, d, :d] = h, b, b
    # The smallest response variance that leaves the matrix positive semi-definite; block structure never reads it.
    gram[:, d, d] = np.maximum(1.0, (b.T * np.linalg.lstsq(h, b.T, rcond=None)[0]).sum(0))
    with torch.no_grad():
        weights = implied_weights(shipped_network(d, nearest_ratio(d, rows)), torch.from_numpy(gram))
    found: Array = np.asarray(weights.numpy(), dtype=np.float64)
    return found
