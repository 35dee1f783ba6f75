"""The parameters of the Memformer authors' notebooks, as modules.

The published code of Dutta & Sra (arXiv 2410.07263) keeps a model in one to three arrays:

    allparam  (L, H, 2, d, d): [l, h, 0] is the block of P (Bm here), [l, h, 1] the block of Q (A here); P has corner 1
    alpha     "cgd": (L,), weight of layer l's register;  "sum" and "residual": (L, 1, N, D), the Hadamard weight of
              register j, the same for every layer
    gamma     "cgd": (L,), how much of the last register is kept (beta here);  unused by the other rules

with these rules for R_l = attention of layer l:

    linear    Z += R_l
    cgd       R_l += gamma_l R_{l-1};  Z += alpha_l R_l
    sum       Z += sum_{j<=l} alpha_j * R_j
    residual  Z += R_l + sum_{j<l} alpha_j * R_j

Tokens are rows there as here, and predictions have the same sign.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Literal

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from memformer_kernels.nn import Memformer
from memformer_kernels.nn.memformer import Rule
from memformer_kernels.nn.parameters import Granularity

PublishedRule = Literal["linear", "cgd", "sum", "residual"]

RULES: Mapping[str, tuple[Rule, Granularity]] = MappingProxyType(
    {
        "linear": ("linear", "scalar"),
        "cgd": ("cgd", "scalar"),
        "sum": ("lfom_shared", "full"),
        "residual": ("lfom_residual", "full"),
    }
)
"""For each published rule, ours and its granularity."""


def read_published(path: str | Path) -> dict[str, Tensor]:
    """The arrays allparam, alpha and gamma of an .npz or .safetensors file; a key may begin with "param_".

    Pickles (.pth, .pt) are not read, since loading one can run any code: save the state dict as safetensors first.

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
    found = {key.removeprefix("param_"): value for key, value in arrays.items()}
    found = {key: value for key, value in found.items() if key in ("allparam", "alpha", "gamma")}
    if "allparam" not in found:
        raise ValueError(f"{path} has arrays {sorted(arrays)}, expected 'allparam' among them")
    return found


def load_published(arrays: Mapping[str, Tensor], rule: PublishedRule) -> Memformer:
    """A `Memformer` with block structure that computes what the published model does, in allparam's dtype.

    Args:
        arrays: allparam, and alpha and gamma where the rule uses them.
        rule: one of `RULES`.

    Raises:
        ValueError: for an unknown rule, a missing array or shapes that do not fit.
    """
    if rule not in RULES:
        raise ValueError(f"rule must be one of {', '.join(RULES)}, got {rule!r}")
    needed = {"linear": ("allparam",), "cgd": ("allparam", "alpha", "gamma")}.get(rule, ("allparam", "alpha"))
    missing = [name for name in needed if name not in arrays]
    if missing:
        raise ValueError(f"arrays: rule {rule!r} needs {', '.join(needed)}, got {', '.join(sorted(arrays))}")
    matrices = arrays["allparam"]
    if matrices.ndim != 5 or matrices.shape[2] != 2 or matrices.shape[3] != matrices.shape[4]:
        raise ValueError(f"allparam must be (L, H, 2, d, d), got {tuple(matrices.shape)}")
    layers, heads, _, d, _ = matrices.shape
    alpha = arrays.get("alpha")
    tokens = None
    if rule in ("sum", "residual"):
        assert alpha is not None
        if alpha.ndim != 4 or alpha.shape[:2] != (layers, 1) or alpha.shape[3] != d + 1:
            raise ValueError(f"alpha must be (L, 1, N, D) = ({layers}, 1, N, {d + 1}), got {tuple(alpha.shape)}")
        tokens = alpha.shape[2]
    ours, granularity = RULES[rule]
    with torch.random.fork_rng(devices=[]):
        model = Memformer(
            d,
            layers,
            heads=heads,
            rule=ours,
            granularity=granularity,
            structure="block",
            tokens=tokens,
            dtype=matrices.dtype,
            device=matrices.device,
        )
    with torch.no_grad():
        assert model.p is not None
        model.p.copy_(matrices[:, :, 0])
        model.q.copy_(matrices[:, :, 1])
        if rule == "cgd":
            for name, parameter in (("alpha", model.gamma), ("gamma", model.beta)):
                assert parameter is not None
                if arrays[name].shape != (layers,):
                    raise ValueError(f"{name} must be ({layers},), got {tuple(arrays[name].shape)}")
                parameter.copy_(arrays[name].reshape(layers, 1, 1, 1))
        elif alpha is not None and model.gamma is not None:
            model.gamma.copy_(alpha.unsqueeze(0).expand_as(model.gamma))
    return model
