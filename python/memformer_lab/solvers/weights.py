"""The linear weights that a network with block structure implies, read off its predictions from a Gram matrix."""

from __future__ import annotations

import torch
from torch import Tensor

from memformer_kernels.nn import Memformer


def implied_weights(model: Memformer, gram: Tensor) -> Tensor:
    """Weights w with prediction w . x for every query x: (B, d).

    A network that reads its context through the Gram matrix alone and whose predictions are linear in the query
    (`reads_statistics_alone`) is asked for the d unit queries, on the D = d + 1 tokens whose Gram
    matrix divided by D is `gram`.

    Args:
        model: such a network.
        gram: (B, D, D) symmetric positive semi-definite, the context's Gram matrix divided by its length.
    """
    batch, width = gram.shape[:2]
    values, vectors = torch.linalg.eigh(gram)
    root = (values.clamp(min=0) * width).sqrt().unsqueeze(1) * vectors
    z = gram.new_zeros(batch, 2 * width - 1, width)
    z[:, :width] = root.mT
    z[:, width:, :-1] = torch.eye(width - 1, dtype=gram.dtype, device=gram.device)
    return model.predict(z, context=width)
