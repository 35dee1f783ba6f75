"""What a checked call is made of: who computes it, in which form, and the tensors of each operation by name."""

import functools
import re
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

DIAGONAL = frozenset(("linear", "diagonal"))
"""Rules by which a layer weights no register but its own."""


class Form(NamedTuple):
    """How a network is computed. Told from the shapes of its arguments once, and carried to what computes it.

    Attributes:
        space: "gram" (all layers on D-by-D matrices) or "token" (tokens updated layer by layer).
        structure: "response-only", "block" or "dense".
        rule: "linear" (gamma is None), "diagonal" (one weight a layer), "shared" (every layer weights the registers
            alike) or "full".
        per_head: one register a head is kept, since gamma or beta has a head axis; else one for the sum over heads.
        responses: m, the last slots of a token.
    """

    space: str
    structure: str
    rule: str
    per_head: bool
    responses: int = 1

    @property
    def response_only(self) -> bool:
        """Whether features stay as they are, so that registers are one column a response."""
        return self.structure == "response-only"

    def kept(self, heads: int) -> int:
        """Registers that a layer keeps."""
        return heads if self.per_head else 1


_FORM = re.compile("([^,]+), ([^,]+), ([^,]+)(, per head)?(?:, ([0-9]+) responses)?")


def form_name(space: str, structure: str, rule: str, per_head: bool, responses: int = 1) -> str:
    """A form as one word list, which a registered operation can be told and a compiled graph can hold."""
    heads = ", per head" if per_head else ""
    return f"{space}, {structure}, {rule}{heads}" + (f", {responses} responses" if responses != 1 else "")


@functools.cache
def form_named(name: str) -> Form:
    """The form of that name. Raises ValueError for a name that `form_name` does not make."""
    found = _FORM.fullmatch(name)
    if found is None:
        raise ValueError(
            f"form: expected 'SPACE, STRUCTURE, RULE', then ', per head' and ', M responses' or neither, got {name!r}"
        )
    space, structure, rule, heads, responses = found.groups()
    return Form(space, structure, rule, heads is not None, int(responses or 1))


class Plan(NamedTuple):
    """Who computes a call and how; `reason` says which rules chose it."""

    backend: str
    algorithm: str
    regime: str
    reason: str


OF_TASKS = "coefficients of tasks"
"""The form of a first-order method whose gamma or beta has an axis of tasks."""


class Call(NamedTuple):
    """All that a call is besides its tensors: the same for every call whose arguments look alike.

    Attributes:
        context: labelled tokens of every task; N where contexts are ragged.
        lengths: (B,) ragged contexts, or None.
        queries: tokens that are predicted, 0 where nothing is.
        form: the name of its `Form`, empty where there is but one.
        backend: the plan's.
        plan: what `explain` shows.
    """

    context: int
    lengths: Tensor | None
    queries: int
    form: str
    backend: str
    plan: Plan


class Network(NamedTuple):
    """The arguments of a stack, gates folded into q or gamma; `lengths` (B,) are ragged contexts, else None.

    `weights` (B, N) of the context's tokens come last, since few backends are given any.
    """

    z: Tensor
    q: Tensor
    p: Tensor | None
    gamma: Tensor | None
    beta: Tensor | None
    lengths: Tensor | None
    context: int
    form: Form
    weights: Tensor | None = None


class Layer(NamedTuple):
    """The arguments of one layer; `registers` are those of the layers before it, `weights` as in `Network`."""

    z: Tensor
    q: Tensor
    p: Tensor | None
    registers: Sequence[Tensor]
    gamma: Tensor | None
    beta: Tensor | None
    lengths: Tensor | None
    context: int
    form: Form
    weights: Tensor | None = None


class Quadratics(NamedTuple):
    """The arguments of a learned first-order method on w^T h w / 2 - b^T w; b and w0 may have an axis of columns."""

    h: Tensor
    b: Tensor
    a: Tensor
    gamma: Tensor | None
    beta: Tensor | None
    w0: Tensor | None


class Proximal(NamedTuple):
    """What a step of a first-order method ends in: the prox of level ||w||_1 with bounds on w, or with a ball.

    level, lower, upper: broadcastable to (L, d); radius: broadcastable to (L, 1), and the others are None then.
    """

    level: Tensor | None
    lower: Tensor | None
    upper: Tensor | None
    radius: Tensor | None


class Attention(NamedTuple):
    """Tokens q, k (B, ., H, E) and v (B, ., H, F); weights rows and keys (B, .), None for ones.

    Where both kinds of weights are given, a token of weight 0 is left out by selection, so that what it holds is never
    read; weights of one kind alone are not 0. The form says which keys t sees:
    "full" (all), "causal" (i <= t) or "anticausal" (i >= t); with bounds (S + 1,), only keys of its own sequence of a
    packed batch.
    """

    q: Tensor
    k: Tensor
    v: Tensor
    rows: Tensor | None
    keys: Tensor | None
    bounds: Tensor | None
    form: str


class Update(NamedTuple):
    """z and registers (A, M, C), gamma (J, M): register j is weighted with gamma[j, m]."""

    z: Tensor
    registers: list[Tensor]
    gamma: Tensor


def compute_dtype(tensor: Tensor) -> torch.dtype:
    """What sums over a tensor's entries are kept in: float64 for float64, else float32."""
    return torch.float64 if tensor.dtype == torch.float64 else torch.float32
