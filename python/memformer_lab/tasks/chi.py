"""Chi distributed numbers by rejection, at a cost that does not grow with the degrees of freedom."""

from __future__ import annotations

import math

import torch
from torch import Generator, Tensor


def chi_by_rejection(freedom: int, batch: int, generator: Generator, dtype: torch.dtype) -> Tensor:
    """(batch,) exact draws of chi(freedom), freedom >= 2, by the method of Marsaglia and Tsang (2000).

    chi^2(k) is twice Gamma(k/2). For k of a hundred and more nearly every proposal is accepted, so a few rounds of
    vectorised proposals for what is left suffice.
    """
    shape = freedom / 2 - 1 / 3
    scale = 1 / math.sqrt(9 * shape)
    gamma = torch.empty(batch, dtype=dtype, device=generator.device)
    left = torch.arange(batch, device=generator.device, dtype=torch.int64)
    while len(left):
        normal = torch.randn(len(left), generator=generator, dtype=dtype, device=generator.device)
        uniform = 1 - torch.rand(len(left), generator=generator, dtype=dtype, device=generator.device)
        cube = (1 + scale * normal) ** 3
        bound = 0.5 * normal.square() + shape * (1 - cube + cube.log())
        # A negative cube has no logarithm: the comparison with NaN refuses it.
        accepted = uniform.log() < bound
        gamma[left[accepted]] = shape * cube[accepted]
        left = left[~accepted]
    return (2 * gamma).sqrt()
