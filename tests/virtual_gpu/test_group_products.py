"""The virtual GPU's products by warp groups: matrices in shared memory, in canonical layouts."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.virtual_gpu.compiled import Library
from tests.virtual_gpu.fragments import HALVES_16, WORDS_8, Place, bits, matrix, registers


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Library:
    return Library(Path(__file__).parent / "tensor.cpp", tmp_path_factory.mktemp("tensor"))


@dataclass(frozen=True)
class Shared:
    """A matrix of rows of M or N and columns of K in shared memory, in one of the PTX ISA's canonical layouts."""

    kind: str
    swizzle: int  # bytes; 0: none
    along_k: bool
    start: int  # a multiple of 1024
    leading: int  # bytes
    stride: int

    def places(self, rows: int, depth: int) -> Iterator[tuple[int, int, int]]:
        """Row, column, and the byte it starts at."""
        size, width = (4 if self.kind == "tf32" else 2), self.swizzle or 16
        chunk = 16 // size
        for row in range(rows):
            for k in range(depth):
                if self.along_k and self.swizzle:
                    at = row // 8 * self.stride + row % 8 * width + k * size
                elif self.along_k:
                    at = row // 8 * self.stride + row % 8 * 16 + k // chunk * self.leading + k % chunk * size
                elif self.swizzle:
                    across, along = divmod(row * size, width)
                    at = across * self.leading + along + k // 8 * self.stride + k % 8 * width
                else:
                    at = row // 8 * self.stride + row % 8 * size + k // 8 * self.leading + k % 8 * 16
                at += self.start
                yield row, k, at ^ at // 128 % max(width // 16, 1) * 16

    def store(self, memory: Any, values: Any) -> None:
        words = bits(values, self.kind)
        for row, k, at in self.places(*words.shape):
            memory[at : at + words.itemsize] = np.frombuffer(words[row, k].tobytes(), np.uint8)

    def descriptor(self, ahead: int = 0) -> int:
        """`ahead`: bytes that the matrix starts later."""
        mode = {0: 0, 128: 1, 64: 2, 32: 3}[self.swizzle]
        return (self.start + ahead) >> 4 | (self.leading >> 4) << 16 | (self.stride >> 4) << 32 | mode << 62


def laid_out(kind: str, swizzle: int, along_k: bool, start: int, rows: int) -> Shared:
    """With gaps between the atoms, so that the two offsets are told apart."""
    if along_k:
        leading, stride = (16, 8 * swizzle + 1024) if swizzle else (32 * rows + 512, 256)
    else:
        leading, stride = (4096, 8 * swizzle + 1024) if swizzle else (48 * rows + 512, 384)
    return Shared(kind, swizzle, along_k, start, leading, stride)


def group_place(n: int) -> Place:
    """D of m64nNk: of the four warps' 16 rows, tiles of 16 x 8 beside one another."""
    return lambda g, q, i: (g + 8 * (i % 4 // 2), 8 * (i // 4) + 2 * q + i % 2)


CASES = [
    (kind, swizzle, along_k)
    for kind in ("f32.tf32", "f32.bf16", "f32.f16", "f16.f16")
    for swizzle in (0, 32, 64, 128)
    for along_k in (True, False)
    if along_k or "tf32" not in kind  # which has one order alone
]


@pytest.mark.parametrize(("kind", "swizzle", "along_k"), CASES)
def test_group_products(library: Library, kind: str, swizzle: int, along_k: bool) -> None:
    accumulator, factor = kind.split(".")
    depth = 8 if factor == "tf32" else 16
    draw = np.random.default_rng(swizzle + along_k)
    for n, in_registers, flags in ((8, False, 8), (64, True, 0), (128, False, 4 | 8), (256, True, 8)):
        # A swizzled atom holds the K of several products, the last of which is asked for.
        steps = swizzle // 32 if along_k and swizzle else 1
        a, b, d = (draw.integers(-3, 4, size).astype(float) for size in ((64, depth), (n, depth * steps), (64, n)))
        memory = np.full(1 << 18, 0x7F, np.uint8)
        right = laid_out(factor, swizzle, along_k, 1024, n)
        right.store(memory, b)
        b_matrix = right.descriptor(32 * (steps - 1))
        left = laid_out(factor, swizzle, along_k, 128 * 1024, 64)
        left.store(memory, a)
        a_matrix = 0 if in_registers else left.descriptor()
        a_place = (WORDS_8 if factor == "tf32" else HALVES_16).a
        quarters = [slice(16 * warp, 16 * warp + 16) for warp in range(4)]
        a_registers = np.concatenate([registers(a[rows], factor, a_place) for rows in quarters])
        words = np.concatenate([registers(d[rows], accumulator, group_place(n)) for rows in quarters])
        transposed = 0 if along_k else 2 if in_registers else 3
        assert library("group_product", kind, n, flags | transposed, words, a_registers, a_matrix, b_matrix, memory)
        got = np.concatenate([matrix(part, accumulator, group_place(n), (16, n)) for part in np.split(words, 4)])
        sign = -1 if flags & 4 else 1
        want = sign * a @ b[:, -depth:].T + (d if flags & 8 else 0)
        np.testing.assert_array_equal(got, want)


def test_a_wrong_swizzle_shows(library: Library) -> None:
    """The same bytes with a descriptor of another swizzle give another product."""
    draw = np.random.default_rng(3)
    b = draw.integers(-3, 4, (16, 16)).astype(float)
    memory = np.zeros(1 << 18, np.uint8)
    layout = laid_out("bf16", 64, True, 0, 16)
    layout.store(memory, b)
    right = layout.descriptor()
    wrong = right ^ (3 << 62)
    a_registers = np.concatenate([registers(np.eye(16), "bf16", HALVES_16.a)] * 4)
    results = []
    for descriptor in (right, wrong):
        words = np.zeros((4 * 8, 32), np.uint32)
        assert library("group_product", "f32.bf16", 16, 0, words, a_registers, 0, descriptor, memory)
        results.append(matrix(words[:8], "f32", group_place(16), (16, 16)))
    np.testing.assert_array_equal(results[0], b.T)
    assert (results[1] != b.T).any()
