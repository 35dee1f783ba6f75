"""Gates, folded into the parameters they multiply, so that no kernel ever sees one."""

import torch
from torch import Tensor

from memformer_kernels.torch_ops.sharding import beside


def _precise(parameter: Tensor) -> Tensor:
    """A product of half-precision parameters would be rounded once more than the ungated network's."""
    return parameter.float() if parameter.dtype in (torch.bfloat16, torch.float16) else parameter


def fold(gate: Tensor | None, q: Tensor, gamma: Tensor | None, beta: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """(q, gamma) of the ungated network that equals the gated one.

    A gate shared by layers scales all of a head's registers alike, and registers are linear in Q: it moves into q. So
    does a gate per layer when no layer reads another's register. Otherwise it moves into gamma, whose entries j > l are
    dropped by selection, since they are never read.
    """
    if gate is None:
        return q, gamma
    gate, q, gamma = _precise(gate), _precise(q), None if gamma is None else _precise(gamma)
    diagonal = gamma is None or gamma.ndim == 4
    if gate.ndim == 1 or (diagonal and beta is None):
        return q * gate[..., None, None], gamma
    per_layer = gate[:, :, None, None]
    if gamma is None:
        return q, per_layer
    if diagonal:
        return q, gamma * per_layer
    layers = gate.shape[0]
    read = torch.ones(layers, layers, dtype=torch.bool, device=gamma.device).tril()[:, :, None, None, None]
    return q, torch.where(beside(read, gamma), gamma, 0.0) * per_layer[:, None]
