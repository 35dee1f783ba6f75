"""The generator is Philox4x32-10, its words depend on their counter alone, and numbers made of them are as defined."""

import math

import pytest
import torch
from scipy import stats

from memformer_kernels.training.philox import key_of, normals, philox, task_words, uniforms

# The known answers that Salmon et al. publish with Random123.
KNOWN = [
    ([0, 0, 0, 0], (0, 0), [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]),
    ([0xFFFFFFFF] * 4, (0xFFFFFFFF, 0xFFFFFFFF), [0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD]),
    (
        [0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344],
        (0xA4093822, 0x299F31D0),
        [0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1],
    ),
]


@pytest.mark.parametrize(("counter", "key", "words"), KNOWN)
def test_known_answers(counter: list[int], key: tuple[int, int], words: list[int]) -> None:
    assert philox(torch.tensor(counter), key).tolist() == words


def test_words_are_those_of_their_counter() -> None:
    """The layout of key and counter, and any part of a batch or of a task's blocks by itself."""
    seed, stream, draw = (5 << 32) + 7, 3, 2
    whole = task_words(seed, stream, draw, range(10), 0, 6)
    for task in (0, 9):
        for block in (0, 5):
            expected = philox(torch.tensor([block, task, draw, stream]), (7, 5))
            assert torch.equal(whole[task, 4 * block : 4 * block + 4], expected)
    assert torch.equal(task_words(seed, stream, draw, range(4, 7), 2, 3), whole[4:7, 8:20])
    assert task_words(seed, stream, draw, range(2), 0, 0).shape == (2, 0)


def test_draws_past_32_bits_have_keys_of_their_own() -> None:
    """Made of the seed and the draw's upper half by a block that is no task's; below, the key is the seed."""
    key, high, low = (7, 5), 3, 9
    own = philox(torch.tensor([2**31 + high, 0, 0, 0]), key)[:2].tolist()
    words = task_words((5 << 32) + 7, 3, (high << 32) + low, range(2), 0, 1)
    assert torch.equal(words[1], philox(torch.tensor([0, 1, low, 3]), (own[0], own[1])))
    assert key_of((5 << 32) + 7, 2**32 - 1) == key


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_uniforms_are_never_zero(dtype: torch.dtype) -> None:
    ends = uniforms(torch.tensor([0, 2**32 - 1, 2**31]), dtype)
    assert ends[0] == 2.0**-33
    assert ends[1] == (1.0 if dtype == torch.float32 else 1 - 2.0**-33)
    assert ends[2] == (0.5 if dtype == torch.float32 else 0.5 + 2.0**-33)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_normals_by_box_and_muller(dtype: torch.dtype) -> None:
    words = task_words(1, 0, 0, range(5), 0, 2)
    u = uniforms(words, torch.float64).reshape(5, 4, 2)
    radius = (-2 * u[..., 0].log()).sqrt()
    expected = torch.stack([radius * (2 * math.pi * u[..., 1]).cos(), radius * (2 * math.pi * u[..., 1]).sin()], -1)
    made = normals(words, dtype)
    assert made.dtype == dtype
    torch.testing.assert_close(made.double(), expected.reshape(5, 8), rtol=0, atol=2e-6)
    assert bool(torch.isfinite(normals(torch.tensor([0, 0, 2**32 - 1, 2**32 - 1]), dtype)).all())


def test_marginals() -> None:
    """Kolmogorov and Smirnov at a level of 10^-4 each, on 80,000 numbers of a fixed seed."""
    words = task_words(3, 0, 0, range(10_000), 0, 2)
    assert stats.kstest(uniforms(words, torch.float64).flatten().numpy(), "uniform").pvalue > 1e-4
    assert stats.kstest(normals(words, torch.float64).flatten().numpy(), "norm").pvalue > 1e-4
    assert stats.kstest(normals(words, torch.float32).flatten().double().numpy(), "norm").pvalue > 1e-4


def test_neighbouring_counters_are_independent() -> None:
    """Correlations of normals and of their squares, at 5 standard errors, when one number of the counter changes."""
    count = 40_000
    base = normals(task_words(3, 0, 0, range(count), 0, 1)[:, :2], torch.float64)[:, 0]
    others = {
        "task": normals(task_words(3, 0, 0, range(1, count + 1), 0, 1)[:, :2], torch.float64)[:, 0],
        "block": normals(task_words(3, 0, 0, range(count), 1, 1)[:, :2], torch.float64)[:, 0],
        "draw": normals(task_words(3, 0, 1, range(count), 0, 1)[:, :2], torch.float64)[:, 0],
        "stream": normals(task_words(3, 1, 0, range(count), 0, 1)[:, :2], torch.float64)[:, 0],
        "seed": normals(task_words(4, 0, 0, range(count), 0, 1)[:, :2], torch.float64)[:, 0],
        "seed, high half": normals(task_words(3 + (1 << 32), 0, 0, range(count), 0, 1)[:, :2], torch.float64)[:, 0],
        "draw, high half": normals(task_words(3, 0, 1 << 32, range(count), 0, 1)[:, :2], torch.float64)[:, 0],
        "draw, next high half": normals(task_words(3, 0, 2 << 32, range(count), 0, 1)[:, :2], torch.float64)[:, 0],
        "pair": normals(task_words(3, 0, 0, range(count), 0, 1)[:, :2], torch.float64)[:, 1],
    }
    for what, other in others.items():
        for left, right in ((base, other), (base.square(), other.square())):
            correlation = torch.corrcoef(torch.stack([left, right]))[0, 1]
            assert abs(correlation) < 5 / math.sqrt(count), what
