"""Small matrices with the batch axis last, where elementwise operations run at memory speed for any d."""

from __future__ import annotations

from torch import Tensor


def product(matrices: Tensor, vectors: Tensor) -> Tensor:
    """Matrix-vector products of a batch: matrices (r, d, B) times vectors (d, B) -> (r, B)."""
    result = matrices[:, 0] * vectors[0]
    for j in range(1, len(vectors)):
        result.addcmul_(matrices[:, j], vectors[j])
    return result
