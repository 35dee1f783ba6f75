"""Networks of learned iterative shrinkage for one dictionary: what is trained, and the `lfom_solve` that it is."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from memformer_kernels import lfom_solve
from memformer_lab.solvers.proximal import coupled_preconditioner

STRIDE = 0.1
"""How far learned weights move for a change of 1 in their parameters: one rate serves them and logarithms."""


class Shrinkage(nn.Module):
    """w_{l+1} = soft(w_l + W_l^T (y - D w_l), level_l) from w_0 = 0, in float32.

    Levels are learned by their logarithms, and with them a size a layer of W_l = size_l W, as in ALISTA (ICLR 2019), or
    all entries of W_l, as in LISTA-CP (arXiv 1808.10038). Training multiplies by D and W_l, which together have n / d
    as many numbers as h and a of `lfom_solve`, whose layers `codes` are.

    Args:
        dictionary: D (n, d) of rank n.
        analysis: W (n, d), or the W_l (L, n, d), to begin with.
        levels: (L,) positive, to begin with.
        learned: whether all entries of W_l are learned, and not their sizes.

    Raises:
        ValueError: for shapes that do not fit, and levels that are not positive.
    """

    dictionary: Tensor
    start: Tensor

    def __init__(self, dictionary: Tensor, analysis: Tensor, levels: Sequence[float], *, learned: bool) -> None:
        super().__init__()
        if not levels or not min(levels) > 0:
            raise ValueError(f"levels must be positive, one a layer, got {list(levels)}")
        each = (len(levels), *dictionary.shape)
        if dictionary.ndim != 2 or tuple(analysis.shape) not in (each, each[1:]):
            raise ValueError(f"analysis must be of shape {each[1:]} or {each}, got {tuple(analysis.shape)}")
        self.learned = learned
        self.register_buffer("dictionary", dictionary.float())
        self.register_buffer("start", analysis.float().expand(each).clone())
        start = torch.tensor(levels, dtype=torch.float32, device=dictionary.device)
        self.log_level = nn.Parameter(start.log())
        self.change = nn.Parameter(self.start.new_zeros(each if learned else (len(levels), 1, 1)))

    @property
    def matrices(self) -> Tensor:
        """W_l, (L, n, d)."""
        return self.start + STRIDE * self.change if self.learned else self.change.exp() * self.start

    def forward(self, y: Tensor) -> Tensor:
        """Codes after each layer, (L, B, d), of measurements y (B, n), by products with D and W_l."""
        w, found = y.new_zeros(len(y), self.dictionary.shape[1]), []
        for matrix, level in zip(self.matrices, self.log_level.exp(), strict=True):
            point = torch.addmm(w, torch.addmm(y, w, self.dictionary.T, alpha=-1), matrix)
            w = point - point.clamp(-level, level)
            found.append(w)
        return torch.stack(found)

    def method(self) -> tuple[Tensor, Tensor]:
        """`a` (L, d, d) and `level` (L, 1) of the `lfom_solve` that this is, float32."""
        a = -coupled_preconditioner(self.dictionary.double(), self.matrices.double())
        return a.float(), self.log_level.exp().unsqueeze(-1)

    def codes(self, y: Tensor) -> Tensor:
        """The same by `lfom_solve`: one quadratic, with a column for each code."""
        a, level = self.method()
        h, b = self.dictionary.T @ self.dictionary, y @ self.dictionary
        found = lfom_solve(h.unsqueeze(0), b.mT.unsqueeze(0), a, level=level, layers=True)
        return found[:, 0].mT
