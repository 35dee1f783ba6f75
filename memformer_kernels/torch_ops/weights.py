"""Weights of a context's tokens, folded into the tokens, for kernels that do not know of any.

A layer adds to a token's row what is linear in that row alone, so a scaled token stays the scaled token through all
layers. Rows sqrt(n w_i / sum_j w_j) z_i in the context therefore make the Gram matrices of the weighted network, and
queries see nothing else of the context. Two things the rows do not hold, and the PyTorch backend makes them from
weights themselves: what becomes of a token of weight 0, which a stack returns, and the gradient of a weight that is 0,
where a root has none.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import pad

from memformer_kernels.backends.pytorch.context import Labelled
from memformer_kernels.calls import plan
from memformer_kernels.calls.arguments import Network, compute_dtype


def takes_weights(network: Network, backend: str) -> bool:
    """Whether the backend takes the weights of a prediction or a loss as they are."""
    form = network.form
    return plan.takes_weights(backend, form.space, network.z.shape[2], form.response_only)


def fold(network: Network) -> tuple[Network, Tensor]:
    """The network on scaled tokens without weights, and the scale (B, N): 1 past the context.

    Tokens in half precision become float32, and parameters with them: a product with the scale would be rounded.
    """
    z, context, lengths = network.z, network.context, network.lengths
    dtype = compute_dtype(z)
    weights = network.weights
    labelled = Labelled(context, lengths).weighted(None if weights is None else weights.to(dtype))
    assert labelled.shares is not None
    count: int | Tensor = context if lengths is None else lengths[:, None]
    scale = (labelled.shares.values * count).sqrt()
    if lengths is None:
        scale = pad(scale, (0, z.shape[1] - context), value=1.0)
    else:
        scale = torch.where(labelled.mask(z)[..., 0], scale, 1.0)
    q, p, gamma, beta = (None if x is None else x.to(dtype) for x in network[1:5])
    assert q is not None
    return network._replace(z=scaled(z.to(dtype), scale), q=q, p=p, gamma=gamma, beta=beta, weights=None), scale


def scaled(rows: Tensor, scale: Tensor) -> Tensor:
    """Rows (B, N, D), or their gradients, times their scale; those of scale 0 are dropped by selection."""
    scale = scale[..., None]
    return torch.where(scale == 0, 0.0, rows * scale)


def unfold(grads: Sequence[Tensor], network: Network, needs: Sequence[bool], scale: Tensor) -> list[Tensor]:
    """The gradients that are needed of a network, from those of the folded one."""
    wanted = [x for x, needed in zip(network[:6], needs, strict=True) if needed and x is not None]
    made = [scaled(grads[0], scale), *grads[1:]] if needs[0] else grads
    return [grad.to(x.dtype) for grad, x in zip(made, wanted, strict=True)]
