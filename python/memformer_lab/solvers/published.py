"""The parameters of the Memformer authors' notebooks, as modules.

The published code of Dutta & Sra (arXiv 2410.07263; the public repositories LinearTransformer and NeurIPS-2025 of the
first author) keeps a model in one to four arrays. Tokens are rows there as here, predictions have the same sign, and

    allparam  (L, H, 2, d, d): [l, h, 0] is the block of P (Bm here), [l, h, 1] the block of Q (A here); P has corner 1

With R_l = sum over heads of the attention of layer l, before the layer changes it, the layouts and their rules are

    linear      no memory                         Z += R_l
    cgd         gamma (L,), alpha (L,) or none    R_l += gamma_l R_{l-1};  Z += alpha_l R_l
    scaled_cgd  alpha, beta and gamma, each (L,)  R_l = beta_l R_{l-1} + gamma_l R_l;  Z += alpha_l R_l
    recursive   gamma (L, 1, N, D), alpha as cgd  R_l += gamma_l * R_{l-1};  Z += alpha_l R_l
    sum         alpha (L, 1, N, D)                Z += sum_{j<=l} alpha_j * R_j
    residual    alpha (L, 1, N, D)                Z += R_l + sum_{j<l} alpha_j * R_j
    experts     gamma (L, H, 1, N, D), gate (H,)  Z += sum_h gate_h (R_{l,h} + sum_{j<l} gamma_{j,h} * R_{j,h})

where R_{l,h} is the attention of one head. An alpha that is left out is 1. The names say nothing about the rule: one
notebook's gamma is another's beta. Hence the rule is given by the caller, and an array that the rule does not read is
refused. The notebooks of the sum and residual rules also keep a gamma that nothing reads, and those that train without
memory keep alpha and gamma: leave them out.

Some notebooks change allparam whenever the model is called: `zero_p` empties P, `identity_q` puts the mean of its
diagonal times the identity in the place of Q. Saved parameters are those before that change, so it is asked for here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Literal

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from memformer_kernels.nn import Memformer

PublishedRule = Literal["linear", "cgd", "scaled_cgd", "recursive", "sum", "residual", "experts"]

_PREFIX = "param_"
_VECTOR = ("L",)
_HADAMARD = ("L", "1", "N", "D")


@dataclass(frozen=True)
class Layout:
    """What a published rule keeps beside allparam.

    Attributes:
        ours: the rule of a `Memformer` that computes the same.
        arrays: shapes by name, in the letters of the module's text.
        optional: names that may be left out.
    """

    ours: Literal["linear", "cgd", "recursive", "lfom_shared", "lfom_residual", "gated_heads"]
    arrays: Mapping[str, tuple[str, ...]]
    optional: tuple[str, ...] = ()


LAYOUTS: Mapping[PublishedRule, Layout] = MappingProxyType(
    {
        "linear": Layout("linear", {}),
        "cgd": Layout("cgd", {"alpha": _VECTOR, "gamma": _VECTOR}, ("alpha",)),
        "scaled_cgd": Layout("cgd", {"alpha": _VECTOR, "beta": _VECTOR, "gamma": _VECTOR}),
        "recursive": Layout("recursive", {"alpha": _VECTOR, "gamma": _HADAMARD}, ("alpha",)),
        "sum": Layout("lfom_shared", {"alpha": _HADAMARD}),
        "residual": Layout("lfom_residual", {"alpha": _HADAMARD}),
        "experts": Layout("gated_heads", {"gamma": ("L", "H", "1", "N", "D"), "gate": ("H",)}),
    }
)
"""For each published rule its layout."""


def read_published(path: str | Path) -> dict[str, Tensor]:
    """All parameters in an .npz or .safetensors file, by the notebooks' names.

    Where keys begin with "param_", those are the parameters, without these letters, and the rest is other data. Else
    every array is a parameter. Pickles (.pth, .pt) are not read, since loading one can run any code: save the state
    dict as safetensors first.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: for another kind of file, or one without allparam.
    """
    path = Path(path)
    if path.suffix == ".npz":
        with np.load(path) as archive:
            arrays = {key: torch.from_numpy(archive[key]) for key in archive.files}
    elif path.suffix == ".safetensors":
        try:
            arrays = load_file(path)
        except SafetensorError as error:
            raise ValueError(f"{path} is not a whole safetensors file: {error}") from error
    else:
        raise ValueError(f"{path}: expected an .npz or .safetensors file, got {path.suffix or 'no suffix'!r}")
    marked = {key.removeprefix(_PREFIX): value for key, value in arrays.items() if key.startswith(_PREFIX)}
    found = marked or arrays
    if "allparam" not in found:
        raise ValueError(f"{path} has arrays {sorted(arrays)}, expected 'allparam' among them")
    return found


def load_published(
    arrays: Mapping[str, Tensor], rule: PublishedRule, *, zero_p: bool = False, identity_q: bool = False
) -> Memformer:
    """A `Memformer` with block structure that computes what the published model does, in allparam's dtype.

    One head of the experts layout on its own is a residual model: its allparam[:, h : h + 1] and alpha = gamma[:, h].
    So is one head of the notebooks that give every head its own prompts a scaled_cgd model: its alpha[:, h] and so on.

    Args:
        arrays: allparam, and what the rule's layout has beside it; nothing else.
        rule: one of `LAYOUTS`.
        zero_p: empty P, as notebooks that call zero_p do.
        identity_q: keep of each Q the mean of its diagonal times the identity, as notebooks that call identity_q do.

    Raises:
        ValueError: for an unknown rule, a missing array, one that the rule does not read, or shapes that do not fit.
    """
    if rule not in LAYOUTS:
        raise ValueError(f"rule must be one of {', '.join(LAYOUTS)}, got {rule!r}")
    layout = LAYOUTS[rule]
    required = ["allparam", *(name for name in layout.arrays if name not in layout.optional)]
    if missing := [name for name in required if name not in arrays]:
        raise ValueError(
            f"arrays: rule {rule!r} needs {', '.join(required)}, got {', '.join(sorted(arrays))}: "
            f"no {', '.join(missing)}"
        )
    if strange := sorted(arrays.keys() - {"allparam", *layout.arrays}):
        raise ValueError(
            f"arrays: rule {rule!r} does not read {', '.join(strange)}; choose the rule that does, or leave them out"
        )
    sizes = _check_shapes(arrays, layout)
    matrices = arrays["allparam"]
    with torch.random.fork_rng(devices=[]):
        model = Memformer(
            sizes["d"],
            sizes["L"],
            heads=sizes["H"],
            rule=layout.ours,
            granularity="full" if "N" in sizes else "scalar",
            structure="block",
            tokens=sizes.get("N"),
            dtype=matrices.dtype,
            device=matrices.device,
        )
    p, q = matrices.unbind(2)
    if zero_p:
        p = torch.zeros_like(p)
    if identity_q:
        diagonal = q.diagonal(dim1=-2, dim2=-1).mean(-1)
        q = diagonal[..., None, None] * torch.eye(sizes["d"], dtype=q.dtype, device=q.device)
    model.load_arguments({**_memory(arrays, rule, model), "p": p, **_scaled(q, arrays, rule)})
    return model


def _check_shapes(arrays: Mapping[str, Tensor], layout: Layout) -> dict[str, int]:
    """The sizes by letter, N only where an array has it. ValueError for shapes that do not fit."""
    matrices = arrays["allparam"]
    if matrices.ndim != 5 or matrices.shape[2] != 2 or matrices.shape[3] != matrices.shape[4]:
        raise ValueError(f"allparam must be (L, H, 2, d, d), got {tuple(matrices.shape)}")
    sizes = {"L": matrices.shape[0], "H": matrices.shape[1], "d": matrices.shape[3], "D": matrices.shape[3] + 1, "1": 1}
    for name, letters in layout.arrays.items():
        if name not in arrays:
            continue
        shape = tuple(arrays[name].shape)
        if "N" in letters and len(shape) == len(letters):
            sizes.setdefault("N", shape[letters.index("N")])
        if shape != tuple(sizes.get(letter, -1) for letter in letters):
            expected = ", ".join(str(sizes.get(letter, letter)) for letter in letters)
            comma = "," if len(letters) == 1 else ""
            raise ValueError(f"{name} must be ({', '.join(letters)}{comma}) = ({expected}{comma}), got {shape}")
    return sizes


def _scaled(q: Tensor, arrays: Mapping[str, Tensor], rule: PublishedRule) -> dict[str, Tensor]:
    """Attention is linear in Q, which takes the factor of scaled_cgd's new register."""
    return {"q": q * arrays["gamma"][:, None, None, None] if rule == "scaled_cgd" else q}


def _memory(arrays: Mapping[str, Tensor], rule: PublishedRule, model: Memformer) -> dict[str, Tensor]:
    """gamma, beta and gate of the model, where it has them, as `Memformer.load_arguments` takes them."""
    if model.gamma is None:
        return {}
    if rule in ("cgd", "scaled_cgd", "recursive"):
        assert model.beta is not None
        alpha = arrays["alpha"] if "alpha" in arrays else arrays["allparam"].new_ones(model.layers)
        kept = arrays["beta" if rule == "scaled_cgd" else "gamma"]
        return {"gamma": alpha.view(model.gamma.shape), "beta": kept.reshape(model.beta.shape)}
    if rule == "sum":
        return {"gamma": arrays["alpha"].unsqueeze(0)}
    past = arrays["gamma"].squeeze(2) if rule == "experts" else arrays["alpha"]
    own = torch.eye(model.layers, dtype=torch.bool, device=past.device)[:, :, None, None, None]
    found = {"gamma": torch.where(own, 1.0, past)}
    return found | ({"gate": arrays["gate"]} if rule == "experts" else {})
