"""The order in which every epoch takes given tasks: drawn once an epoch, and kept until the next one is asked for.

An epoch sorts the tasks by 63 bits that each takes from the first block of its words (`philox`), the epoch's number in
place of the draw's; those of equal bits stay as they are.
"""

from collections.abc import Sequence
from itertools import groupby
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from memformer_kernels.training.philox import key_of, philox
from memformer_kernels.training.samplers import FixedTasks

_AT_ONCE = 2**18
"""Tasks, over several streams, whose order is drawn at once: their words take 32 bytes each, several times."""

_KEPT_BYTES = 2**28
"""What the kept orders of a sampler take at most, where the tasks themselves do not take more."""

Source = tuple[int, int]
"""A seed and a stream."""

_kept: WeakKeyDictionary[FixedTasks, dict[Source, tuple[int, Tensor]]] = WeakKeyDictionary()
"""By sampler and source the last epoch and its order."""


def batches(sampler: FixedTasks, sources: Sequence[Source], draws: range, device: torch.device | str) -> Tensor:
    """Indices (draws, M, B) of the given tasks in these batches of M sources; `sampler.batch` is set."""
    size, total = sampler.batch or 0, sampler.z.shape[0]
    parts = []
    for epoch, numbers in groupby(draws, lambda draw: draw // sampler.draws_of_epoch):
        first, *rest = (number % sampler.draws_of_epoch for number in numbers)
        if sampler.shuffle:
            orders = _orders(sampler, sources, epoch, torch.device(device))
        else:
            orders = [torch.arange(total, device=device, dtype=torch.int64)] * len(sources)
        count = 1 + len(rest)
        rows = torch.stack([order[first * size : (first + count) * size] for order in orders])
        parts.append(rows.view(len(sources), count, size).transpose(0, 1))
    return parts[0].contiguous() if len(parts) == 1 else torch.cat(parts)


def _orders(sampler: FixedTasks, sources: Sequence[Source], epoch: int, device: torch.device) -> list[Tensor]:
    """Indices (T,) of the tasks in the order of an epoch, for each source."""
    total, kept = sampler.z.shape[0], _kept.setdefault(sampler, {})
    found = {}
    for source in sources:
        last, order = kept.get(source, (-1, None))
        if order is not None and last == epoch and order.shape[0] == total and order.device == device:
            found[source] = order
    missing = [source for source in dict.fromkeys(sources) if source not in found]
    rows = max(1, _AT_ONCE // total)
    for start in range(0, len(missing), rows):
        some = missing[start : start + rows]
        found.update(zip(some, draw_orders(some, epoch, total, device).unbind(), strict=True))
    room = max(_KEPT_BYTES, sampler.z.nbytes) // (8 * total)
    for source in missing:
        if source in kept or len(kept) < room:
            kept[source] = epoch, found[source]
    return [found[source] for source in sources]


@torch.inference_mode(False)
def draw_orders(sources: Sequence[Source], epoch: int, total: int, device: torch.device | str) -> Tensor:
    """Indices (M, T) of T tasks in the order of an epoch."""
    counter = torch.zeros(len(sources), total, 4, dtype=torch.int64, device=device)
    counter[..., 1] = torch.arange(total, device=device, dtype=torch.int64)
    counter[..., 2] = epoch & 0xFFFFFFFF
    numbers = [(stream, *key_of(seed, epoch)) for seed, stream in sources]
    streams, *keys = torch.tensor(numbers, dtype=torch.int64, device=device).T[..., None]
    counter[..., 3] = streams
    words = philox(counter, (keys[0], keys[1]))
    return torch.argsort((words[..., 0] << 31) | (words[..., 1] >> 1), dim=-1, stable=True)
