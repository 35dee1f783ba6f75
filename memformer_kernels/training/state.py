"""What a training run carries from step to step: M models with their optimiser's moments, counters and streams."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from memformer_kernels.problem import check_size, reject, reject_kind
from memformer_kernels.sharding import is_sharded
from memformer_kernels.training.philox import LARGEST_SEED

NAMES = ("q", "p", "gamma", "beta")

_AXES = {"q": (4,), "p": (4,), "gamma": (4, 5), "beta": (4,)}


@dataclass(eq=False)
class TrainState:
    """M models of one shape, trained side by side, each on its own stream of tasks. `train_steps` changes it in place.

    Made by `TrainState.of`, or from its attributes when it is read from a file; either way it is checked.

    Attributes:
        parameters: by name, of "q", "p", "gamma" and "beta" those that the models have, as `memformer_stack` takes them
            with an axis M in front: q (M, L, H, d, d). gamma has 4 or 5 axes besides, beta 4. All in one dtype,
            float32 or float64, on one device.
        first: first moments, or SGD's momentum buffer, shaped as the parameters.
        second: Adam's second moments, likewise.
        masks: by name, bool tensors shaped as a parameter: the entries that training may change. No entry: all.
        seeds: (M,) int64 on the CPU. streams: (M,) int64 on the CPU, 0 to 2^32 - 1: two models with the same seed and
            stream see the same tasks, otherwise independent ones.
        skipped: (M,) int64 on the CPU: steps that left a model as it was, since something was not finite.
        step: steps done, skipped ones included.

    Raises ValueError or TypeError for an attribute that does not fit, naming it.
    """

    parameters: dict[str, Tensor]
    first: dict[str, Tensor]
    second: dict[str, Tensor]
    seeds: Tensor
    streams: Tensor
    skipped: Tensor
    step: int = 0
    masks: dict[str, Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        q = self.parameters.get("q")
        if not isinstance(q, Tensor) or q.ndim != 5 or 0 in q.shape or q.shape[-1] != q.shape[-2]:
            reject("q", q, "a tensor (M, L, H, d, d) or (M, L, H, D, D) without an empty axis")
        if q.dtype not in (torch.float32, torch.float64):
            reject_kind("q", q, "float32 or float64")
        for name, value in self.parameters.items():
            if name not in NAMES:
                reject("parameters", name, f"names out of {', '.join(NAMES)}")
            _check_like(name, value, q)
        for group in ("first", "second"):
            moments = getattr(self, group)
            if moments.keys() != self.parameters.keys():
                reject(group, sorted(moments), f"one entry for each of {sorted(self.parameters)}")
            for name, value in moments.items():
                _check_shape(f"{group}[{name!r}]", value, self.parameters[name], q.dtype)
        for name, value in self.masks.items():
            if name not in self.parameters:
                reject("masks", name, f"names out of {sorted(self.parameters)}")
            _check_shape(f"masks[{name!r}]", value, self.parameters[name], torch.bool)
        for name, most in (("seeds", LARGEST_SEED), ("streams", 2**32 - 1), ("skipped", LARGEST_SEED)):
            _check_integers(name, getattr(self, name), self.models, most)
        check_size("step", self.step, least=0)

    @classmethod
    def of(
        cls,
        models: Sequence[Mapping[str, Any]],
        *,
        seeds: int | Sequence[int] = 0,
        streams: Sequence[int] | None = None,
        trainable: Sequence[Mapping[str, Tensor]] | None = None,
    ) -> "TrainState":
        """The state before the first step of models given by their parameters, which are copied.

        models: for each, "q" and, unless None, "p", "gamma" and "beta", as `memformer_stack` takes them;
            `nn.Memformer.stack_arguments()` gives such a mapping. gamma and beta must have all their axes. Models may
            differ in depth: the shallower ones are padded by identity layers, which training leaves alone.
        seeds: one for all models, or one for each; from 0 to 2^63 - 1.
        streams: one for each model; None counts them 0, 1, ..., so that each has its own tasks.
        trainable: for each model, by name, bool tensors that broadcast to a parameter: entries that may change.

        Raises ValueError or TypeError for an argument that does not fit. A gate is not trained: fold it first.
        """
        if isinstance(models, Mapping) or not isinstance(models, Sequence) or len(models) == 0:
            reject_kind("models", models, "a sequence of at least one mapping from names to parameters")
        count = len(models)
        given = [_named(model) for model in models]
        masks = [{} for _ in models] if trainable is None else [dict(mask) for mask in trainable]
        if len(masks) != count:
            reject("trainable", f"{len(masks)} mappings", f"{count}, one for each model")
        for index, (model, mask) in enumerate(zip(given, masks, strict=True)):
            given[index], masks[index] = _pad_depth(model, mask, max(x["q"].shape[0] for x in given))
        names = list(given[0])
        for model in given[1:]:
            shapes = [{name: tuple(value.shape) for name, value in x.items()} for x in (model, given[0])]
            if shapes[0] != shapes[1]:
                reject("models", shapes[0], f"the same parameters and shapes in every model, {shapes[1]}")
        parameters = {name: torch.stack([model[name] for model in given]) for name in names}
        stacked = {name: torch.stack([mask[name] for mask in masks]) for name in names}
        if isinstance(seeds, Sequence) and not isinstance(seeds, str):
            seed_list = list(seeds)
        else:
            seed_list = [check_size("seeds", seeds, least=0)] * count
        return cls(
            parameters=parameters,
            first={name: torch.zeros_like(value) for name, value in parameters.items()},
            second={name: torch.zeros_like(value) for name, value in parameters.items()},
            seeds=_integers("seeds", seed_list),
            streams=_integers("streams", list(range(count)) if streams is None else list(streams)),
            skipped=torch.zeros(count, dtype=torch.int64),
            masks={name: mask for name, mask in stacked.items() if not bool(mask.all())},
        )

    @property
    def models(self) -> int:
        """M."""
        return self.parameters["q"].shape[0]

    @property
    def dtype(self) -> torch.dtype:
        return self.parameters["q"].dtype

    @property
    def device(self) -> torch.device:
        return self.parameters["q"].device

    def tensors(self) -> list[Tensor]:
        """Every tensor of the state, in a fixed order."""
        groups = (self.parameters, self.first, self.second, self.masks)
        named = [group[name] for group in groups for name in NAMES if name in group]
        return [*named, self.seeds, self.streams, self.skipped]

    def model(self, index: int) -> dict[str, Tensor]:
        """The parameters of one model by name, as views."""
        return {name: value[index] for name, value in self.parameters.items()}


def _named(model: Mapping[str, Any]) -> dict[str, Tensor]:
    """The parameters that are there, checked for kind and axes, in the order of NAMES."""
    if model.get("gate") is not None:
        reject("gate", model["gate"], "None: gates are not trained here, fold them into q or gamma first")
    unknown = sorted(set(model) - {*NAMES, "gate"})
    if unknown:
        reject("models", unknown, f"names out of {', '.join(NAMES)}")
    named: dict[str, Tensor] = {}
    for name in NAMES:
        value = model.get(name)
        if value is None and name != "q":
            continue
        if not isinstance(value, Tensor) or value.dtype not in (torch.float32, torch.float64):
            reject_kind(name, value, "a tensor of float32 or float64")
        if is_sharded(value):
            reject_kind(name, value, "a whole tensor, as full_tensor() makes of a DTensor")
        if value.ndim not in _AXES[name]:
            reject(name, value, f"a tensor of {' or '.join(map(str, _AXES[name]))} axes")
        named[name] = value.detach()
    return named


def _pad_depth(
    model: dict[str, Tensor], trainable: dict[str, Tensor], depth: int
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The model with identity layers after its own, and masks of the entries that training may change.

    An added layer has q = 0 and, where there is memory, gamma and beta 0: it adds nothing to the tokens.
    """
    layers = model["q"].shape[0]
    masks = {}
    for name, value in model.items():
        mask = trainable.get(name, torch.ones((), dtype=torch.bool))
        if not isinstance(mask, Tensor) or mask.dtype != torch.bool:
            reject_kind(f"trainable[{name!r}]", mask, "a tensor of bool")
        try:
            masks[name] = mask.to(value.device).expand(value.shape)
        except RuntimeError:
            reject(f"trainable[{name!r}]", mask, f"a tensor that broadcasts to {tuple(value.shape)}")
    unknown = sorted(set(trainable) - set(model))
    if unknown:
        reject("trainable", unknown, f"names out of {sorted(model)}")
    if layers == depth:
        return model, masks
    gamma, beta = model.get("gamma"), model.get("beta")
    shared_gamma = layers > 1 and gamma is not None and gamma.shape[0] == 1 and (gamma.ndim == 5 or beta is not None)
    shared_beta = layers > 1 and gamma is None and beta is not None and beta.shape[0] == 1
    if shared_gamma or shared_beta:
        reject(
            "models", f"{layers} layers that share gamma or beta", f"{depth} layers, or a gamma or beta for each layer"
        )
    padded = {}
    for name, value in model.items():
        axes = [axis for axis in range(2 if name == "gamma" and value.ndim == 5 else 1) if value.shape[axis] == layers]
        shape = list(value.shape)
        for axis in axes:
            shape[axis] = depth
        own = tuple(slice(layers) if axis in axes else slice(None) for axis in range(value.ndim))
        padded[name] = value.new_zeros(shape)
        padded[name][own] = value
        mask = torch.zeros(shape, dtype=torch.bool, device=value.device)
        mask[own] = masks[name]
        masks[name] = mask
    return padded, masks


def _integers(name: str, values: Sequence[object]) -> Tensor:
    for value in values:
        if check_size(name, value, least=0) > LARGEST_SEED:
            reject(name, value, f"an int of at most {LARGEST_SEED}")
    return torch.tensor(values, dtype=torch.int64)


def _check_integers(name: str, value: object, models: int, most: int) -> None:
    if not isinstance(value, Tensor) or value.dtype != torch.int64 or value.device.type != "cpu":
        reject_kind(name, value, "an int64 tensor on the CPU")
    if tuple(value.shape) != (models,) or int(value.min()) < 0 or int(value.max()) > most:
        reject(name, value.tolist(), f"{models} integers from 0 to {most}, one for each model")


def _check_like(name: str, value: object, q: Tensor) -> None:
    """A parameter beside q: its kind, its axes, and contiguity, since kernels write into it."""
    if not isinstance(value, Tensor) or value.dtype != q.dtype or value.device != q.device:
        reject_kind(name, value, f"a tensor of q's {q.dtype} on {q.device}")
    if value.ndim - 1 not in _AXES[name] or value.shape[0] != q.shape[0]:
        reject(name, value, f"{' or '.join(str(a + 1) for a in _AXES[name])} axes, the first of size M = {q.shape[0]}")
    if not value.is_contiguous():
        reject(name, f"strides {value.stride()}", "a contiguous tensor")


def _check_shape(name: str, value: object, parameter: Tensor, dtype: torch.dtype) -> None:
    if not isinstance(value, Tensor) or value.dtype != dtype or value.device != parameter.device:
        reject_kind(name, value, f"a {dtype} tensor on {parameter.device}")
    if value.shape != parameter.shape or not value.is_contiguous():
        reject(name, value, f"a contiguous tensor of its parameter's shape {tuple(parameter.shape)}")
