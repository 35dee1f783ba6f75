"""The virtual GPU's tensor cores: fragments against the PTX ISA's tables, products against float64."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.virtual_gpu.compiled import Library
from tests.virtual_gpu.fragments import SHAPES, TYPES, bits, matrix, numbers, registers


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Library:
    return Library(Path(__file__).parent / "tensor.cpp", tmp_path_factory.mktemp("tensor"))


def kinds(name: str) -> tuple[str, str]:
    """Of the products' inputs and of the accumulators."""
    _, accumulator, kind = name.split(".")
    return kind, accumulator


def product(library: Library, name: str, a: Any, b: Any, c: Any) -> Any:
    shape, (kind, accumulator) = SHAPES[name], kinds(name)
    words = registers(c, accumulator, shape.c)
    out = np.zeros_like(words)
    assert library("warp_product", name, out, registers(a, kind, shape.a), registers(b, kind, shape.b), words)
    return matrix(out, accumulator, shape.c, (shape.m, 8))


def draws(name: str, seed: int, whole: bool = False) -> tuple[Any, Any, Any]:
    """A, B and C of a shape; whole: integers, whose sums are exact."""
    shape, (kind, accumulator) = SHAPES[name], kinds(name)
    draw = np.random.default_rng(seed)
    sizes = ((shape.m, shape.k), (shape.k, 8), (shape.m, 8))
    drawn = [draw.integers(-7, 8, size).astype(float) if whole else draw.standard_normal(size) for size in sizes]
    a, b, c = (numbers(bits(x, t), t) for x, t in zip(drawn, (kind, kind, accumulator), strict=True))
    return a, b, c


@pytest.mark.parametrize("name", SHAPES)
def test_whole_numbers_are_exact(library: Library, name: str) -> None:
    """A value out of its place would show."""
    a, b, c = draws(name, 0, whole=True)
    np.testing.assert_array_equal(product(library, name, a, b, c), a @ b + c)


def cut(values: Any) -> Any:
    """To tf32: the 13 bits that the hardware does not look at."""
    return (np.asarray(values, np.float32).view(np.uint32) & 0xFFFFE000).view(np.float32).astype(np.float64)


@pytest.mark.parametrize("name", SHAPES)
def test_products(library: Library, name: str) -> None:
    shape, (kind, accumulator) = SHAPES[name], kinds(name)
    unit = {"f32": 2.0**-23, "f16": 2.0**-10, "f64": 2.0**-52}[accumulator]
    for seed in range(1, 6):
        a, b, c = draws(name, seed)
        got = product(library, name, a, b, c)
        if kind == "tf32":
            a, b = cut(a), cut(b)
        sizes = np.abs(a) @ np.abs(b) + np.abs(c)
        assert (np.abs(got - (a @ b + c)) <= (shape.k + 1) * unit * sizes).all()


def test_float_sums_are_cut_off(library: Library) -> None:
    """Toward zero, and terms far below the greatest are lost: code cannot rely on sums of correctly rounded floats."""
    a, b = np.zeros((16, 8)), np.ones((8, 8))
    c = np.where(np.arange(16) % 2, -1.0, 1.0)[:, None] * np.ones(8)
    for term, wanted in ((2.0**-24, 2.0**-22), (2.0**-25, 0), (3 * 2.0**-26, 0)):
        a[:, :4] = np.sign(c[:, :4]) * term
        np.testing.assert_array_equal(product(library, "m16n8k8.f32.tf32", a, b, c), c * (1 + wanted))
    a[:, :4] = np.sign(c[:, :4]) * [2.0**-24, 2.0**-24, 2.0**-24, 0]
    np.testing.assert_array_equal(product(library, "m16n8k8.f32.tf32", a, b, c), c * (1 + 2.0**-23))


def test_float_sums_are_made_in_parts(library: Library) -> None:
    """Four products of tf32 at once, eight of halves: what is far below a sum's terms is lost within a part alone."""
    for name, part in (("m16n8k8.f32.tf32", 4), ("m16n8k16.f32.bf16", 8)):
        depth = SHAPES[name].k
        a, b, c = np.zeros((16, depth)), np.ones((depth, 8)), np.ones((16, 8))
        a[:, 0] = -1
        a[:, part - 1] = 2.0**-30
        np.testing.assert_array_equal(product(library, name, a, b, c), 0 * c)
        a[:, part] = 2.0**-31
        np.testing.assert_array_equal(product(library, name, a, b, c), 2.0**-31 * c)


@pytest.mark.parametrize("name", ["m16n8k8.f32.tf32", "m16n8k16.f32.bf16", "m16n8k16.f16.f16"])
def test_infinities_and_nan(library: Library, name: str) -> None:
    a, b, c = draws(name, 7)
    a[0, 0], a[1, 1], c[2, 3], c[3, 0] = np.inf, np.nan, -np.inf, np.nan
    b[0, 5] = 0
    got = product(library, name, a, b, c)
    with np.errstate(invalid="ignore"):
        want = a @ b + c
    odd = ~np.isfinite(want)
    np.testing.assert_array_equal(got[odd], want[odd])
    assert np.isfinite(got[~odd]).all()
    large = 2.0**10 if name == "m16n8k16.f16.f16" else 2.0**100
    assert (product(library, name, np.full_like(a, large), np.full_like(b, large), np.zeros_like(c)) == np.inf).all()


def test_subnormal_numbers_count(library: Library) -> None:
    a, b = np.zeros((16, 8)), np.eye(8)
    a[:, 0], a[:, 1] = 2.0**-140, 3 * 2.0**-145
    got = product(library, "m16n8k8.f32.bf16", np.zeros((16, 8)), b, a)
    np.testing.assert_array_equal(got, a)
    a[:, 0], a[:, 1] = 2.0**-133, 2.0**-130
    np.testing.assert_array_equal(product(library, "m16n8k8.f32.bf16", a, b, np.zeros((16, 8))), a)


@pytest.mark.parametrize("name", SHAPES)
def test_what_is_defined(library: Library, name: str) -> None:
    """An undefined value of A spoils a row, of B a column, of C itself (and the half beside it in its register)."""
    shape, (kind, accumulator) = SHAPES[name], kinds(name)
    a_values, b_values, c_values = shape.m * shape.k // 32, shape.k * 8 // 32, shape.m * 8 // 32
    in_pair, out_pair = (2 if TYPES[t].itemsize == 2 else 1 for t in (kind, accumulator))

    def places() -> Iterator[tuple[str, int, int]]:
        for factor, count in (("a", a_values // in_pair), ("b", b_values // in_pair), ("c", c_values // out_pair)):
            yield from ((factor, i, lane) for i in range(count) for lane in range(32))

    for factor, i, lane in places():
        masks = {
            "a": np.full(a_values // in_pair, 2**32 - 1, np.uint32),
            "b": np.full(b_values // in_pair, 2**32 - 1, np.uint32),
            "c": np.full(c_values // out_pair, 2**32 - 1, np.uint32),
        }
        masks[factor][i] ^= np.uint32(1 << lane)
        got = np.zeros_like(masks["c"])
        assert library("defined_lanes", name, got, masks["a"], masks["b"], masks["c"])
        lost = np.zeros((shape.m, 8), bool)
        pair = out_pair if factor == "c" else in_pair
        place = {"a": shape.a, "b": shape.b, "c": shape.c}[factor]
        for part in range(pair):
            row, column = place(lane // 4, lane % 4, i * pair + part)
            lost[slice(None) if factor == "b" else row, slice(None) if factor == "a" else column] = True
        for register in range(c_values // out_pair):
            for other in range(32):
                places_of_lane = [shape.c(other // 4, other % 4, register * out_pair + p) for p in range(out_pair)]
                want = not any(lost[spot] for spot in places_of_lane)
                assert bool(int(got[register]) >> other & 1) == want, (factor, i, lane, register, other)
