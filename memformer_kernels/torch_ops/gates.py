"""Gates, folded into the parameters they multiply, so that no kernel ever sees one."""

import torch
from torch import Tensor

from memformer_kernels.calls.problem import weights_registers
from memformer_kernels.torch_ops.sharding import on_every_process


def _precise(parameter: Tensor) -> Tensor:
    """A product of half-precision parameters would be rounded once more than the ungated network's."""
    return parameter.float() if parameter.dtype in (torch.bfloat16, torch.float16) else parameter


def fold(gate: Tensor | None, q: Tensor, gamma: Tensor | None, beta: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """(q, gamma) of the ungated network that equals the gated one: the gate moves into one of the two.

    Where it moves into gamma, entries j > l are dropped by selection, since they are never read.
    """
    if gate is None:
        return q, gamma
    gate, q, gamma = _precise(gate), _precise(q), None if gamma is None else _precise(gamma)
    if not weights_registers(gate, gamma, beta):
        return q * gate[..., None, None], gamma
    per_layer = gate[:, :, None, None]
    if gamma is None:
        return q, per_layer
    if gamma.ndim == 4:
        return q, gamma * per_layer
    layers = gate.shape[0]
    read = torch.ones(layers, layers, dtype=torch.bool, device=gamma.device).tril()[:, :, None, None, None]
    return q, torch.where(on_every_process(read, gamma), gamma, 0.0) * per_layer[:, None]
