"""Seeded tasks and parameters for a workload."""

from typing import NamedTuple

import torch
from torch import Tensor

from benchmarks.workloads import Workload


class Batch(NamedTuple):
    """z (B, N, D): tokens as rows, the query last with response 0; target (B, 1): the query's response."""

    z: Tensor
    target: Tensor


class Parameters(NamedTuple):
    """q (L, H, d, d): the blocks A; gamma (L, L, 1, 1 or N, 1 or D). Both require gradients."""

    q: Tensor
    gamma: Tensor


def make_batch(workload: Workload, seed: int, device: torch.device) -> Batch:
    """Noiseless linear tasks y = x . w with x ~ N(0, I_d), w ~ N(0, I_d)."""
    generator = torch.Generator().manual_seed(seed)
    batch, tokens, d, dtype = workload.batch, workload.tokens, workload.d, workload.torch_dtype
    z = torch.empty(batch, tokens, d + 1, dtype=dtype)
    z[..., :d].normal_(generator=generator)
    weights = torch.randn(batch, d, 1, generator=generator, dtype=dtype)
    response = torch.bmm(z[..., :d], weights)[..., 0]
    z[..., d] = response
    z[:, -1, d] = 0
    return Batch(z.to(device), response[:, -1:].clone().to(device))


def make_parameters(workload: Workload, seed: int, device: torch.device) -> Parameters:
    """A stable method near gradient descent with step 0.3, every entry off its special value so that none is free."""
    generator = torch.Generator().manual_seed(seed)
    dtype, layers, d = workload.torch_dtype, workload.layers, workload.d
    q = torch.randn(layers, workload.heads, d, d, generator=generator, dtype=dtype).mul_(0.03)
    q -= 0.3 / workload.heads * torch.eye(d, dtype=dtype)
    gamma = torch.randn(workload.gamma_shape, generator=generator, dtype=dtype).mul_(0.1)
    gamma += torch.eye(layers, dtype=dtype)[:, :, None, None, None]
    return Parameters(q.to(device).requires_grad_(), gamma.to(device).requires_grad_())
