"""Philox4x32-10, the counter-based generator of Salmon et al. (SC 2011), in torch integers, and what its words make.

A key and a counter give four 32-bit words, so any task of any step is drawn without drawing those before it: the same
on every backend and for any number of threads or ranks. The stream of a training run is

    key     = (seed's low 32 bits, seed's high 32 bits)
    counter = (block, task, draw's low 32 bits, stream)

`task` is the index in the global batch, `draw` the number of the batch (step // resample_every), `stream` tells the
models of an ensemble apart, and `block` numbers a task's blocks of four words, which are read in order; it stays below
2^31. From draw 2^32 on the key is made of the seed's and the draw's high half h: the first two words under the seed's
own key of the counter (2^31 + h, 0, 0, 0), which is no task's. Word w is the
uniform w 2^-32 + 2^-33 in the working dtype (in float32 it may round to 1). Words 2k and 2k + 1 make two normals by Box
and Muller: r cos(2 pi u') and r sin(2 pi u') with r = sqrt(-2 ln u). `draws` says which normal is which.
"""

import math

import torch
from torch import Tensor

_MASK = 0xFFFFFFFF
_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_WEYL = (0x9E3779B9, 0xBB67AE85)
_ROUNDS = 10

_KEY_BLOCKS = 2**31

NOISE_BLOCK = _KEY_BLOCKS - 1
"""The last block of a task, which no other draw reaches: its first word makes the task's noise, where each has its own.
"""

LARGEST_SEED = 2**63 - 1


def philox(counter: Tensor, key: tuple[int | Tensor, int | Tensor]) -> Tensor:
    """Words (..., 4) of counters (..., 4), both as int64 from 0 to 2^32 - 1, under a key of two 32-bit integers.

    Keys may be int64 tensors that broadcast against (...).
    """
    first, second, third, fourth = counter.unbind(-1)
    low_key, high_key = key
    for _ in range(_ROUNDS):
        # A product of two words wraps modulo 2^64 in int64; masking gives its halves whatever the sign.
        left, right = first * _MULTIPLIERS[0], third * _MULTIPLIERS[1]
        first, third = _high(right) ^ second ^ low_key, _high(left) ^ fourth ^ high_key
        second, fourth = right & _MASK, left & _MASK
        low_key, high_key = (low_key + _WEYL[0]) & _MASK, (high_key + _WEYL[1]) & _MASK
    return torch.stack([first, second, third, fourth], -1)


def _high(product: Tensor) -> Tensor:
    return (product >> 32) & _MASK


def key_of(seed: int, draw: int) -> tuple[int, int]:
    """The key of a draw: two 32-bit integers."""
    key, high = (seed & _MASK, seed >> 32), draw >> 32
    if high:
        low_key, high_key = philox(torch.tensor([_KEY_BLOCKS + high, 0, 0, 0], dtype=torch.int64, device="cpu"), key)[
            :2
        ].tolist()
        return low_key, high_key
    return key


def task_words(
    seed: int, stream: int, draw: int, tasks: range, first: int, count: int, device: torch.device | str = "cpu"
) -> Tensor:
    """Words (len(tasks), 4 count) of the blocks `first`, ..., `first + count - 1` of these tasks, as int64."""
    counter = torch.empty(len(tasks), count, 4, dtype=torch.int64, device=device)
    counter[..., 0] = torch.arange(first, first + count, device=device, dtype=torch.int64)
    counter[..., 1] = torch.arange(tasks.start, tasks.stop, device=device, dtype=torch.int64)[:, None]
    counter[..., 2] = draw & _MASK
    counter[..., 3] = stream
    return philox(counter, key_of(seed, draw)).flatten(1)


def uniforms(words: Tensor, dtype: torch.dtype) -> Tensor:
    """Uniforms of (0, 1], never 0, from words."""
    return words.to(dtype) * 2.0**-32 + 2.0**-33


def normals(words: Tensor, dtype: torch.dtype) -> Tensor:
    """Standard normals (..., W) from an even number W of words (..., W)."""
    pairs = uniforms(words, dtype).reshape(*words.shape[:-1], words.shape[-1] // 2, 2)
    radius = (-2.0 * pairs[..., 0].log()).sqrt()
    angle = 2.0 * math.pi * pairs[..., 1]
    return torch.stack([radius * angle.cos(), radius * angle.sin()], -1).flatten(-2)
