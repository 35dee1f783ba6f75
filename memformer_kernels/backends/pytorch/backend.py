"""The PyTorch backend: any device, any size, every rule; batched matrix products through torch (MKL, cuBLAS).

Half-precision tokens are computed in float32. The backward recomputes the forward, so that nothing but the inputs is
kept between the two.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor
from torch.nn.functional import pad

from memformer_kernels.backends.base import Needs, needed_gradients
from memformer_kernels.backends.projections import projections
from memformer_kernels.backends.pytorch import attention, register_update, response
from memformer_kernels.backends.pytorch.context import Labelled, gram, gram_backward, restore_padding, without_padding
from memformer_kernels.backends.pytorch.forms import (
    GeneralForm,
    GeneralParameters,
    Gradients,
    ResponseForm,
    ResponseParameters,
)
from memformer_kernels.backends.pytorch.layer import LayerForm
from memformer_kernels.backends.pytorch.memory import Kept, Memory
from memformer_kernels.backends.pytorch.prefixes import PrefixForm, block_length
from memformer_kernels.backends.pytorch.proximal import ProximalSteps
from memformer_kernels.calls.arguments import Attention, Layer, Network, Proximal, Quadratics, compute_dtype

_PART_ELEMENTS = 2**21
"""Entries that a piece of a batch on the CPU keeps reading: 8 MiB of float32, about what caches near two cores hold."""

_DEVICE_ELEMENTS = 2**26
"""Entries of a piece elsewhere: a launch should have much to do."""


class TorchBackend:
    """The operations on plain PyTorch."""

    _layer_type: type[LayerForm] = LayerForm

    def context_gram(self, z: Tensor, lengths: Tensor | None, context: int) -> Tensor:
        dtype = compute_dtype(z)
        total = z.new_zeros((z.shape[0], z.shape[2], z.shape[2]), dtype=dtype)
        for tasks, tokens, labelled in _pieces(z, lengths, context):
            total[tasks] += gram(z[tasks, tokens].to(dtype), labelled)
        return total

    def context_gram_backward(self, grad: Tensor, z: Tensor, lengths: Tensor | None, context: int) -> Tensor:
        dtype = compute_dtype(z)
        grad_z = torch.empty_like(z, memory_format=torch.contiguous_format)
        grad_z[:, context:] = 0
        for tasks, tokens, labelled in _pieces(z, lengths, context):
            grad_z[tasks, tokens] = gram_backward(grad[tasks], z[tasks, tokens].to(dtype), labelled)
        return grad_z

    def stack(self, network: Network) -> Tensor:
        return torch.cat([_own(self._form(piece, "last").tokens(), network.z) for piece, _ in _in_parts(network)])

    def stack_backward(self, grad: Tensor, network: Network, needs: Needs) -> list[Tensor]:
        dtype = compute_dtype(network.z)
        parts = [
            self._form(piece).tokens_backward(grad[tasks].to(dtype), needs[0]) for piece, tasks in _in_parts(network)
        ]
        return needed_gradients(_merged(parts, network), _tensors(network), needs)

    def predict(self, network: Network, queries: int, layers: bool) -> Tensor:
        pieces = _in_parts(network, streamed=True)
        kept: Kept = "states" if layers else "last"
        made = torch.cat(
            [self._form(_without_padding(piece, queries), kept).predictions(queries, layers) for piece, _ in pieces], 1
        )
        return made.squeeze(-1) if network.form.responses == 1 else made

    def predict_backward(
        self, grad: Tensor, network: Network, queries: int, layers: bool, needs: Needs
    ) -> list[Tensor]:
        parts, grad = [], _by_response(grad, network)
        for piece, tasks in _in_parts(network, streamed=not needs[0]):
            form = self._form(_without_padding(piece, queries))
            parts.append(_with_padding(form.predictions_backward(grad[:, tasks], needs[0]), piece, queries))
        return needed_gradients(_merged(parts, network), _tensors(network), needs)

    def loss(self, network: Network, target: Tensor, queries: int, needs: Needs) -> list[Tensor]:
        # Of one axis: a plain number that is mapped over no slice is one that PyTorch's arithmetic fails on.
        total = network.z.new_zeros(1, dtype=compute_dtype(network.z))
        parts: list[Gradients] = []
        target_grads: list[Tensor] = []
        answers = _by_response(target, network)
        for piece, tasks in _in_parts(network, streamed=not needs[0]):
            form = self._form(_without_padding(piece, queries), "all" if any(needs) else "last")
            predictions = form.predictions(queries, layers=False)
            error = predictions - answers[tasks].to(predictions.dtype)
            total = total + error.square().sum((1, 2, 3))
            if any(needs):
                grad = error * (2 / max(target.numel(), 1))
                parts.append(_with_padding(form.predictions_backward(grad, needs[0]), piece, queries))
                target_grads.append(-grad[0])
        # By a tensor: two forward modes around a compiled call make of a number one that the compiler does not know.
        value = (total / total.new_full((1,), target.numel())).squeeze(0)
        if not any(needs):
            return [value]
        z_grad, *parameter_grads = _merged(parts, network)
        arguments = [network.z, target, *_tensors(network)[1:]]
        grads = [z_grad, torch.cat(target_grads).reshape(target.shape), *parameter_grads]
        return [value, *needed_gradients(grads, arguments, needs, total.dtype)]

    def prefix_predict(self, network: Network, layers: bool) -> Tensor:
        return torch.cat([_prefix_form(piece).predictions(layers) for piece, _ in _in_parts_of_prefixes(network)], 1)

    def prefix_predict_backward(self, grad: Tensor, network: Network, needs: Needs) -> list[Tensor]:
        parts = []
        for piece, tasks in _in_parts_of_prefixes(network):
            parts += _prefix_form(piece).gradients(_Given(grad[:, tasks]), grad.shape[0], needs[0])
        return needed_gradients(_merged(parts, network)[:5], network[:5], needs)

    def prefix_loss(self, network: Network, target: Tensor, needs: Needs) -> list[Tensor]:
        total = network.z.new_zeros(1, dtype=compute_dtype(network.z))
        parts: list[Gradients] = []
        target_grads: list[Tensor] = []
        for piece, tasks in _in_parts_of_prefixes(network):
            form, wanted = _prefix_form(piece), target[tasks].to(total.dtype)
            if not any(needs):
                total = total + (form.predictions(layers=False) - wanted).square().sum((1, 2))
                continue
            pull = _Errors(wanted, 2 / max(target.numel(), 1))
            parts += form.gradients(pull, 1, needs[0])
            total = total + pull.squares
            target_grads.append(torch.cat(pull.target_grads[::-1], 1))
        value = (total / total.new_full((1,), target.numel())).squeeze(0)
        if not any(needs):
            return [value]
        z_grad, *parameter_grads = _merged(parts, network)[:5]
        grads = [z_grad, torch.cat(target_grads), *parameter_grads]
        return [value, *needed_gradients(grads, [network.z, target, *network[1:5]], needs, total.dtype)]

    def layer(self, layer: Layer) -> tuple[Tensor, Tensor]:
        form = self._layer_form(layer)
        return _own(form.tokens(), layer.z), _own(form.registers[-1], layer.z)

    def layer_backward(self, grad: Tensor, register_grad: Tensor, layer: Layer, needs: Needs) -> list[Tensor]:
        dtype = compute_dtype(layer.z)
        grads = self._layer_form(layer).backward(grad.to(dtype), register_grad.to(dtype))
        q_width, p_width = layer.q.shape[-1], 0 if layer.p is None else layer.p.shape[-1]
        listed = [
            grads.z,
            grads.q[..., :q_width, :q_width],
            grads.p[..., :p_width, :p_width],
            *grads.registers,
            grads.gamma,
            grads.beta,
            None,
        ]
        arguments = [layer.z, layer.q, layer.p, *layer.registers, layer.gamma, layer.beta, layer.lengths]
        if layer.weights is not None:
            arguments.append(layer.weights)
            listed.append(_placed(grads.weights, layer))
        return needed_gradients(listed, arguments, needs)

    def lfom_solve(self, quadratics: Quadratics, layers: bool) -> Tensor:
        return _iterates(quadratics, layers)

    def lfom_solve_backward(self, grad: Tensor, quadratics: Quadratics, layers: bool, needs: Needs) -> list[Tensor]:
        return needed_gradients(_first_order_gradients(grad, quadratics, needs)[0], quadratics, needs)

    def proximal_solve(self, quadratics: Quadratics, proximal: Proximal, layers: bool) -> Tensor:
        return _iterates(quadratics, layers, ProximalSteps(proximal))

    def proximal_solve_backward(
        self, grad: Tensor, quadratics: Quadratics, proximal: Proximal, layers: bool, needs: Needs
    ) -> list[Tensor]:
        steps = ProximalSteps(proximal)
        grads, of_layers = _first_order_gradients(grad, quadratics, needs, steps)
        return needed_gradients([*grads, *steps.total(of_layers)], [*quadratics, *proximal], needs)

    def attend(self, call: Attention) -> Tensor:
        return attention.attend(call).contiguous()

    def attend_backward(self, grad: Tensor, call: Attention, needs: Needs) -> list[Tensor]:
        return [self.attend(part) for part in attention.gradients(grad, call, needs)]

    def register_update(self, z: Tensor, registers: Sequence[Tensor], gamma: Tensor) -> Tensor:
        return register_update.update(z, registers, gamma).contiguous()

    def register_update_backward(
        self, grad: Tensor, registers: Sequence[Tensor], gamma: Tensor, needs: Needs
    ) -> list[Tensor]:
        own, coefficients = register_update.update_gradients(grad, registers, gamma)
        return needed_gradients([*own, coefficients], [*registers, gamma], needs)

    def _form(self, network: Network, kept: Kept = "all") -> GeneralForm | ResponseForm:
        dtype = compute_dtype(network.z)
        z, q, p = network.z.to(dtype), network.q.to(dtype), _cast(dtype, network.p)
        gamma, beta = _cast(dtype, network.gamma), _cast(dtype, network.beta)
        labelled = _labelled(network, dtype)
        if network.form.response_only:
            return ResponseForm(z, q, gamma, beta, labelled, network.form, kept)
        memory = partial(self._memory, q.shape[0], network.form.kept(q.shape[1]), z.shape[-1])
        return GeneralForm(z, q, p, gamma, beta, labelled, network.form, memory, kept)

    def _memory(
        self, layers: int, heads: int, width: int, gamma: Tensor | None, beta: Tensor | None, diagonal: bool
    ) -> Memory:
        return Memory(gamma, beta, diagonal)

    def _layer_form(self, layer: Layer) -> LayerForm:
        dtype = compute_dtype(layer.z)
        z = layer.z.to(dtype)
        q, p = projections(layer.q.to(dtype), _cast(dtype, layer.p), z.shape[-1])
        registers = [register.to(dtype) for register in layer.registers]
        gamma, beta = _cast(dtype, layer.gamma), _cast(dtype, layer.beta)
        heads = layer.form.kept(q.shape[0])
        return self._layer_type(z, q, p, registers, gamma, beta, _labelled(layer, dtype), heads)

    def warmup(self, rehearsal: Callable[[int | None], object]) -> None:
        """Nothing to build."""


def _cast(dtype: torch.dtype, tensor: Tensor | None) -> Tensor | None:
    return None if tensor is None else tensor.to(dtype)


def _own(result: Tensor, argument: Tensor) -> Tensor:
    """A result in the argument's dtype and contiguous."""
    return result.to(argument.dtype).contiguous()


def _labelled(call: Network | Layer, dtype: torch.dtype) -> Labelled:
    return Labelled(call.context, call.lengths).weighted(_cast(dtype, call.weights))


def _tensors(network: Network) -> list[Tensor | None]:
    """Those that have gradients, of which lengths have none; weights come last, where there are any."""
    return [*network[:6], *([] if network.weights is None else [network.weights])]


def _merged(parts: Sequence[Gradients], network: Network) -> list[Tensor | None]:
    """The gradients of all tasks from those of the pieces, in the order of `_tensors`."""
    columns = zip(*((part.q, part.p, part.gamma, part.beta) for part in parts), strict=True)
    made = [_joined([part.z for part in parts]), *(_total(column) for column in columns), None]
    if network.weights is not None:
        made.append(_placed(_joined([part.weights for part in parts]), network))
    return made


def _joined(rows: Sequence[Tensor | None]) -> Tensor | None:
    present = [row for row in rows if row is not None]
    return torch.cat(present) if present else None


def _placed(grad: Tensor | None, call: Network | Layer) -> Tensor | None:
    """The gradient of all weights (B, N) from that of the context's: exactly zero for the others."""
    return None if grad is None else pad(grad, (0, call.z.shape[1] - grad.shape[1]))


def _total(grads: Sequence[Tensor | None]) -> Tensor | None:
    present = [grad for grad in grads if grad is not None]
    return sum(present[1:], present[0]) if present else None


def _pieces(z: Tensor, lengths: Tensor | None, context: int) -> Iterator[tuple[slice, slice, Labelled]]:
    """Tasks and, of long ones, tokens of their contexts, so few at a time that their copies in another precision are a
    small part of a large batch's memory."""
    batch, _, width = z.shape
    most = _PART_ELEMENTS if z.device.type == "cpu" else _DEVICE_ELEMENTS
    rows = max(1, most // width)
    together = max(1, rows // context)
    for first in range(0, batch, together):
        tasks = slice(first, min(first + together, batch))
        for token in range(0, context, rows):
            tokens = slice(token, min(token + rows, context))
            left = None if lengths is None else lengths[tasks] - token
            yield tasks, tokens, Labelled(tokens.stop - token, left)


def _in_parts(network: Network, streamed: bool = False) -> list[tuple[Network, slice]]:
    """The tasks in pieces whose intermediates stay in the cache and are a small part of a large batch's memory.

    streamed: tokens are read for the Gram matrix and nothing of their size is made, so that only matrices, and vectors
    of every layer, stay. Pieces are larger there, since each costs a hundred small operations, whatever its size; four
    times as large at most, because a long or padded context is copied on the way.
    """
    batch, tokens, width = network.z.shape
    kept = max(tokens, width) * width
    if streamed and _reads_tokens_once(network):
        vectors = 3 * network.q.shape[0] * network.form.responses
        kept = min(kept, max(kept // 4, width * width + vectors * width))
    size = max(1, _PART_ELEMENTS // kept)
    if batch <= size or network.z.device.type != "cpu":
        return [(network, slice(0, batch))]
    pieces = []
    for start in range(0, batch, size):
        tasks = slice(start, min(start + size, batch))
        lengths, weights = (None if x is None else x[tasks] for x in (network.lengths, network.weights))
        pieces.append((network._replace(z=network.z[tasks], lengths=lengths, weights=weights), tasks))
    return pieces


@dataclass
class _Given:
    """The gradient of a block's predictions, where that of all (depth, B, N - first) is given."""

    grad: Tensor

    def __call__(self, places: slice, _: Tensor) -> Tensor:
        return self.grad[:, :, places]


class _Errors:
    """The same for squared errors that are added up, times `scale` / 2; blocks come from the last to the first.

    squares: their sum, (1,). target_grads: of each block, in the order of blocks.
    """

    def __init__(self, target: Tensor, scale: float) -> None:
        self._target, self._scale = target, scale
        self.squares = target.new_zeros(1)
        self.target_grads: list[Tensor] = []

    def __call__(self, places: slice, predictions: Tensor) -> Tensor:
        error = predictions - self._target[:, places]
        self.squares = self.squares + error.square().sum((1, 2))
        grad = error * self._scale
        self.target_grads.append(-grad[0])
        return grad


def _in_parts_of_prefixes(network: Network) -> list[tuple[Network, slice]]:
    """The tasks in pieces, few enough that what layers make of a block of their prefixes stays in the cache.

    That is a matrix for each prefix; or where features stay some vectors of every layer, a prefix's products with its
    block, and the first matrix of each block.
    """
    batch, tokens, width = network.z.shape
    most = _PART_ELEMENTS if network.z.device.type == "cpu" else _DEVICE_ELEMENTS
    prefixes, matrix = max(block_length(tokens - network.context), 1), width * width
    kept = prefixes * matrix
    if network.form.response_only:
        blocks = -(-(tokens - network.context) // prefixes)
        kept = prefixes * (4 * network.q.shape[0] * width + prefixes) + blocks * matrix
    size = max(1, most // kept)
    pieces = []
    for start in range(0, max(batch, 1), size):
        tasks = slice(start, min(start + size, batch))
        pieces.append((network._replace(z=network.z[tasks]), tasks))
    return pieces


def _prefix_form(network: Network) -> PrefixForm:
    z, q, p, gamma, beta, _, first, form, _ = network
    dtype = compute_dtype(z)
    q, gamma, beta = q.to(dtype), _cast(dtype, gamma), _cast(dtype, beta)
    own: GeneralParameters | ResponseParameters
    if form.response_only:
        own = ResponseParameters(q, gamma, beta, form)
    else:
        own = GeneralParameters(q, _cast(dtype, p), gamma, beta, z.shape[2], form)
    return PrefixForm(z.to(dtype), first, own)


def _reads_tokens_once(network: Network) -> bool:
    copied = network.lengths is not None or network.z.dtype != compute_dtype(network.z) or network.weights is not None
    return network.form.space == "gram" and network.form.response_only and not copied


def _without_padding(network: Network, queries: int) -> Network:
    """The network on its context and query tokens alone, so that nothing between them is ever read."""
    total = network.z.shape[1]
    z = without_padding(network.z, _labelled(network, compute_dtype(network.z)), queries)
    if z.shape[1] == total:
        return network._replace(z=z)

    def kept(coefficient: Tensor | None) -> Tensor | None:
        if coefficient is None or coefficient.ndim < 2 or coefficient.shape[-2] == 1:
            return coefficient
        before, after = coefficient[..., : network.context, :], coefficient[..., total - queries :, :]
        return torch.cat([before, after], -2)

    return network._replace(z=z, gamma=kept(network.gamma), beta=kept(network.beta))


def _with_padding(grads: Gradients, network: Network, queries: int) -> Gradients:
    """Gradients of a network from those of the network without its padding: exactly zero for what was cut out."""
    if grads.z is not None:
        labelled = Labelled(network.context, network.lengths)
        grads.z = restore_padding(grads.z, network.z.shape[1], labelled, queries)
    grads.gamma = _restored(grads.gamma, network.gamma, network.context)
    grads.beta = _restored(grads.beta, network.beta, network.context)
    return grads


def _restored(grad: Tensor | None, coefficient: Tensor | None, context: int) -> Tensor | None:
    """The gradient of a coefficient whose padding tokens were cut out: zero for those."""
    if grad is None or coefficient is None or grad.shape == coefficient.shape:
        return grad
    missing = coefficient.shape[-2] - grad.shape[-2]
    padding = grad.new_zeros(*grad.shape[:-2], missing, grad.shape[-1])
    return torch.cat([grad[..., :context, :], padding, grad[..., context:, :]], -2)


def _iterates(quadratics: Quadratics, layers: bool, steps: ProximalSteps | None = None) -> Tensor:
    """The weights after each step, (L, B, d) or (L, B, d, m), or the last alone."""
    states = _first_order(quadratics, "states" if layers else "last", steps)[0].states
    return _columns(-torch.stack(states[1:] if layers else states), quadratics.b).contiguous()


def _first_order_gradients(
    grad: Tensor, quadratics: Quadratics, needs: Needs, steps: ProximalSteps | None = None
) -> tuple[list[Tensor | None], list[Proximal]]:
    """Gradients of (h, b, a, gamma, beta, w0), and of each layer's prox, from that of all iterates or the last.

    That of h, as large as all matrices, is made where it is needed alone.
    """
    trace, residual, a, memory = _first_order(quadratics, steps=steps)
    outer: list[Tensor | None] = [None] * (a.shape[0] - grad.shape[0])
    grads = response.run_backward([*outer, *_rows(-grad, quadratics.b)], trace, residual, a, memory, steps)
    listed = [
        grads.residual.flatten(2) @ response.stacked_states(trace) if needs[0] else None,
        grads.residual.sum(2).reshape(quadratics.b.shape),
        grads.a[:, 0],
        None if grads.gamma is None else grads.gamma[:, :, 0, 0],
        None if grads.beta is None or quadratics.beta is None else grads.beta.reshape(quadratics.beta.shape),
        _columns(-grads.state, quadratics.b),
    ]
    return listed, grads.proximal


def _by_response(values: Tensor, network: Network) -> Tensor:
    """What belongs to predictions, (..., queries) where there is one response, as (..., queries, m)."""
    return values[..., None] if network.form.responses == 1 else values


def _rows(vectors: Tensor, b: Tensor) -> Tensor:
    """Vectors (..., d) or their columns (..., d, m), as b has them, as rows (..., m, d)."""
    return vectors[..., None, :] if b.ndim == 2 else vectors.mT


def _columns(rows: Tensor, b: Tensor) -> Tensor:
    """The inverse of `_rows`."""
    return rows.squeeze(-2) if b.ndim == 2 else rows.mT


def _first_order(
    quadratics: Quadratics, kept: Kept = "all", steps: ProximalSteps | None = None
) -> tuple[response.ResponseTrace, response.GramResidual, Tensor, Memory]:
    """The response recurrence in s = -w, with one head and the coefficients' last axis along the weights."""
    h, b, a, gamma, beta, w0 = quadratics
    residual = response.GramResidual(h, _rows(b, b), from_zero=w0 is None, transposed=h.mT)
    preconditioners = a[:, None]
    if beta is not None:
        beta = beta.reshape((1,) * (2 - beta.ndim) + tuple(beta.shape))[:, None, None]
    memory = Memory(None if gamma is None else gamma[:, :, None, None], beta, diagonal=gamma is None)
    state = torch.zeros_like(residual.b) if w0 is None else _rows(-w0, b)
    trace = response.run(state, residual, preconditioners, memory, kept, steps)
    return trace, residual, preconditioners, memory
