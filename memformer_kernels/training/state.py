"""What a training run carries from step to step: M models with their optimiser's moments, counters and streams."""

import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from memformer_kernels.calls.checks import check_integer, check_size, reject, reject_kind
from memformer_kernels.calls.problem import check_network
from memformer_kernels.torch_ops.sharding import is_sharded
from memformer_kernels.training.checks import check_count, check_memory
from memformer_kernels.training.depth import padded, unpadded, whole_masks
from memformer_kernels.training.philox import LARGEST_SEED
from memformer_kernels.training.state_checks import (
    AXES,
    check_apart,
    check_counter,
    check_integers,
    check_like,
    check_shape,
    check_tied,
    check_written,
    floating,
    looks,
)

NAMES = ("q", "p", "gamma", "beta", "gate")

_GROUPS = ("parameters", "first", "second", "masks")
_COUNTERS = ("seeds", "streams", "skipped")

TIED = ("q", "p")
"""The parameters that tied layers share."""


@runtime_checkable
class Network(Protocol):
    """What `nn.Memformer` is to a state: layers, parameters, and which entries of them training may change."""

    layers: int

    def stack_arguments(self) -> Mapping[str, Any]: ...

    def trainable_entries(self) -> Mapping[str, Tensor]: ...

    def load_arguments(self, arguments: Mapping[str, Tensor]) -> None: ...


class _Counter:
    """An int that lives in a state's tensor `counter`: one call writes the state's tensors and counts."""

    def __get__(self, state: "TrainState | None", kind: type["TrainState"] | None = None) -> int:
        return 0 if state is None else int(state.counter)

    def __set__(self, state: "TrainState", value: int) -> None:
        steps = check_count("step", value, LARGEST_SEED, least=0)
        with torch.inference_mode(False):
            state.counter = torch.tensor(steps, dtype=torch.int64, device="cpu")


@dataclass(eq=False)
class TrainState:
    """M models of one shape, trained side by side, each on its own stream of tasks. `train_steps` changes it in place.

    Made by `TrainState.of`, or from its attributes when it is read from a file; either way it is checked, and again by
    `train_steps` where an attribute or a tensor was replaced, or a tensor resized. Entries of its dicts are taken by
    name, in whatever order they stand, and no two tensors may share memory.

    Attributes:
        parameters: by name, of "q", "p", "gamma", "beta" and "gate" those that the models have, as `memformer_stack`
            takes them with an axis M in front: q (M, L, H, d, d). gamma has 4 or 5 axes besides, beta 4, gate 1 or 2.
            All in one dtype, float32 or float64, on one device.
        first: first moments, or SGD's momentum buffer, shaped as the parameters.
        second: Adam's second moments, likewise.
        masks: by name, bool tensors shaped as a parameter: the entries that training may change. No entry: all.
        seeds: (M,) int64 on the CPU.
        streams: (M,) int64 on the CPU, 0 to 2^32 - 1: two models with the same seed and stream see the same tasks,
            otherwise independent ones.
        skipped: (M,) int64 on the CPU: steps that left a model as it was, since something was not finite.
        step: steps done, skipped ones included, from 0 to 2^63 - 1.
        counter: the tensor that holds it, () int64 on the CPU.
        tied: (M,) int64 on the CPU: how many of a model's first layers share one q and p, 0 where each layer has its
            own; None: no model ties any. Layers that share matrices hold the same numbers, moments and masks, and move
            by one gradient, the sum of theirs; a norm that gradients are clipped by counts them once.

    Raises:
        ValueError, TypeError: an attribute that does not fit, by name.
    """

    parameters: dict[str, Tensor]
    first: dict[str, Tensor]
    second: dict[str, Tensor]
    seeds: Tensor
    streams: Tensor
    skipped: Tensor
    step: _Counter = _Counter()
    masks: dict[str, Tensor] = field(default_factory=dict)
    tied: Tensor | None = None
    counter: Tensor = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self._seen: list[object] = []
        self._looks: list[tuple[object, ...]] = []
        self._read: tuple[int, int] | None = None
        self.check()

    def check(self) -> None:
        """Raises for an attribute that does not fit; at once where all that the last check saw is there still."""
        seen: list[object] = [self.seeds, self.streams, self.skipped, self.counter, self.tied]
        for group in _GROUPS:
            held = getattr(self, group)
            if not isinstance(held, dict):
                reject_kind(group, held, "a dict of tensors by name")
            seen += (*held, *held.values())
        same = len(seen) == len(self._seen) and all(map(operator.is_, seen, self._seen))
        if same and self._looks == looks(seen):
            # Whoever writes to one of the copies that tied layers have changes no tensor's looks.
            self._check_ties()
            return
        self._seen, self._read = [], None
        for name, value in (self._labelled() | {"counter": self.counter}).items():
            check_memory(name, value)
            check_written(name, value)
        check_counter(self.counter)
        self._check_parameters()
        for group in ("first", "second"):
            moments = getattr(self, group)
            if moments.keys() != self.parameters.keys():
                reject(group, list(moments), f"one entry for each of {list(in_order(self.parameters))}")
            for name, value in moments.items():
                check_shape(f"{group}[{name!r}]", value, self.parameters[name], self.dtype)
        for name, value in self.masks.items():
            if name not in self.parameters:
                reject("masks", name, f"names out of {', '.join(in_order(self.parameters))}")
            check_shape(f"masks[{name!r}]", value, self.parameters[name], torch.bool)
        for name, most in (("seeds", LARGEST_SEED), ("streams", 2**32 - 1), ("skipped", self.step)):
            check_integers(name, getattr(self, name), self.models, most)
        if self.tied is not None:
            check_integers("tied", self.tied, self.models, self.parameters["q"].shape[1])
        self._check_ties()
        check_apart(self._labelled())
        self._seen, self._looks = seen, looks(seen)

    def _check_ties(self) -> None:
        if self.tied is None:
            return
        for group in _GROUPS:
            held = getattr(self, group)
            check_tied(group, {name: held[name] for name in TIED if name in held}, self.tied.tolist())

    def check_reads(self, tokens: int, width: int) -> None:
        """Raises unless the models read tasks of N tokens of D numbers; the attributes have been checked."""
        if self._read != (tokens, width):
            _check_model(self.model(0), tokens, width)
            self._read = (tokens, width)

    def _check_parameters(self) -> None:
        """Each for itself, then those of a model as the arguments of a network on whatever tasks their shapes tell."""
        for name in self.parameters:
            if name not in NAMES:
                reject("parameters", name, f"names out of {', '.join(NAMES)}")
        q = self.parameters.get("q")
        if q is None:
            reject("q", q, "a tensor (M, L, H, d, d) or (M, L, H, D, D)")
        if floating("q", q).ndim != 5 or 0 in q.shape or q.shape[-1] != q.shape[-2]:
            reject("q", q, "a tensor (M, L, H, d, d) or (M, L, H, D, D) without an empty axis")
        for name, value in self.parameters.items():
            check_like(name, value, q)
        model = self.model(0)
        tokens = max([2, *(model[name].shape[-2] for name in ("gamma", "beta") if name in model)])
        _check_model(model, tokens, _width(model))

    @classmethod
    @torch.inference_mode(False)
    def of(
        cls,
        models: Sequence[Mapping[str, Any] | Network],
        *,
        seeds: int | Sequence[int] = 0,
        streams: Sequence[int] | None = None,
        trainable: Sequence[Mapping[str, Tensor]] | None = None,
    ) -> "TrainState":
        """The state before the first step of models, whose parameters are copied. `into` copies them back.

        Args:
            models: each an `nn.Memformer` of one response, or a mapping with "q" and, unless None, "p", "gamma", "beta"
                and "gate", as `memformer_stack` takes them, gamma and beta with all their axes. What a module holds
                fixed stays so: coefficients that its rule fixes, and parameters that require no gradient. What it
                ties stays tied. Models may differ in depth: the shallower ones are padded by identity layers, which
                training leaves alone.
            seeds: one for all models, or one for each; from 0 to 2^63 - 1.
            streams: one for each model; None counts them 0, 1, ..., so that each has its own tasks.
            trainable: for each model, by name, bool tensors that broadcast to a parameter: entries that may change, of
                those that a module does not hold fixed.

        Raises:
            ValueError, TypeError: an argument that does not fit.
        """
        if isinstance(models, Mapping | Network) or not isinstance(models, Sequence) or len(models) == 0:
            reject_kind("models", models, "a sequence of at least one nn.Memformer or mapping from names to parameters")
        count = len(models)
        given = [_named(_arguments(f"models[{index}]", model)) for index, model in enumerate(models)]
        given_masks = [{}] * count if trainable is None else _each("trainable", trainable)
        masks = [_mapping(f"trainable[{index}]", mask) for index, mask in enumerate(given_masks)]
        if len(masks) != count:
            reject("trainable", f"{len(masks)} mappings", f"{count}, one for each model")
        depth = max(model["q"].shape[0] for model in given)
        for index, (model, mask) in enumerate(zip(given, masks, strict=True)):
            free = whole_masks(model, mask)
            if isinstance(module := models[index], Network):
                free = {name: free[name] & entries for name, entries in module.trainable_entries().items()}
            given[index], masks[index] = padded(model, free, depth)
        names = list(given[0])
        for model in given[1:]:
            shapes = [{name: tuple(value.shape) for name, value in x.items()} for x in (model, given[0])]
            if shapes[0] != shapes[1]:
                reject("models", shapes[0], f"the same parameters and shapes in every model, {shapes[1]}")
        parameters = {name: torch.stack([model[name] for model in given]) for name in names}
        stacked = {name: torch.stack([mask[name] for mask in masks]) for name in names}
        tied = [model.layers if isinstance(model, Network) and _is_tied(model) else 0 for model in models]
        seed_list = seeds if isinstance(seeds, Sequence) else [seeds] * count
        return cls(
            parameters=parameters,
            first={name: torch.zeros_like(value) for name, value in parameters.items()},
            second={name: torch.zeros_like(value) for name, value in parameters.items()},
            seeds=_integers("seeds", seed_list),
            streams=_integers("streams", range(count) if streams is None else _each("streams", streams)),
            skipped=torch.zeros(count, dtype=torch.int64, device="cpu"),
            masks={name: mask for name, mask in stacked.items() if not bool(mask.all())},
            tied=_integers("tied", tied) if any(tied) else None,
        )

    def into(self, index: int, module: Network) -> None:
        """Copies the parameters of one model into the module that it was made of, or one like it.

        Layers that padded the model are left out, entries that the module holds fixed stay as they are.

        Args:
            index: of the model, from 0 to M - 1.
            module: an `nn.Memformer` of the model's shape, on any device, in any floating dtype.

        Raises:
            ValueError, TypeError: another index, or a module that is not of the model's shape; it is not changed then.
        """
        if not isinstance(module, Network):
            reject_kind("module", module, "an nn.Memformer")
        if not 0 <= check_integer("index", index) < self.models:
            reject("index", index, f"0 to {self.models - 1}")
        module.load_arguments(unpadded(self.model(index), module.layers))

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

    def tied_layers(self, index: int) -> int:
        """How many of a model's first layers share their matrices: at least 1."""
        return 1 if self.tied is None else max(1, int(self.tied[index]))

    def tensors(self) -> list[Tensor]:
        """Every tensor of the state, in a fixed order."""
        return list(self._labelled().values())

    def model(self, index: int) -> dict[str, Tensor]:
        """The parameters of one model by name, in the order of NAMES, as views."""
        return {name: value[index] for name, value in in_order(self.parameters).items()}

    def _labelled(self) -> dict[str, Tensor]:
        named = dict(in_order(self.parameters))
        for group in _GROUPS[1:]:
            named |= {f"{group}[{name!r}]": value for name, value in in_order(getattr(self, group)).items()}
        named |= {name: getattr(self, name) for name in _COUNTERS}
        return named if self.tied is None else named | {"tied": self.tied}


def in_order(group: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A group of tensors by name, in the order of NAMES, whatever its own."""
    return {name: group[name] for name in NAMES if name in group}


def _named(model: Mapping[str, Any]) -> dict[str, Tensor]:
    """The parameters that are there, checked for kind and axes, in the order of NAMES."""
    unknown = [name for name in model if name not in NAMES]
    if unknown:
        reject("models", unknown, f"names out of {', '.join(NAMES)}")
    named: dict[str, Tensor] = {}
    for name in NAMES:
        value = model.get(name)
        if value is None and name != "q":
            continue
        tensor = floating(name, value)
        if is_sharded(tensor):
            reject_kind(name, value, "a whole tensor, as full_tensor() makes of a DTensor")
        if tensor.ndim not in AXES[name]:
            reject(name, value, f"a tensor of {' or '.join(map(str, AXES[name]))} axes")
        named[name] = tensor.detach()
    return named


def _arguments(name: str, model: object) -> dict[str, Any]:
    """A model's parameters as `memformer_stack` takes them."""
    if isinstance(model, Network):
        if (responses := getattr(model, "responses", 1)) != 1:
            reject(name, f"a module of {responses} responses", "one of a single response, which tasks of a step have")
        return dict(model.stack_arguments())
    if not isinstance(model, Mapping):
        reject_kind(name, model, "an nn.Memformer or a mapping from names to tensors")
    return _mapping(name, model)


def _is_tied(model: Network) -> bool:
    return getattr(model, "tied", False) is True


def _integers(name: str, values: Sequence[object]) -> Tensor:
    return torch.tensor([check_size(name, value, least=0) for value in values], dtype=torch.int64, device="cpu")


def _mapping(name: str, value: object) -> dict[str, Any]:
    if not isinstance(value, Mapping) or not all(isinstance(key, str) for key in value):
        reject_kind(name, value, "a mapping from names to tensors")
    return dict(value)


def _each(name: str, values: object) -> Sequence[Any]:
    if isinstance(values, str) or not isinstance(values, Sequence):
        reject_kind(name, values, "a sequence, one entry for each model")
    return values


def _check_model(model: Mapping[str, Tensor], tokens: int, width: int) -> None:
    """The check of `memformer_loss`, for tasks that take no memory."""
    task = model["q"].as_strided((1, tokens, width), (0, 0, 0))
    q, p, gamma, beta, gate = (model.get(name) for name in NAMES)
    check_network(task, q, p, gamma, beta, gate, 1)


def _width(model: Mapping[str, Tensor]) -> int:
    """D of the tasks that parameters of these shapes read: q's side where another is dense, else one more."""
    side = model["q"].shape[-1]
    whole = side > 1 and any(model[name].shape[-1] == side for name in ("gamma", "beta") if name in model)
    block_p = "p" in model and side > 1 and model["p"].shape[-1] == side - 1
    return side if whole or block_p else side + 1
