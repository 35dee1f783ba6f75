"""Models of several depths in one state: the shallower ones end in identity layers."""

from collections.abc import Mapping

import torch
from torch import Tensor

from memformer_kernels.calls.checks import dense, reject, reject_kind


def whole_masks(model: Mapping[str, Tensor], trainable: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The entries of each parameter that training may change, of the parameter's shape; all where nothing is said."""
    masks = {}
    for name, value in model.items():
        mask = trainable.get(name, torch.ones((), dtype=torch.bool, device=value.device))
        if not isinstance(mask, Tensor) or mask.dtype != torch.bool or not dense(mask):
            reject_kind(f"trainable[{name!r}]", mask, "a tensor of bool")
        try:
            masks[name] = mask.to(value.device).expand(value.shape)
        except RuntimeError:
            reject(f"trainable[{name!r}]", mask, f"a tensor that broadcasts to {tuple(value.shape)}")
    unknown = [name for name in trainable if name not in model]
    if unknown:
        reject("trainable", unknown, f"names out of {', '.join(model)}")
    return masks


def padded(
    model: Mapping[str, Tensor], masks: Mapping[str, Tensor], depth: int
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The model and its masks with identity layers after its own, which training leaves alone.

    An added layer has q = 0 and, where there is memory, gamma and beta 0: it adds nothing to the tokens. So has a gate
    for each layer; one that layers share stays.
    """
    layers = model["q"].shape[0]
    if layers == depth:
        return dict(model), dict(masks)
    gamma, beta = model.get("gamma"), model.get("beta")
    shared_gamma = layers > 1 and gamma is not None and gamma.shape[0] == 1 and (gamma.ndim == 5 or beta is not None)
    shared_beta = layers > 1 and gamma is None and beta is not None and beta.shape[0] == 1
    if shared_gamma or shared_beta:
        reject(
            "models", f"{layers} layers that share gamma or beta", f"{depth} layers, or a gamma or beta for each layer"
        )
    values, entries = {}, {}
    for name, value in model.items():
        axes, shape = _depth_axes(name, value, layers), list(value.shape)
        for axis in axes:
            shape[axis] = depth
        own = tuple(slice(layers) if axis in axes else slice(None) for axis in range(value.ndim))
        values[name], entries[name] = value.new_zeros(shape), masks[name].new_zeros(shape)
        values[name][own], entries[name][own] = value, masks[name]
    return values, entries


def unpadded(model: Mapping[str, Tensor], layers: int) -> dict[str, Tensor]:
    """The model without the identity layers that padded it.

    Raises:
        ValueError: what comes after `layers` is no padding.
    """
    depth = model["q"].shape[0]
    if layers > depth or bool((model["q"][layers:] != 0).any()):
        reject("module", f"{layers} layers", f"as many as the model has, {depth} with those that pad it")
    own = {}
    for name, value in model.items():
        own[name] = value
        for axis in _depth_axes(name, value, depth):
            own[name] = own[name].narrow(axis, 0, layers)
    return own


def _depth_axes(name: str, value: Tensor, layers: int) -> list[int]:
    """The axes of a parameter that count its model's layers."""
    if name == "gate":
        return [0] if value.ndim == 2 else []
    return [axis for axis in range(2 if name == "gamma" and value.ndim == 5 else 1) if value.shape[axis] == layers]
