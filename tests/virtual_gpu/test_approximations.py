"""The virtual GPU's approximate functions: within the error that is documented, and close to it."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.virtual_gpu.compiled import Library
from tests.virtual_gpu.numbers import ALL_HALVES, EVEN, floats, halves


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Library:
    return Library(Path(__file__).parent / "arithmetic.cpp", tmp_path_factory.mktemp("arithmetic"))


LIBRARIES = 1e-15
"""What libraries of doubles differ by, relative."""


def ulps(exact: Any, count: float) -> Any:
    """So many distances of neighbouring float32."""
    return count * np.ldexp(1.0, np.maximum(np.frexp(exact)[1] - 1, -126) - 23)


APPROXIMATIONS: dict[str, tuple[Callable[[Any], Any], Callable[[Any, Any], Any], tuple[float, float]]] = {
    "rcp": (lambda x: 1 / x, lambda x, y: ulps(y.astype(np.float32), 1), (-1e30, 1e30)),
    "sqrt": (np.sqrt, lambda x, y: 2.0**-23 * y, (0, 1e30)),
    "rsqrt": (lambda x: 1 / np.sqrt(x), lambda x, y: 2.0**-22.9 * y, (0, 1e30)),
    "sin": (np.sin, lambda x, y: np.where(abs(x) <= 2 * np.pi, 2.0**-20.5, 2.0**-14.7), (-300, 300)),
    "cos": (np.cos, lambda x, y: np.where(abs(x) <= 2 * np.pi, 2.0**-20.5, 2.0**-14.7), (-300, 300)),
    "lg2": (np.log2, lambda x, y: 2.0**-22 * np.where((x > 0.5) & (x < 2), 1, abs(y)), (0, 1e30)),
    "ex2": (np.exp2, lambda x, y: ulps(y.astype(np.float32), 2), (-140, 127)),
    "tanh": (np.tanh, lambda x, y: 2.0**-11 * abs(y), (-20, 20)),
}
"""The function, the error the PTX ISA documents at an argument and a result, and where to look."""


@pytest.mark.parametrize("name", APPROXIMATIONS)
def test_approximations_are_as_wrong_as_documented(library: Library, name: str) -> None:
    """Within the documented error everywhere, and the nearest float almost nowhere."""
    function, error, (low, high) = APPROXIMATIONS[name]
    x = floats(11, 40_000)
    near = np.random.default_rng(12).uniform(max(low, -8), min(high, 8), 20_000).astype(np.float32)
    x = np.concatenate([x[(x > low) & (x < high) & (x != 0)], near, np.array([1, 2, 0.25], np.float32)])
    out = np.zeros_like(x)
    assert library("floats", name, EVEN, x.size, x, None, out)
    wide = x.astype(np.float64)
    with np.errstate(over="ignore", under="ignore"):
        exact = function(wide)
        nearest, allowed = exact.astype(np.float32), error(wide, exact)
    normal = np.isfinite(nearest) & (np.abs(exact) >= 2.0**-126)
    assert (np.abs(out - exact) <= allowed + LIBRARIES * np.abs(exact))[normal].all()
    assert (out != nearest)[normal].mean() > 0.97
    again = np.zeros_like(x)
    library("floats", name, EVEN, x.size, x, None, again)
    assert out.tobytes() == again.tobytes()


@pytest.mark.parametrize("name", ["div", "div.full"])
def test_approximate_quotients(library: Library, name: str) -> None:
    a, b = floats(13, 40_000), floats(14, 40_000)
    fit = (np.abs(b) >= 2.0**-126) & (np.abs(b) <= 2.0**126)
    a, b = a[fit], b[fit]
    out = np.zeros_like(a)
    assert library("floats", name, EVEN, a.size, a, b, out)
    exact = a.astype(np.float64) / b
    with np.errstate(over="ignore", under="ignore"):
        nearest = exact.astype(np.float32)
    normal = np.isfinite(nearest) & (np.abs(exact) >= 2.0**-126)
    assert (np.abs(out - exact) <= ulps(nearest, 2))[normal].all()
    assert (out != nearest)[normal].mean() > 0.97
    if name == "div":
        a, b = np.array([1, -1, np.inf, 0], np.float32), np.full(4, 2.0**127, np.float32)
        assert library("floats", name, EVEN, 4, a, b, out[:4])
        np.testing.assert_array_equal(out[:4], np.array([0, -0.0, np.nan, 0], np.float32))
        assert np.signbit(out[1])


INF, NAN = np.inf, np.nan


@pytest.mark.parametrize(
    ("name", "wants"),
    [
        ("rcp", [-0.0, -INF, INF, 0.0, NAN]),
        ("sqrt", [NAN, -0.0, 0.0, INF, NAN]),
        ("rsqrt", [NAN, -INF, INF, 0.0, NAN]),
        ("sin", [NAN, -0.0, 0.0, NAN, NAN]),
        ("cos", [NAN, 1.0, 1.0, NAN, NAN]),
        ("lg2", [NAN, -INF, -INF, INF, NAN]),
        ("ex2", [0.0, 1.0, 1.0, INF, NAN]),
        ("tanh", [-1.0, -0.0, 0.0, 1.0, NAN]),
    ],
)
def test_tabulated_results(library: Library, name: str, wants: list[float]) -> None:
    """The PTX ISA's tables, for -infinity, -0, +0, +infinity and NaN."""
    x = np.array([-INF, -0.0, 0.0, INF, NAN], np.float32)
    out = np.zeros_like(x)
    with np.errstate(all="ignore"):
        assert library("floats", name, EVEN, 5, x, None, out)
    np.testing.assert_array_equal(out, np.array(wants, np.float32))
    numbers = ~np.isnan(wants)
    assert np.signbit(out)[numbers].tolist() == np.signbit(wants)[numbers].tolist()


@pytest.mark.parametrize("name", ["rcp", "rsqrt"])
def test_gross_doubles(library: Library, name: str) -> None:
    """20 bits of fraction, of an argument whose lower half is not looked at."""
    x = np.abs(floats(15, 4000, np.float64))
    x = x[(x > 1e-300) & (x < 1e300)]
    out = np.zeros_like(x)
    assert library("doubles", name, EVEN, x.size, x, None, out)
    assert not (out.view(np.uint64) & 0xFFFFFFFF).any()
    exact = 1 / x if name == "rcp" else 1 / np.sqrt(x)
    error = np.abs(out / exact - 1)
    assert error.max() < 2.0**-19
    assert error.max() > 2.0**-21
    rest = np.array([1e-310, -1e-310, 0.0, -0.0, INF, NAN])
    assert library("doubles", name, EVEN, 6, rest, None, out[:6])
    np.testing.assert_array_equal(out[:6], [INF, -INF, INF, -INF, 0.0, NAN])


@pytest.mark.parametrize("kind", ["float16", "bfloat16"])
@pytest.mark.parametrize("name", ["ex2", "tanh"])
def test_approximate_halves(library: Library, kind: str, name: str) -> None:
    with np.errstate(invalid="ignore"):
        x = halves(kind).astype(np.float64)
    out = np.zeros(65536, np.uint16)
    assert library(f"{kind}s", name, 65536, ALL_HALVES, None, None, out)
    got = halves(kind)[out]
    with np.errstate(over="ignore"):
        exact = np.exp2(x) if name == "ex2" else np.tanh(x)
    bits = {"ex2": {"float16": 9.9, "bfloat16": 7}, "tanh": {"float16": 10.987, "bfloat16": 8}}[name][kind]
    error = 2.0**-bits * (exact if name == "ex2" else 1.0)
    least, most = {"float16": (2.0**-14, 65504), "bfloat16": (2.0**-126, 3e38)}[kind]
    normal = (np.abs(exact) >= least) & (np.abs(exact) <= most)
    assert (np.abs(got[normal] - exact[normal]) <= (error + LIBRARIES * np.abs(exact))[normal]).all()
    assert (got[normal] != torch.from_numpy(exact).to(getattr(torch, kind)).double().numpy()[normal]).mean() > 0.3
    assert np.isnan(got[np.isnan(x)]).all()


def test_flushed_where_the_cpu_flushes(library: Library) -> None:
    """.ftz: subnormal arguments and results are zeros of their signs."""
    cases = {
        "rcp": ([2.0**127, -(2.0**127), 2.0**-127, -(2.0**-127)], [0.0, -0.0, INF, -INF]),
        "ex2": ([-127.5, -140], [0.0, 0.0]),
        "sqrt": ([1e-40, -1e-40], [0.0, -0.0]),
        "rsqrt": ([1e-40, -1e-40], [INF, -INF]),
        "lg2": ([1e-40], [-INF]),
        "sin": ([1e-40, -1e-40], [0.0, -0.0]),
    }
    for name, (arguments, wants) in cases.items():
        x = np.array(arguments, np.float32)
        out = np.zeros_like(x)
        before = library.number("controlled", 0x1F80 | 0x8040)
        library("floats", name, EVEN, x.size, x, None, out)
        library.number("controlled", before)
        np.testing.assert_array_equal(out, np.array(wants, np.float32))
        assert np.signbit(out).tolist() == np.signbit(wants).tolist(), name
        library("floats", name, EVEN, x.size, x, None, out)
        assert (out != np.array(wants, np.float32)).all(), name
