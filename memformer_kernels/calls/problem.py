"""Validates the arguments of a public function once and names what they are: sizes, structure, granularity, rule.

Nothing is computed here and no tensor is read, except for the ranges of ragged contexts and of weights, which `ops`
checks where they are at hand on the host. Shapes and values that do not fit raise ValueError, wrong kinds raise
TypeError; every message names the argument, what came and what was expected.
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from memformer_kernels.calls.arguments import form_name
from memformer_kernels.calls.checks import (
    HALF,
    autocasts,
    broadcasts,
    check_device,
    check_floating,
    check_integer,
    check_integers,
    check_size,
    reject,
    reject_kind,
)
from memformer_kernels.torch_internals import has_data, transforming


class Problem(NamedTuple):
    """What a network's arguments are. tokens: N. width: D. layers, heads: L, H (L = 1 for a layer).

    structure, rule and per_head: see `arguments.Form`. token_axis: gamma or beta differs from token to token. context:
    the labelled tokens, or N where contexts are ragged and `lengths` (B,) holds them. device, number: the kind of
    device the tasks are on, and which one of that kind. responses: m, the last slots of a token. weighted: the
    context's tokens have weights.
    """

    tokens: int
    width: int
    layers: int
    heads: int
    structure: str
    rule: str
    token_axis: bool
    context: int
    lengths: Tensor | None
    device: str
    number: int = 0
    per_head: bool = False
    responses: int = 1
    weighted: bool = False

    def form(self, space: str) -> str:
        """The name of the form that runs in a space."""
        return form_name(space, self.structure, self.rule, self.per_head, self.responses)


class QuadraticProblem(NamedTuple):
    """What a learned first-order method's arguments are: quadratics in d weights, and where they are.

    columns: whether b has an axis of columns, each the linear part of a quadratic of its own with the task's h.
    per_task: whether gamma or beta has an axis of tasks.
    """

    weights: int
    device: str
    number: int = 0
    columns: bool = False
    per_task: bool = False


def check_tokens(z: object, name: str = "z") -> Tensor:
    """z as a real floating tensor (B, N, D) with N, D >= 1."""
    tokens = check_floating(name, z)
    shape = tokens.shape
    if len(shape) != 3 or shape[1] < 1 or shape[2] < 1:
        reject(name, z, "tasks of tokens (B, N, D) with N >= 1 and D >= 1")
    return tokens


def check_context(context: object, z: Tensor) -> tuple[int, Tensor | None]:
    """The number of labelled tokens and, for ragged contexts, its tensor of lengths (the number is then N)."""
    total = z.shape[1]
    if context is None:
        if total < 2:
            reject("context", context, f"an int from 1 to N, since the default N - 1 is empty for N = {total}")
        return total - 1, None
    if isinstance(context, Tensor):
        check_integers("context", context)
        if context.ndim != 1 or context.shape[0] != z.shape[0]:
            reject("context", context, f"one length per task, shape ({z.shape[0]},)")
        check_device("context", context, z)
        return total, context.contiguous()  # kernels read one length after another
    count = check_integer("context", context)
    if not 1 <= count <= total:
        reject("context", context, f"an int from 1 to N = {total}")
    return count, None


def check_queries(queries: object, z: Tensor, context: int, lengths: Tensor | None) -> int:
    """The number of query tokens at the end of every task."""
    if queries is None:
        return z.shape[1] - context if lengths is None else 1
    count = check_integer("queries", queries)
    room = z.shape[1] - (1 if lengths is not None else context)
    if not 0 <= count <= room:
        reject("queries", queries, f"an int from 0 to {room}, the tokens past the context")
    return count


def check_first(first: object, z: Tensor) -> int:
    """The first token that is predicted, of those that have a token before them."""
    total, token = z.shape[1], check_integer("first", first)
    if total < 2:
        reject("z", z, "N >= 2 tokens a task: one to predict, and one before it")
    if not 1 <= token < total:
        reject("first", first, f"an int from 1 to N - 1 = {total - 1}, since a prediction needs a token before it")
    return token


def check_prefixes(
    z: object, q: object, p: object, gamma: object, beta: object, gate: object, first: object
) -> Problem:
    """The network of `memformer_prefix_predict` and `memformer_prefix_loss`; its context is the shortest prefix."""
    token = check_first(first, check_tokens(z))
    problem = check_network(z, q, p, gamma, beta, gate, token)
    for name, coefficient in {"gamma": gamma, "beta": beta}.items():
        if isinstance(coefficient, Tensor) and coefficient.ndim >= 2 and coefficient.shape[-2] != 1:
            reject(name, coefficient, "a token axis of 1, since a token stands in prefixes of every length")
    return problem


def check_lengths(lengths: Tensor, tokens: int, queries: int) -> None:
    """The range of ragged contexts, where reading them does not wait for a device."""
    if lengths.device.type != "cpu" or lengths.numel() == 0:
        return
    low, high = (int(x) for x in torch.aminmax(lengths))
    if low < 1 or high > tokens - queries:
        raise ValueError(
            f"context: expected lengths from 1 to {tokens - queries} (N = {tokens} tokens, {queries} of them queries), "
            f"got lengths from {low} to {high}"
        )


def check_weights(weights: Tensor, lengths: Tensor | None, context: int) -> None:
    """The range of the context's weights, where reading them does not wait for a device.

    Inside a transform a tensor may stand for many; what it stands for is seen below the transform.
    """
    if weights.device.type != "cpu" or transforming() or not has_data(weights):
        return
    inside = weights.detach()
    if lengths is None:
        inside = inside[:, :context]
    else:
        place = torch.arange(weights.shape[1], device=weights.device, dtype=torch.int64)
        inside = torch.where(place < lengths[:, None], inside, 0.0)
    if inside.numel() == 0:
        return
    low, high = (float(x) for x in torch.aminmax(inside))
    if not 0 <= low <= high < math.inf:
        raise ValueError(
            f"weights: expected finite numbers of at least 0 for the context's tokens, got numbers from {low} to {high}"
        )


def check_network(
    z: object,
    q: object,
    p: object,
    gamma: object,
    beta: object,
    gate: object,
    context: object,
    responses: object = 1,
    weights: object = None,
) -> Problem:
    """The arguments shared by `memformer_stack`, `memformer_predict` and `memformer_loss`."""
    tokens = check_tokens(z)
    _, total, width = tokens.shape
    slots = check_size("responses", responses)
    if slots > width:
        reject("responses", responses, f"an int from 1 to D = {width}, the numbers of a token")
    queries = check_floating("q", q)
    shape = queries.shape
    if len(shape) != 4 or shape[0] < 1 or shape[1] < 1:
        reject("q", q, "preconditioners (L, H, d, d) or (L, H, D, D) with L >= 1 and H >= 1")
    layers, heads, _, _ = shape
    structure = _check_projections(queries, p, (layers, heads), width, slots)
    rule, token_axis, per_head = "linear", False, False
    if gamma is not None:
        coefficients = check_floating("gamma", gamma)
        shape = coefficients.shape
        if len(shape) == 5:
            _check_broadcasts("gamma", coefficients, (layers, layers, heads, total, width))
            rule = "shared" if shape[0] == 1 and layers > 1 else "full"
        elif len(shape) == 4:
            _check_broadcasts("gamma", coefficients, (layers, heads, total, width))
            rule = "diagonal"
        else:
            reject("gamma", gamma, "4 axes, broadcastable to (L, H, N, D), or 5, broadcastable to (L, L, H, N, D)")
        token_axis, per_head = shape[-2] != 1, shape[-3] != 1
    if beta is not None:
        decay = check_floating("beta", beta)
        _check_broadcasts("beta", decay, (layers, heads, total, width))
        token_axis = token_axis or (decay.ndim >= 2 and decay.shape[-2] != 1)
        per_head = per_head or (decay.ndim >= 3 and decay.shape[-3] != 1)
    if gate is not None:
        gates = check_floating("gate", gate)
        if gates.shape != (heads,) and gates.shape != (layers, heads):
            reject("gate", gate, f"shape (H,) = ({heads},) or (L, H) = ({layers}, {heads})")
        if weights_registers(gates, gamma, beta):
            rule = "diagonal" if gamma is None else "full" if rule == "shared" else rule
            per_head = per_head or heads != 1
    count, lengths = check_context(context, tokens)
    weighted = _check_weights(weights, tokens)
    _agree(tokens, q=q, p=p, gamma=gamma, beta=beta, gate=gate, weights=weights)
    where = tokens.device
    return Problem(
        tokens=total,
        width=width,
        layers=layers,
        heads=heads,
        structure=structure,
        rule=rule,
        token_axis=token_axis,
        context=count,
        lengths=lengths,
        device=where.type,
        number=where.index or 0,
        per_head=per_head,
        responses=slots,
        weighted=weighted,
    )


def weights_registers(gate: Tensor, gamma: object, beta: object) -> bool:
    """Whether a gate acts on registers, as gamma does. If not, scaling q does the same.

    A gate shared by layers scales all of a head's registers alike, and registers are linear in Q. So does a gate per
    layer when no layer reads another's register.
    """
    reads_earlier = beta is not None or (isinstance(gamma, Tensor) and gamma.ndim == 5)
    return gate.ndim == 2 and reads_earlier


def check_target(target: object, z: Tensor, queries: int, responses: int = 1) -> Tensor:
    """The responses of the queries, (B, queries), or (B, queries, m) where there are several."""
    answers = check_floating("target", target)
    if responses != 1 and answers.shape != (z.shape[0], queries, responses):
        reject("target", target, f"shape (B, queries, responses) = ({z.shape[0]}, {queries}, {responses})")
    if responses == 1 and answers.shape != (z.shape[0], queries):
        reject("target", target, f"shape (B, queries) = ({z.shape[0]}, {queries})")
    _agree(z, target=answers)
    return answers


def check_registers(registers: object) -> None:
    """The registers of the layers before as a sequence; `check_layer` looks at each."""
    if isinstance(registers, Tensor | str) or not isinstance(registers, Sequence):
        reject_kind("registers", registers, "a sequence of tensors (B, R, N, D)")


def check_layer(
    z: object,
    q: object,
    p: object,
    registers: Sequence[object],
    gamma: object,
    beta: object,
    context: object,
    weights: object = None,
) -> Problem:
    """The arguments of `memformer_layer`."""
    tokens = check_tokens(z)
    batch, total, width = tokens.shape
    queries = check_floating("q", q)
    if queries.ndim != 3 or queries.shape[0] < 1:
        reject("q", q, "one layer's preconditioners (H, d, d) or (H, D, D) with H >= 1")
    heads = queries.shape[0]
    structure = _check_projections(queries, p, (heads,), width)
    depth = len(registers) + 1
    kept, token_axis, rule = 1, False, "linear"
    if gamma is not None:
        coefficients = check_floating("gamma", gamma)
        if coefficients.ndim != 4:
            reject("gamma", gamma, "4 axes, broadcastable to (len(registers) + 1, H, N, D)")
        _check_broadcasts("gamma", coefficients, (depth, heads, total, width))
        kept, token_axis, rule = coefficients.shape[1], coefficients.shape[2] != 1, "full"
    if beta is not None:
        decay = check_floating("beta", beta)
        _check_broadcasts("beta", decay, (heads, total, width))
        kept = max(kept, decay.shape[-3] if decay.ndim == 3 else 1)
        token_axis = token_axis or (decay.ndim >= 2 and decay.shape[-2] != 1)
    for index, register in enumerate(registers):
        name = f"registers[{index}]"
        earlier = check_floating(name, register)
        if earlier.shape != (batch, kept, total, width):
            reject(name, register, f"shape (B, R, N, D) = ({batch}, {kept}, {total}, {width})")
        if earlier.dtype != tokens.dtype and (earlier.dtype == torch.float64 or not autocasts(tokens)):
            reject_kind(name, register, f"z's dtype {tokens.dtype}")
        check_device(name, earlier, tokens)
    count, lengths = check_context(context, tokens)
    weighted = _check_weights(weights, tokens)
    _agree(tokens, q=q, p=p, gamma=gamma, beta=beta, weights=weights)
    return Problem(
        tokens=total,
        width=width,
        layers=1,
        heads=heads,
        structure=structure,
        rule=rule,
        token_axis=token_axis,
        context=count,
        lengths=lengths,
        device=tokens.device.type,
        number=tokens.device.index or 0,
        per_head=kept != 1,
        weighted=weighted,
    )


def check_quadratics(h: object, b: object, a: object, gamma: object, beta: object, w0: object) -> QuadraticProblem:
    """The arguments of `lfom_solve`."""
    matrices, vectors, preconditioners = check_floating("h", h), check_floating("b", b), check_floating("a", a)
    if matrices.ndim != 3 or matrices.shape[1] != matrices.shape[2] or matrices.shape[1] < 1:
        reject("h", h, "square matrices (B, d, d) with d >= 1")
    batch, weights = matrices.shape[:2]
    columns = vectors.ndim == 3
    if vectors.shape[:2] != (batch, weights) or not 2 <= vectors.ndim <= 3 or (columns and vectors.shape[2] < 1):
        reject("b", b, f"shape (B, d) = ({batch}, {weights}), or (B, d, m) with m >= 1")
    if preconditioners.ndim != 3 or preconditioners.shape[0] < 1 or preconditioners.shape[1:] != matrices.shape[1:]:
        reject("a", a, f"preconditioners (L, d, d) = (L, {weights}, {weights}) with L >= 1")
    layers, per_task = preconditioners.shape[0], False
    if gamma is not None:
        coefficients = check_floating("gamma", gamma)
        if not 3 <= coefficients.ndim <= 4:
            reject("gamma", gamma, "3 axes, broadcastable to (L, L, d), or 4, broadcastable to (B, L, L, d)")
        per_task = coefficients.ndim == 4
        lead = (batch,) if per_task else ()
        _check_broadcasts("gamma", coefficients, (*lead, layers, layers, weights))
    if beta is not None:
        decay = check_floating("beta", beta)
        lead = (batch,) if decay.ndim == 3 else ()
        _check_broadcasts("beta", decay, (*lead, layers, weights))
        per_task = per_task or decay.ndim == 3
    if w0 is not None and check_floating("w0", w0).shape != vectors.shape:
        reject("w0", w0, f"b's shape {tuple(vectors.shape)}")
    for name, tensor in {
        "h": matrices,
        "b": vectors,
        "a": preconditioners,
        "gamma": gamma,
        "beta": beta,
        "w0": w0,
    }.items():
        if isinstance(tensor, Tensor):
            fits = tensor.dtype == matrices.dtype and tensor.dtype not in HALF
            if not fits and (tensor.dtype == torch.float64 or not autocasts(matrices)):
                reject_kind(name, tensor, f"float32 or float64, and h's dtype {matrices.dtype}")
            check_device(name, tensor, matrices)
    return QuadraticProblem(weights, matrices.device.type, matrices.device.index or 0, columns, per_task)


def _check_projections(q: Tensor, p: object, lead: tuple[int, ...], width: int, responses: int = 1) -> str:
    """The structure that q and p make: response-only, block or dense."""
    features = width - responses
    block, dense = (*lead, features, features), (*lead, width, width)
    if features == 0:  # response slots alone: there is no feature, and no block of them
        for name, matrix in (("q", q), ("p", p)):
            if isinstance(matrix, Tensor) and matrix.shape == block:
                reject(name, matrix, f"shape {dense} (dense), since z has no feature")
    if q.shape != block and q.shape != dense:
        reject("q", q, f"shape {block} (the block A) or {dense} (dense)")
    if p is None:
        return "response-only" if q.shape == block else "dense"
    values = check_floating("p", p)
    if values.shape != block and values.shape != dense:
        reject("p", p, f"shape {block} (the block Bm with corner 1) or {dense} (dense)")
    return "block" if q.shape == block and values.shape == block else "dense"


def _check_weights(weights: object, z: Tensor) -> bool:
    """Whether there are weights, which stand in the tokens' places, as gamma's token axis does: for ragged contexts and
    for counted ones alike."""
    if weights is None:
        return False
    if check_floating("weights", weights).shape != z.shape[:2]:
        reject("weights", weights, f"one weight per token, shape (B, N) = ({z.shape[0]}, {z.shape[1]})")
    return True


def _check_broadcasts(name: str, tensor: Tensor, full: tuple[int, ...]) -> None:
    if not broadcasts(tensor.shape, full):
        reject(name, tensor, f"a shape broadcastable to {full}")


def _agree(z: Tensor, **parameters: Any) -> None:
    """Parameters live where z does, in float32 or z's dtype; under autocast any mixture without float64 is cast."""
    dtype, device = z.dtype, z.device
    for name, tensor in parameters.items():
        if tensor is not None:
            own = tensor.dtype
            fits = own is dtype or (own == torch.float32 and dtype in HALF)
            if not fits and (own == torch.float64 or not autocasts(z)):
                allowed = f"{dtype} or torch.float32" if dtype in HALF else str(dtype)
                reject_kind(name, tensor, f"{allowed}, since z is {dtype}")
            if tensor.device != device:
                check_device(name, tensor, z)
