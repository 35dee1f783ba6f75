"""The native libraries count and choose by the limits that a plan looks at."""

import re
from pathlib import Path

import pytest

from memformer_kernels.calls import limits

CSRC = Path(__file__).parents[2] / "csrc"
HELD = {
    ("binding/sizes.h", "most_numbers"): limits.LARGEST_TASK,
    ("binding/sizes.h", "most_ragged"): limits.LONGEST_RAGGED,
    ("binding/sizes.h", "tiny_width"): limits.TINY_WIDTH,
    ("binding/sizes.h", "tiny_tokens"): limits.TINY_TOKENS,
    ("cuda/team/layer.cuh", "most_earlier"): limits.LAYER_REGISTERS,
}
EXTENTS = {
    "cpu/tasks/run_network.h": {limits.TINY_WIDTH},
    "cpu/kernels/quadratics.cpp": {limits.TINY_WIDTH},
    "cpu/kernels/layer.cpp": {limits.TINY_WIDTH},
    "cpu/kernels/prefix_response.cpp": {limits.TINY_WIDTH},
    "cpu/kernels/prefix_general.cpp": {limits.TINY_WIDTH},
    "cpu/kernels/context_gram.cpp": {limits.TINY_WIDTH + 1},
    "cpu/kernels/weighted_gram.cpp": {limits.TINY_WIDTH + 1},
    "cuda/team/response_tokens.cuh": {8, limits.TINY_WIDTH},
    "cuda/thread/quadratics.cuh": {limits.TINY_WIDTH},
    "cuda/thread/response_gram_plan.cuh": {limits.TINY_WIDTH},
    "cuda/thread/sizes.cuh": {limits.TINY_WIDTH},
    "cuda/kernels/quadratics.cu": {limits.TINY_WIDTH},
    "cuda/kernels/response_gram.cu": {limits.TINY_WIDTH},
}
"""Where the instance that serves every tiny size is named: `UpTo<...>`."""


def _value(source: str, name: str) -> int:
    """What `constexpr ... name = value` says: a number, or one shifted."""
    text = (CSRC / source).read_text(encoding="utf-8")
    found = re.search(rf"constexpr [^;()]*\b{name} = (\d+)(?: << (\d+))?[,;]", text)
    assert found is not None, f"{source} has no {name}"
    return int(found[1]) << int(found[2] or 0)


@pytest.mark.parametrize(("place", "expected"), HELD.items(), ids=lambda value: str(value))
def test_the_libraries_and_the_plan_have_the_same_limits(place: tuple[str, str], expected: int) -> None:
    assert _value(*place) == expected


@pytest.mark.parametrize(("source", "expected"), EXTENTS.items())
def test_the_instances_for_every_size_reach_the_limit(source: str, expected: set[int]) -> None:
    assert {int(size) for size in re.findall(r"UpTo<(\d+)>", (CSRC / source).read_text(encoding="utf-8"))} == expected


def test_the_compiled_instances_reach_the_limit() -> None:
    """And the largest teams have as many rows and columns: tiles times lanes."""
    listed = (CSRC / "cuda/kernels/instances.txt").read_text(encoding="utf-8")
    lists = {
        name: max(map(int, re.findall(rf"{name}<\w+, core::UpTo<(\d+)>", listed)))
        for name in ("run_response_gram", "run_quadratics", "ResponseTokens")
    }
    assert set(lists.values()) == {limits.TINY_WIDTH}
    for name in ("GeneralGram", "GeneralTokens", "OneLayer"):
        teams = re.findall(rf"{name}<\w+, (\d+), (\d+),", listed)
        assert max(int(tile) * int(grid) for tile, grid in teams) == limits.TINY_WIDTH
    teams = re.findall(r"ContextGram<\w+, (\d+), (\d+)>", listed)
    assert max(int(tile) * int(grid) for tile, grid in teams) >= limits.TINY_WIDTH + 1
