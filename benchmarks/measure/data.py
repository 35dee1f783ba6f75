"""Seeded tasks and parameters for a workload."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from benchmarks.measure.workloads import Workload


class Batch(NamedTuple):
    """z (B, N, D): tokens as rows, the query last with response 0; target (B, 1): the query's response."""

    z: Tensor
    target: Tensor


@dataclass(frozen=True)
class Parameters:
    """Arguments of `memformer_kernels.functional` by name; None where the network has no such. All require gradients.

    Iterating gives those there are: q (L, H, d, d) and gamma (L, L, 1, 1 or N, 1 or D) of a response-only LFOM.
    """

    q: Tensor
    gamma: Tensor | None = None
    beta: Tensor | None = None
    gate: Tensor | None = None
    p: Tensor | None = None

    @property
    def named(self) -> dict[str, Tensor]:
        return {name: tensor for name, tensor in vars(self).items() if tensor is not None}

    def __iter__(self) -> Iterator[Tensor]:
        return iter(self.named.values())

    def double(self) -> "Parameters":
        """A copy in float64."""
        return Parameters(**{name: x.detach().double().requires_grad_() for name, x in self.named.items()})


def make_batch(workload: Workload, seed: int, device: torch.device) -> Batch:
    """Noiseless linear tasks y = x . w with x ~ N(0, I_d), w ~ N(0, I_d)."""
    generator = torch.Generator().manual_seed(seed)
    batch, tokens, d, dtype = workload.batch, workload.tokens, workload.d, workload.parameter_dtype
    z = torch.empty(batch, tokens, d + 1, dtype=dtype, device="cpu")
    z[..., :d].normal_(generator=generator)
    weights = torch.randn(batch, d, 1, generator=generator, dtype=dtype, device=generator.device)
    response = torch.bmm(z[..., :d], weights)[..., 0]
    z[..., d] = response
    z[:, -1, d] = 0
    dtype = workload.torch_dtype
    return Batch(z.to(device, dtype), response[:, -1:].clone().to(device, dtype))


def make_parameters(workload: Workload, seed: int, device: torch.device) -> Parameters:
    """A stable method near gradient descent with step 0.3, every entry off its special value so that none is free."""
    generator = torch.Generator().manual_seed(seed)
    dtype, d, heads = workload.parameter_dtype, workload.d, workload.heads
    made: dict[str, Tensor] = {}
    for name, shape in workload.parameter_shapes.items():
        tensor = torch.randn(shape, generator=generator, dtype=dtype, device=generator.device)
        if name in ("q", "p"):
            tensor.mul_(0.03 if name == "q" else 0.01)
            side = torch.arange(d, device="cpu", dtype=torch.int64)
            tensor[..., side, side] -= 0.3 / heads if name == "q" else 0.0
            if name == "p" and workload.structure == "dense":
                tensor[..., -1, -1] += 1
        else:
            tensor.mul_(0.1)
            tensor += _start(name, workload)
        made[name] = tensor.to(device).requires_grad_()
    return Parameters(**made)


def _start(name: str, workload: Workload) -> Tensor | float:
    if name != "gamma":
        return 1.0 if name == "gate" else 0.0
    if workload.rule == "lfom_shared":
        return 1 / workload.layers
    if workload.rule in ("cgd", "recursive"):
        return 1.0
    return torch.eye(workload.layers, dtype=workload.parameter_dtype, device="cpu")[:, :, None, None, None]
