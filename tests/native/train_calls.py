"""Calls of the trainer's CUDA blocks on the host: a state, a sampler and an optimiser as a list of integers."""

import math

import torch
from torch import Tensor

from memformer_kernels.training import arguments
from memformer_kernels.training.optimizers import Optimizer
from memformer_kernels.training.samplers import Sampler, batch_of
from memformer_kernels.training.state import NAMES, TrainState, in_order

AUTOMATIC, PERSISTENT, REPLAY = range(3)
SAMPLERS = {"statistics": 0, "tokens": 1, "fixed": 2}
RULES = {"sgd": 0, "nesterov": 1, "adam": 2, "adamw": 3}


def links(state: TrainState) -> tuple[dict[str, int], list[tuple[int, int]], list[int], int]:
    """Dense counts by parameter, links (dense, flat), the ends of matrices, and the registers a layer keeps."""
    shapes = {name: value.shape[1:] for name, value in state.parameters.items()}
    layers, heads, d, _ = shapes["q"]
    kept = heads if any(name in shapes and shapes[name][-3] > 1 for name in ("gamma", "beta")) else 1
    counts, found, ends, begin, dense = {}, [], [], 0, 0
    for name in NAMES:
        if name not in shapes:
            continue
        size = math.prod(shapes[name])
        flat = begin + torch.arange(size).reshape(shapes[name])
        if name == "q":
            grouped = flat.reshape(layers, heads, d * d)
            joined = grouped.transpose(1, 2) if kept == 1 else grouped.reshape(layers * heads, -1, 1)
            ends += [begin + k * d * d for k in range(1, layers * heads + 1)]
            places = joined.reshape(-1, joined.shape[-1])
            counts[name] = places.shape[0]
            found += [(dense + k, int(one)) for k, row in enumerate(places) for one in row]
        else:
            paired = flat.ndim == 5
            lead = (layers, layers) if paired else (layers,)
            wide = flat[..., 0, -1].expand(*lead, kept)
            counts[name] = wide.numel()
            for k, one in enumerate(wide.flatten().tolist()):
                if not paired or k // kept % layers <= k // kept // layers:
                    found.append((dense + k, one))
            ends.append(begin + size)
        begin += size
        dense += counts[name]
    return counts, found, ends, kept


class TrainCall:
    """The numbers of a call, and the tensors that they point to."""

    def __init__(
        self, state: TrainState, sampler: Sampler, steps: int, optimizer: Optimizer, limit: int | None = None
    ) -> None:
        self.state, self.steps = state, steps
        counts, found, ends, kept = links(state)
        flat = sum(value[0].numel() for value in state.parameters.values())
        rule, hyper, clip = arguments.rule(optimizer, state.models)
        every, seeds, streams, kind, d, batch, all_tokens, context, *rest = arguments.tasks(state, sampler, steps)
        queries, _, noise, _, weights, factor, z, target, index = rest
        factors = [optimizer.schedule.factor(state.step + i) for i in range(steps)]
        self.losses = torch.full((steps, state.models), -7.0, dtype=torch.float64)
        clip_ends = {"none": [], "matrix": ends, "model": [flat]}[clip]
        gamma = state.parameters.get("gamma")
        tensors: list[int] = []
        for name, value in in_order(state.parameters).items():
            second = None if rule in ("sgd", "nesterov") else state.second[name]
            for one in (value, state.first[name], second, state.masks.get(name)):
                tensors.append(self._address(one))
            tensors.append(value[0].numel())
        layers = state.parameters["q"].shape[1]
        self.numbers = [
            int(gamma is None or gamma.ndim == 5),
            *(d + 1, layers, kept, kept, counts["q"], counts.get("gamma", 0), counts.get("beta", 0), len(found)),
            *(self._integers([pair[side] for pair in found]) for side in (0, 1)),
            *(SAMPLERS[kind], state.models, batch, d, all_tokens, context, queries),
            self._address(torch.tensor([noise], dtype=torch.float32)),
            *(self._address(one) for one in (seeds, streams, weights, factor, z, target, index)),
            state.step // every,
            *(len(state.parameters), flat, *tensors),
            *(RULES[rule], len(clip_ends), self._integers(clip_ends), -1 if limit is None else limit),
            self._address(hyper),
            self._address(torch.tensor(factors, dtype=torch.float64)),
            *(self._address(state.skipped), self._address(self.losses), state.step, steps, every),
        ]
        assert batch == batch_of(sampler)

    def _integers(self, values: list[int]) -> int:
        return self._address(torch.tensor(values, dtype=torch.int32))

    def _address(self, tensor: Tensor | None) -> int:
        if tensor is None:
            return 0
        self.__dict__.setdefault("held", []).append(tensor)
        return tensor.data_ptr()
