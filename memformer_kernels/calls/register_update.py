"""Validates the arguments of `register_update`, and folds them to the axes kernels know: (A, M, C) and gamma (J, M)."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from memformer_kernels.calls.arguments import Update
from memformer_kernels.calls.checks import HALF, autocasts, broadcasts, check_floating, check_like, reject, reject_kind


def check_update(z: object, registers: object, gamma: object) -> Update:
    """The arguments of `register_update`."""
    tokens = check_floating("z", z)
    if isinstance(registers, Tensor | str) or not isinstance(registers, Sequence):
        reject_kind("registers", registers, "a sequence of tensors of z's shape")
    if not registers:
        reject("registers", registers, "at least one register")
    checked = []
    for index, register in enumerate(registers):
        name = f"registers[{index}]"
        made = check_floating(name, register)
        if made.shape != tokens.shape:
            reject(name, register, f"z's shape {tuple(tokens.shape)}")
        checked.append(check_like(name, made, tokens))
    weights = check_floating("gamma", gamma)
    shape = tuple(weights.shape)
    trailing, missing = shape[1:], tokens.ndim + 1 - len(shape)
    fits = len(shape) >= 1 and shape[0] == len(checked)
    if not fits or not broadcasts(trailing, tokens.shape):
        reject("gamma", gamma, f"shape (J, ...) with J = {len(checked)} registers, ... broadcastable to z's shape")
    fits = weights.dtype == tokens.dtype or (weights.dtype == torch.float32 and tokens.dtype in HALF)
    if not fits and (weights.dtype == torch.float64 or not autocasts(tokens)):
        reject_kind("gamma", gamma, f"float32 or z's dtype {tokens.dtype}")
    if weights.device != tokens.device:
        reject("gamma", gamma, f"a tensor on {tokens.device}, where z is")
    return _folded(tokens, checked, weights, (1,) * missing + trailing)


def _folded(z: Tensor, registers: list[Tensor], gamma: Tensor, axes: tuple[int, ...]) -> Update:
    """Axes before the first and after the last along which gamma varies become A and C; those between become M."""
    varying = [axis for axis, size in enumerate(axes) if size != 1]
    first, last = (varying[0], varying[-1] + 1) if varying else (0, 0)
    before, middle, after = z.shape[:first], z.shape[first:last], z.shape[last:]
    shape = (math.prod(before), math.prod(middle), math.prod(after))
    weights = gamma.reshape(len(registers), *axes[first:last]).expand(len(registers), *middle)
    return Update(z.reshape(shape), [r.reshape(shape) for r in registers], weights.reshape(len(registers), shape[1]))
