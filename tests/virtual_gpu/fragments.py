"""Matrices in the registers of a warp, as the PTX ISA's tables have them."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

Place = Callable[[int, int, int], tuple[int, int]]
"""Row and column of a value, of its lane's group g (a quarter of the lane), q in the group, and place i."""


@dataclass(frozen=True)
class Fragments:
    """A shape's fragments as the PTX ISA tabulates them, value by value (a0, a1, ...)."""

    m: int
    k: int
    a: Place
    b: Place
    c: Place


def column_pairs(g: int, q: int, i: int) -> tuple[int, int]:
    return (g if i < 2 else g + 8), 2 * q + (i & 1)


HALVES_8 = Fragments(16, 8, column_pairs, lambda g, q, i: (2 * q + i, g), column_pairs)
HALVES_16 = Fragments(
    16,
    16,
    lambda g, q, i: (g if i in (0, 1, 4, 5) else g + 8, 2 * q + (i & 1) + (8 if i >= 4 else 0)),
    lambda g, q, i: (2 * q + (i & 1) + (8 if i >= 2 else 0), g),
    column_pairs,
)
WORDS_4 = Fragments(16, 4, lambda g, q, i: (g + 8 * i, q), lambda g, q, i: (q, g), column_pairs)
WORDS_8 = Fragments(
    16,
    8,
    lambda g, q, i: (g if i in (0, 2) else g + 8, q if i < 2 else q + 4),
    lambda g, q, i: (q + 4 * i, g),
    column_pairs,
)
DOUBLES_4 = Fragments(8, 4, lambda g, q, i: (g, q), lambda g, q, i: (q, g), lambda g, q, i: (g, 2 * q + i))
DOUBLES_16 = Fragments(
    16,
    16,
    lambda g, q, i: (g if i % 2 == 0 else g + 8, q + 2 * i if i % 2 == 0 else q + 2 * i - 2),
    lambda g, q, i: (q + 4 * i, g),
    column_pairs,
)
SHAPES = {
    "m16n8k4.f32.tf32": WORDS_4,
    "m16n8k8.f32.tf32": WORDS_8,
    "m16n8k8.f32.f16": HALVES_8,
    "m16n8k16.f32.f16": HALVES_16,
    "m16n8k8.f16.f16": HALVES_8,
    "m16n8k16.f16.f16": HALVES_16,
    "m16n8k8.f32.bf16": HALVES_8,
    "m16n8k16.f32.bf16": HALVES_16,
    "m8n8k4.f64.f64": DOUBLES_4,
    "m16n8k4.f64.f64": WORDS_4,
    "m16n8k8.f64.f64": WORDS_8,
    "m16n8k16.f64.f64": DOUBLES_16,
}
TYPES = {
    "f16": torch.float16,
    "bf16": torch.bfloat16,
    "f64": torch.float64,
    "tf32": torch.float32,
    "f32": torch.float32,
}


def bits(values: Any, kind: str) -> Any:
    """Numbers as a type's bits: uint16, uint32 or uint64."""
    numbers = torch.as_tensor(values).to(TYPES[kind]).contiguous()
    unsigned = {2: np.uint16, 4: np.uint32, 8: np.uint64}[numbers.element_size()]
    signed = {2: torch.int16, 4: torch.int32, 8: torch.int64}[numbers.element_size()]
    return numbers.view(signed).numpy().view(unsigned)


def numbers(words: Any, kind: str) -> Any:
    signed = {2: np.int16, 4: np.int32, 8: np.int64}[words.itemsize]
    return torch.from_numpy(words.view(signed).copy()).view(TYPES[kind]).double().numpy()


def registers(matrix: Any, kind: str, place: Place) -> Any:
    """A matrix in the registers of a warp: (registers, 32), two halves to a word."""
    values = bits(matrix, kind)
    count = values.size // 32
    lanes = np.array([[values[place(lane // 4, lane % 4, i)] for lane in range(32)] for i in range(count)])
    if values.itemsize == 2:
        lanes = lanes[0::2].astype(np.uint32) | lanes[1::2].astype(np.uint32) << 16
    return np.ascontiguousarray(lanes)


def matrix(words: Any, kind: str, place: Place, shape: tuple[int, int]) -> Any:
    """A matrix out of the registers of a warp, as float64."""
    if TYPES[kind].itemsize == 2:
        words = np.stack([words & 0xFFFF, words >> 16], 1).astype(np.uint16).reshape(-1, 32)
    values = numbers(words, kind)
    out = np.full(shape, np.nan)
    for i in range(len(values)):
        for lane in range(32):
            out[place(lane // 4, lane % 4, i)] = values[i, lane]
    return out
