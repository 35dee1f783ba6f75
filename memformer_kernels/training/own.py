"""Batches that a function of the caller's draws: seeded by run and step, checked, and kept while steps read them."""

from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from memformer_kernels.calls.checks import dense, reject, reject_kind
from memformer_kernels.training.philox import task_words
from memformer_kernels.training.samplers import DrawnTasks
from memformer_kernels.training.state import TrainState

_KEPT_BYTES = 2**28
"""What the kept batches of a sampler take at most, where a single one does not take more."""

Batch = tuple[Tensor, Tensor]
"""z (B, N, d + 1) and target (B, queries)."""

_kept: WeakKeyDictionary[DrawnTasks, dict[object, tuple[int, Batch]]] = WeakKeyDictionary()
"""By sampler and stream the number of the last batch, and the batch."""


def batch(
    sampler: DrawnTasks, seed: int, stream: int, draw: int, dtype: torch.dtype, device: torch.device | str
) -> Batch:
    """The batch number `draw` of a stream, in memory of its own.

    Raises ValueError or TypeError for what the function returned, and whatever the function raises.
    """
    kept, source = _kept.setdefault(sampler, {}), (seed, stream, dtype, torch.device(device))
    last, made = kept.get(source, (-1, None))
    if made is None or last != draw:
        made = _drawn(sampler, _generator(seed, stream, draw, device), dtype)
        size = sum(tensor.nbytes for tensor in made)
        if source not in kept and len(kept) >= max(1, _KEPT_BYTES // size):
            kept.clear()
        kept[source] = draw, made
    return made


def batches(sampler: DrawnTasks, state: TrainState) -> tuple[Tensor, Tensor, Tensor | None]:
    """The tasks of all models at the next step, z (T, N, d + 1) and target, and which of them each model sees.

    The latter are indices (1, M, B), or None where all see all.
    """
    number = state.step // sampler.resample_every
    sources = list(zip(state.seeds.tolist(), state.streams.tolist(), strict=True))
    places = {source: place for place, source in enumerate(dict.fromkeys(sources))}
    made = [batch(sampler, *source, number, state.dtype, state.device) for source in places]
    if len(made) == 1:
        return *made[0], None
    rows = torch.arange(sampler.batch, dtype=torch.int64, device=state.device)
    index = torch.stack([places[source] * sampler.batch + rows for source in sources])
    return torch.cat([z for z, _ in made]), torch.cat([target for _, target in made]), index[None]


def check(sampler: DrawnTasks, state: TrainState) -> None:
    """Raises unless the function returns tasks that the models read, by a look at the first that they will see."""
    number = state.step // sampler.resample_every
    batch(sampler, int(state.seeds[0]), int(state.streams[0]), number, state.dtype, state.device)


def _generator(seed: int, stream: int, draw: int, device: torch.device | str) -> torch.Generator:
    high, low = task_words(seed, stream, draw, range(1), 0, 1)[0, :2].tolist()
    return torch.Generator(device).manual_seed(high << 31 | low >> 1)


@torch.inference_mode(False)
@torch.no_grad()
def _drawn(sampler: DrawnTasks, generator: torch.Generator, dtype: torch.dtype) -> Batch:
    made: object = sampler.draw(sampler.batch, generator)
    if not isinstance(made, tuple | list) or len(made) != 2:
        reject_kind("draw", made, "a function that returns two tensors, z and target")
    shapes = (sampler.batch, sampler.tokens, sampler.d + 1), (sampler.batch, sampler.queries)
    z, target = (
        _checked(name, value, shape, dtype, generator.device)
        for name, value, shape in zip(("z", "target"), made, shapes, strict=True)
    )
    return z, target


def _checked(name: str, value: object, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """A copy of a tensor that was drawn: its memory may be written again by the next draw."""
    if not isinstance(value, Tensor) or not dense(value) or value.dtype != dtype or value.device != device:
        reject_kind("draw", value, f"{name} to be a dense tensor of the models' {dtype} on {device}")
    if tuple(value.shape) != shape:
        sizes = "(batch, n + queries, d + 1)" if name == "z" else "(batch, queries)"
        reject("draw", value, f"{name} of shape {sizes} = {shape}")
    return value.detach().clone(memory_format=torch.contiguous_format)
