"""The golden files: numbers of the published model code, as cases of the public contract."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from memformer_kernels.testing import Case

FOLDER = Path(__file__).parents[1] / "data" / "golden"
NAMES = ("linear_transformer", "cgd_scalar", "lfom_hadamard_sum", "lfom_gdpp")


@dataclass(frozen=True)
class Golden:
    """One file: leaves by name, the case they make, and what must come out.

    A leaf is a parameter of the published code, which the public functions may take in another shape.
    """

    name: str
    leaves: dict[str, Tensor]
    case: Callable[[dict[str, Tensor]], Case]
    tokens: Tensor
    loss: Tensor
    grads: dict[str, Tensor]

    def own_case(self) -> Case:
        return self.case(self.leaves)


def load(name: str) -> Golden:
    """Reads a file; its README gives the meaning of the keys."""
    with np.load(FOLDER / f"{name}.npz", allow_pickle=False) as archive:
        numbers = {key: torch.from_numpy(archive[key]) for key in archive.files}
    projections = numbers["param_allparam"]
    leaves = {"p": projections[:, :, 0], "q": projections[:, :, 1]}
    grads = {"p": numbers["grad_allparam"][:, :, 0], "q": numbers["grad_allparam"][:, :, 1]}
    renamed = {"gamma": "param_alpha", "beta": "param_gamma"}
    for ours, theirs in renamed.items():
        if theirs.replace("param", "grad") in numbers:
            leaves[ours] = numbers[theirs]
            grads[ours] = numbers[theirs.replace("param", "grad")]

    def case(values: dict[str, Tensor]) -> Case:
        gamma, beta = values.get("gamma"), values.get("beta")
        return Case(
            numbers["Z0"].to(values["q"].dtype),
            values["q"],
            values["p"],
            None if gamma is None else _WEIGHTS[name](gamma),
            None if beta is None else _per_layer(beta),
            target=numbers["target"][:, None].to(values["q"].dtype),
        )

    return Golden(
        name,
        {key: value.clone().requires_grad_() for key, value in leaves.items()},
        case,
        numbers["ZL"],
        numbers["loss"],
        grads,
    )


def _per_layer(scalars: Tensor) -> Tensor:
    return scalars[:, None, None, None]


def _shared(alpha: Tensor) -> Tensor:
    return alpha[None]


def _residual(alpha: Tensor) -> Tensor:
    """1 for the new register, alpha_j for the past ones."""
    layers = alpha.shape[0]
    own = torch.eye(layers, dtype=torch.bool)[:, :, None, None, None]
    return torch.where(own, 1.0, alpha.expand(layers, *alpha.shape))


_WEIGHTS: dict[str, Callable[[Tensor], Tensor]] = {
    "cgd_scalar": _per_layer,
    "lfom_hadamard_sum": _shared,
    "lfom_gdpp": _residual,
}

IN_SPACES = [
    (name, algorithm)
    for name in NAMES
    for algorithm in (("token",) if load(name).own_case().token_axis else ("gram", "token"))
]
"""Every file with the algorithms that have its weights: Gram space has no token axis."""
