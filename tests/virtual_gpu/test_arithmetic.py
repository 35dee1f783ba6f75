"""The virtual GPU's scalars: against exact fractions, and over all halves against the tables of their numbers."""

import itertools
import math
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.virtual_gpu.compiled import Library
from tests.virtual_gpu.numbers import (
    ALL_HALVES,
    AWAY,
    BFLOAT16_ONE,
    DOWN,
    EVEN,
    FORMATS,
    UP,
    ZERO,
    directed,
    floats,
    halves,
    tables,
)


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Library:
    return Library(Path(__file__).parent / "arithmetic.cpp", tmp_path_factory.mktemp("arithmetic"))


@pytest.mark.parametrize("mode", [EVEN, ZERO, DOWN, UP, AWAY])
@pytest.mark.parametrize("name", FORMATS)
def test_rounding_to_a_format(library: Library, name: str, mode: int) -> None:
    """All numbers of the format, the middles between neighbours, what lies just beside them, and beyond the ends."""
    exponent_bits, fraction_bits, behind = FORMATS[name]
    numbers = tables(exponent_bits, fraction_bits)
    beyond = 2 * numbers[-1] - numbers[-2]
    grid = np.append(numbers, beyond)
    middles = (grid[1:] + grid[:-1]) / 2
    values = np.concatenate([numbers, middles, np.nextafter(middles, 0), np.nextafter(middles, np.inf), [beyond * 3]])
    values = np.concatenate([values, -values])
    size = np.abs(values)
    below = np.searchsorted(grid, size, side="right") - 1
    below = np.minimum(below, len(grid) - 1)
    exact = grid[below] == size
    middle = np.append(middles, np.inf)[below]
    above_middle = size > middle
    at_middle = size == middle
    up = {
        EVEN: above_middle | (at_middle & (below % 2 == 1)),
        AWAY: above_middle | at_middle,
        ZERO: np.zeros_like(exact),
        DOWN: ~exact & (values < 0),
        UP: ~exact & (values > 0),
    }[mode]
    want = below + up
    infinite = len(numbers)
    stays = (mode == ZERO) | ((mode == DOWN) & (values > 0)) | ((mode == UP) & (values < 0))
    want = np.where(want >= infinite, infinite - stays, want)
    want = (want + (np.signbit(values).astype(np.int64) << (exponent_bits + fraction_bits))) << behind
    got = np.zeros(values.size, np.uint32)
    assert library("rounded", exponent_bits, fraction_bits, mode, values.size, values, got)
    np.testing.assert_array_equal(got, want)


def test_doubles_to_floats(library: Library) -> None:
    values = np.concatenate([floats(6, 3000, np.float64), floats(7, 3000).astype(np.float64) * (1 + 2.0**-40)])
    got = np.zeros(values.size, np.uint32)
    for mode in (ZERO, DOWN, UP):
        assert library("rounded", 8, 23, mode, values.size, values, got)
        for x, y in zip(values, got.view(np.float32), strict=True):
            assert y == directed(Fraction(float(x)), mode, np.float32)
    assert library("rounded", 8, 23, EVEN, values.size, values, got)
    with np.errstate(over="ignore"):
        np.testing.assert_array_equal(got.view(np.float32), values.astype(np.float32))


def test_what_is_no_number(library: Library) -> None:
    values = np.array([np.nan, -np.nan, np.inf, -np.inf])
    got = np.zeros(4, np.uint32)
    assert library("rounded", 5, 10, EVEN, 4, values, got)
    assert got.tolist() == [0x7FFF, 0x7FFF, 0x7C00, 0xFC00]
    assert library("rounded", 8, 7, EVEN, 4, values, got)
    assert got.tolist() == [0x7FFF, 0x7FFF, 0x7F80, 0xFF80]


def same_halves(got: Any, want: Any, kind: str) -> None:
    """Bits against numbers: zeros keep their signs, NaN is canonical."""
    bits = torch.as_tensor(want).to(getattr(torch, kind)).view(torch.int16).numpy().view(np.uint16)
    np.testing.assert_array_equal(got, np.where(np.isnan(want), np.uint16(0x7FFF), bits))


@pytest.mark.parametrize("kind", ["float16", "bfloat16"])
def test_all_halves(library: Library, kind: str) -> None:
    numbers = halves(kind)
    wide = np.zeros(65536, np.float32)
    library(f"widened_{kind}s", 65536, ALL_HALVES, wide)
    np.testing.assert_array_equal(wide, numbers)
    np.testing.assert_array_equal(np.signbit(wide), np.signbit(numbers))
    out = np.zeros(65536, np.uint16)
    nan = np.isnan(numbers)

    def unary(name: str) -> Any:
        assert library(f"{kind}s", name, 65536, ALL_HALVES, None, None, out)
        return out

    same_halves(unary("negated")[~nan], -numbers[~nan], kind)
    same_halves(unary("absolute")[~nan], np.abs(numbers[~nan]), kind)


@pytest.mark.parametrize("kind", ["float16", "bfloat16"])
def test_halves_are_rounded_once(library: Library, kind: str) -> None:
    draw = np.random.default_rng(8)
    a, b, c = (draw.integers(0, 65536, 200_000, dtype=np.uint16) for _ in range(3))
    numbers = halves(kind)
    with np.errstate(invalid="ignore"):
        x, y = (numbers[bits].astype(np.longdouble) for bits in (a, b))
    out = np.zeros(a.size, np.uint16)
    with np.errstate(all="ignore"):
        wants = {"sum": x + y, "difference": x - y, "product": x * y}
        wants |= {"smaller": np.fmin(x, y), "larger": np.fmax(x, y), "smaller.NaN": np.minimum(x, y)}
        for name, want in wants.items():
            assert library(f"{kind}s", name, a.size, a, b, c, out)
            # 64 bits hold what a float needs of a sum or product of two halves.
            same_halves(out[np.abs(want) > 0], want.astype(np.float64)[np.abs(want) > 0], kind)
            same_halves(out[np.isnan(want)], want.astype(np.float64)[np.isnan(want)], kind)


@pytest.mark.parametrize("kind", ["float16", "bfloat16"])
def test_fused_halves(library: Library, kind: str) -> None:
    """Products that end in the middle of two halves, and a summand too small for a double to hold beside them."""
    exponent_bits, fraction_bits, _ = FORMATS[kind]
    numbers = halves(kind)
    draw = np.random.default_rng(9)
    a, b, c = (draw.integers(0, 65536, 4000, dtype=np.uint16) for _ in range(3))
    one = np.uint16((1 << (exponent_bits - 1)) - 1 << fraction_bits)
    odd = 1 << (fraction_bits + 1) // 2
    a[:1000], b[:1000] = one + odd, one + odd + draw.integers(0, 4, 1000, dtype=np.uint16) * odd
    c[:1000] = draw.integers(1, 40, 1000, dtype=np.uint16) | draw.integers(0, 2, 1000, dtype=np.uint16) << 15
    out = np.zeros(a.size, np.uint16)
    assert library(f"{kind}s", "fused", a.size, a, b, c, out)
    finite = np.isfinite(numbers[a]) & np.isfinite(numbers[b]) & np.isfinite(numbers[c])
    table = tables(exponent_bits, fraction_bits)
    for x, y, z, got in zip(numbers[a][finite], numbers[b][finite], numbers[c][finite], out[finite], strict=True):
        exact = Fraction(float(x)) * Fraction(float(y)) + Fraction(float(z))
        size, magnitude = abs(exact), int(got) & 0x7FFF
        if magnitude == len(table):
            assert size >= Fraction(table[-1]) + (Fraction(table[-1]) - Fraction(table[-2])) / 2
            continue
        error = abs(size - Fraction(table[magnitude]))
        others = [abs(size - Fraction(table[k])) for k in (magnitude - 1, magnitude + 1) if 0 <= k < len(table)]
        assert all(error < other or (error == other and magnitude % 2 == 0) for other in others), (x, y, z)
        assert magnitude == 0 or (exact < 0) == bool(got & 0x8000)


def test_packed_halves_and_tf32(library: Library) -> None:
    a = np.array([0x3C004000], np.uint32)
    out = np.zeros(1, np.uint32)
    library("packed_sums", 1, a, np.array([0x3C00C000], np.uint32), out)
    assert out.tolist() == [0x40000000]
    read = np.zeros(2, np.float32)
    library("read_tf32s", 2, np.array([0x3F801FFF, 0x3F802000], np.uint32), read)
    assert read.tolist() == [1.0, 1 + 2.0**-10]


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_rules_for_nan_and_zero(library: Library, dtype: Any) -> None:
    kind = "floats" if dtype is np.float32 else "doubles"
    nan = np.nan
    a, b = np.array([1, nan, 2, nan, -0.0, 0.0], dtype), np.array([2, 1, nan, nan, 0.0, -0.0], dtype)
    wants = {"smaller": [1, 1, 2, nan, -0.0, -0.0], "larger": [2, 1, 2, nan, 0.0, 0.0]}
    wants |= {"smaller.NaN": [1, nan, nan, nan, -0.0, -0.0], "larger.NaN": [2, nan, nan, nan, 0.0, 0.0]}
    wants |= {"saturate": [1, 0, 1, 0, 0, 0]}
    for name, want in wants.items():
        out = np.zeros_like(a)
        assert library(kind, name, EVEN, a.size, a, b, out)
        np.testing.assert_array_equal(out, np.array(want, dtype))
        assert np.signbit(out).tolist() == np.signbit(np.array(want, dtype)).tolist() or nan in want


def test_integers(library: Library) -> None:
    values = np.array([1.5, 2.5, -1.5, -2.5, 3e9, -3e9, np.nan, 0.999])
    single = values.astype(np.float32)
    most, least = 2**31 - 1, -(2**31)
    signed = np.zeros(8, np.int32)
    for mode, want in {EVEN: [2, 2, -2, -2], ZERO: [1, 2, -1, -2], DOWN: [1, 2, -2, -3], UP: [2, 3, -1, -2]}.items():
        library("float_to_s32", mode, 8, single, signed)
        assert signed.tolist() == [*want, most, least, 0, math.ceil(0.999) if mode in (EVEN, UP) else 0]
    unsigned, wide, byte = np.zeros(8, np.uint32), np.zeros(8, np.int64), np.zeros(8, np.uint8)
    library("double_to_u32", ZERO, 8, values, unsigned)
    assert unsigned.tolist() == [1, 2, 0, 0, 3_000_000_000, 0, 2**31, 0]
    library("double_to_s64", ZERO, 8, values * 1e10, wide)
    assert wide.tolist() == [
        15 * 10**9,
        25 * 10**9,
        -15 * 10**9,
        -25 * 10**9,
        2**63 - 1,
        -(2**63),
        -(2**63),
        9_990_000_000,
    ]
    library("double_to_u8", ZERO, 8, values, byte)
    assert byte.tolist() == [1, 2, 0, 0, 255, 0, 128, 0]


def test_integers_to_halves(library: Library) -> None:
    """Rounded once, also where the nearest double lies in the middle of two halves."""
    table = [int(x) for x in tables(8, 7) if 1 <= x < 2.0**63]
    middles = [(x + y) // 2 for x, y in itertools.pairwise(table) if x > 2**57]
    integers = np.array([x + d for x in middles for d in (-1, 0, 1)] + list(range(-300, 300)), np.int64)
    got = np.zeros(integers.size, np.uint16)
    places = np.searchsorted(np.array(table), np.abs(integers), side="right") - 1
    for mode in (EVEN, ZERO, DOWN, UP):
        library("integers_to_halves", mode, integers.size, integers, got)
        for x, y, place in zip(integers.tolist(), got, places, strict=True):
            if x == 0:
                continue
            low, high = table[place], table[place + 1]
            nearest = low if 2 * abs(x) < low + high else high
            if 2 * abs(x) == low + high:
                nearest = low if (place + BFLOAT16_ONE) % 2 == 0 else high
            away = low if abs(x) == low else high
            want = {EVEN: nearest, ZERO: low, DOWN: away if x < 0 else low, UP: low if x < 0 else away}[mode]
            assert halves("bfloat16")[y] == (want if x > 0 else -want), (x, mode)


@pytest.mark.parametrize("control", [0x1F80 | 0x8040, 0x1F80 | 0x2000, 0x1F80 | 0x6000])
def test_whatever_the_cpu_does(library: Library, control: int) -> None:
    """Halves, tf32 and integers come out the same while the CPU flushes subnormal numbers or rounds otherwise."""
    values = np.concatenate([tables(5, 10) * (1 + 2.0**-12), np.array([0.1, -0.3, 1e-41, 7e4, 1e39])])
    integers = np.arange(2**62, 2**62 + 2**40, 2**33 + 1)
    results = []
    for register in (0x1F80, control):
        wide, narrowed = np.zeros(65536, np.float32), np.zeros((3, values.size), np.uint32)
        rounded, whole = np.zeros(integers.size, np.uint16), np.zeros(values.size, np.uint32)
        before = library.number("controlled", register)
        library("widened_float16s", 65536, ALL_HALVES, wide)
        for row, (exponent_bits, fraction_bits, _) in zip(narrowed, FORMATS.values(), strict=True):
            library("rounded", exponent_bits, fraction_bits, UP, values.size, values, row)
        library("integers_to_halves", EVEN, integers.size, integers, rounded)
        library("double_to_u32", UP, values.size, values, whole)
        library.number("controlled", before)
        results.append([array.tobytes() for array in (wide, narrowed, rounded, whole)])
    assert results[0] == results[1]
